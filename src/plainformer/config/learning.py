"""How a run learns: optimizer, schedule, loss, scaling and what is changed of its inputs. Sections of `TrainConfig`. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from plainformer.config.effects import is_given
from plainformer.config.options import Check, Checked, flag, number, one_of, option, text, whole
from plainformer.config.scaling import SCALINGS
from plainformer.config.values import no_effect
from plainformer.errors import UsageError, opt


def _or_none(check: Check) -> Check:
    """Return a check that passes None where the default is something else."""
    return lambda name, value: None if value is None else check(name, value)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """AdamW (Loshchilov & Hutter 2019)."""

    learning_rate: float | None = option(
        None, help="Peak rate; default: by objective, shown by --dry-run.", check=number("(0, inf)")
    )
    weight_decay: float = option(0.01, help="Decay of matrices; biases and norms have none.", check=number("[0, inf)"))
    beta1: float = option(0.9, help="Decay of the mean of gradients.", check=number("[0, 1)"))
    beta2: float = option(0.999, help="Decay of the mean of their squares.", check=number("[0, 1)"))
    eps: float = option(1e-8, help="Added to the root of that mean.", check=number("(0, inf)"))
    max_grad_norm: float | None = option(
        1.0, help="Largest norm of all gradients; null: no limit.", check=_or_none(number("(0, inf)"))
    )
    layer_decay: float | None = option(
        None, help="Each layer's rate is this times that of the layer above.", check=number("(0, 1]")
    )
    l1: float = option(
        0.0,
        help="Weight of the sum of absolute weights (Tibshirani 1996): a proximal step, which gives exact zeros.",
        check=number("[0, inf)"),
    )
    ema: float | None = option(
        None, help="Decay of an average of the weights, evaluated and saved.", check=number("(0, 1)")
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Checked):
    """The learning rate as a function of the step."""

    kind: str = option(
        "linear", help="linear, cosine, wsd or constant.", check=one_of("linear", "cosine", "wsd", "constant")
    )
    warmup: float = option(
        0.1, help="Steps of warm-up: a share below 1, or a number of steps.", check=number("[0, inf)")
    )
    decay: float = option(0.2, help="Share of the steps in which wsd decays.", check=number("(0, 1]"))
    final: float = option(0.0, help="Rate at the end as a share of the peak.", check=number("[0, 1]"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            what = f"{opt('warmup', self.warmup)} is neither a share nor a number of steps"
            raise UsageError(what, "give a number below 1, or a whole number")
        no_effect(is_given(self, "decay") and self.kind != "wsd", "decay", f"without {opt('kind', 'wsd')}")
        no_effect(is_given(self, "final") and self.kind == "constant", "final", f"with {opt('kind', 'constant')}")


@dataclass(frozen=True, kw_only=True)
class LossConfig(Checked):
    """What is minimised."""

    kind: str = option(
        "usual",
        help="usual (cross entropy; of a regression squared error), focal, gce (generalised cross entropy), or huber (regression).",
        check=one_of("usual", "focal", "gce", "huber"),
    )
    gamma: float = option(2.0, help="focal: weight (1 - p)^gamma (Lin et al. 2017).", check=number("[0, inf)"))
    q: float = option(0.7, help="gce: loss (1 - p^q) / q (Zhang & Sabuncu 2018).", check=number("(0, 1]"))
    delta: float = option(1.0, help="huber: beyond this the loss is linear (Huber 1964).", check=number("(0, inf)"))
    trim: float = option(
        0.0, help="Share of a step's examples, those of the highest loss, that are left out.", check=number("[0, 1)")
    )
    trim_after: float = option(1.0, help="Epochs before trimming begins.", check=number("[0, inf)"))
    label_smoothing: float = option(0.0, help="Share of probability spread over all labels.", check=number("[0, 1)"))
    chunk: int | None = option(
        None, help="Labels scored at a time: less memory for large vocabularies; default: by size.", check=whole(0)
    )
    mask_share: float | None = option(
        None,
        help="masked-lm, denoising: share of tokens that are hidden; default: 0.15, of BART's infilling 0.3.",
        check=number("(0, 1)"),
    )
    whole_words: bool = option(False, help="masked-lm: hide whole words.", check=flag())
    mean_span: float = option(3.0, help="denoising: mean length of what is hidden.", check=number("[1, inf)"))
    teacher: str | None = option(None, help="Distil from this checkpoint (Hinton et al. 2015).", check=text())
    temperature: float = option(2.0, help="Of the teacher's and the student's distributions.", check=number("(0, inf)"))
    teacher_weight: float = option(0.5, help="Share of the teacher in the loss.", check=number("(0, 1]"))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("temperature", "teacher_weight"):
            no_effect(self.teacher is None and is_given(self, name), name, f"without {opt('teacher')}")


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(Checked):
    """How numbers are scaled, by what the rows of train alone have (as scikit-learn's scalers); saved with the model.

    Losses are those of scaled targets; answers, and metrics such as the mean absolute error, are in the data's units.
    """

    inputs: str | None = option(
        None, help="Audio, images: center, standardize or minmax; default: as the checkpoint.", check=one_of(*SCALINGS)
    )
    targets: str | None = option(
        None,
        help="Numbers of a regression: center, standardize or minmax; answers are scaled back.",
        check=one_of(*SCALINGS),
    )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Checked):
    """What is changed of an example each time it is learnt from; decided by seed, epoch and example alone."""

    embedding_noise: float | None = option(
        None, help="NEFTune's alpha: uniform noise on embeddings (Jain et al. 2023).", check=number("(0, inf)")
    )
    time_mask: float | None = option(
        None,
        help="SpecAugment (Park et al. 2019): share of a clip's frames that is hidden, where spans do not overlap; "
        "default: as the checkpoint states.",
        check=_or_none(number("[0, 1)")),
    )
    time_mask_length: int | None = option(
        None, help="Frames of a hidden span; default: as the checkpoint, else 10.", check=_or_none(whole(1))
    )
    feature_mask: float | None = option(
        None,
        help="SpecAugment: the same of features; default: as the checkpoint states.",
        check=_or_none(number("[0, 1)")),
    )
    feature_mask_length: int | None = option(
        None, help="Features of a hidden band; default: as the checkpoint, else 10.", check=_or_none(whole(1))
    )
    shift: float = option(
        0.0, help="Images: largest shift, as a share of the side; what comes in is black.", check=number("[0, 1)")
    )
    rotate: float = option(0.0, help="Images: largest rotation, in degrees.", check=number("[0, 180]"))
    zoom: float = option(
        0.0, help="Images: largest change of size: 0.1 is 1 / 1.1 to 1.1 times.", check=number("[0, 1)")
    )
    flip: bool = option(False, help="Images: mirror every other one, left to right.", check=flag())

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("time_mask_length", "feature_mask_length"):
            share = name.removesuffix("_length")
            no_effect(getattr(self, share) == 0 and is_given(self, name), name, f"with {opt(share, 0)}")
