"""What is asked of a training run: nested options, written as YAML, checked before anything is loaded. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plainformer.config.effects import PRETRAINING as PRETRAINING
from plainformer.config.effects import check_effects, is_given
from plainformer.config.learning import AugmentConfig as AugmentConfig
from plainformer.config.learning import LossConfig as LossConfig
from plainformer.config.learning import OptimizerConfig as OptimizerConfig
from plainformer.config.learning import ScaleConfig as ScaleConfig
from plainformer.config.learning import ScheduleConfig as ScheduleConfig
from plainformer.config.options import MISSING, Checked, Spec, flag, number, one_of, option, text, whole
from plainformer.config.parallel import ParallelConfig as ParallelConfig
from plainformer.config.values import no_effect
from plainformer.errors import UsageError, opt

# Name in `objective:` → module and class below train/objectives.
OBJECTIVES = {
    "causal-lm": "causal:CausalLanguageModel",
    "masked-lm": "masked:MaskedLanguageModel",
    "denoising": "denoise:Denoising",
    "seq2seq": "seq2seq:SequenceToSequence",
    "instruction": "instruction:InstructionTuning",
    "text-classification": "classify:TextClassification",
    "token-classification": "token:TokenClassification",
    "question-answering": "span:QuestionAnswering",
    "multiple-choice": "choice:MultipleChoice",
    "ctc": "ctc:CtcSpeechRecognition",
    "speech-to-text": "speech:SpeechToText",
    "image-classification": "media:ImageClassification",
    "audio-classification": "media:AudioClassification",
}
FORMATS = (
    *("text", "paragraphs", "lines", "jsonl", "json", "csv", "tsv", "conll", "squad"),
    *("audio", "images", "npz", "parquet", "arrow", "hub"),
)


def _section(kind: type) -> Mapping[str, Any]:
    """Return what says of a field that it holds a section: the first line of its docstring."""
    return {"option": Spec(help=(kind.__doc__ or "").partition("\n")[0])}


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Checked):
    """Low-rank adaptation (Hu et al. 2021): W + (alpha / rank) B A, where only A and B are trained."""

    rank: int = option(8, help="Rank of A and B.", check=whole(1))
    alpha: float = option(16.0, help="Scale: the product is multiplied by alpha / rank.", check=number("(0, inf)"))
    dropout: float = option(0.0, help="Dropout before A.", check=number("[0, 1)"))
    targets: Sequence[str] | None = option(
        None, help="Names of the checkpoint's linears (q_proj, query, c_attn ...); default: attention's."
    )
    merge: bool = option(False, help="Save the merged model, not the adapter alone.", check=flag())


@dataclass(frozen=True, kw_only=True)
class StartConfig(Checked):
    """What is trained."""

    ref: str | None = option(None, help="Checkpoint to start from: a folder, bundled name or Hub id.", check=text())
    config: Mapping[str, Any] | None = option(
        None, help="A config.json fragment (model_type, hidden_size ...): the model is made from scratch."
    )
    tokenizer: str | None = option(None, help="Tokenizer of a model from scratch: folder or Hub id.", check=text())
    revision: str | None = option(None, help="Branch, tag or commit of ref on the Hub.", check=text())
    problem: str | None = option(
        None,
        help="Classification: single_label, multi_label or regression; default: the checkpoint's, else single_label.",
        check=one_of("single_label", "multi_label", "regression"),
    )
    train: str = option(
        "all", help="What is trained: all, or head (the backbone is frozen).", check=one_of("all", "head")
    )
    lora: LoraConfig | None = option(None, help="Train low-rank adapters, not the weights.")
    dropout: float | None = option(
        None, help="One dropout for all places; default: the checkpoint's own.", check=number("[0, 1)")
    )
    checkpointing: str | int = option(
        "none", help="Activation checkpointing: none, all, or every n-th layer: less memory, more time."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.ref is None) == (self.config is None):
            what = "neither {} nor {} is given" if self.ref is None else "both {} and {} are given"
            fix = f"give {opt('ref')} to go on from a checkpoint, or {opt('config')} to begin from scratch"
            raise UsageError(what.format(opt("ref"), opt("config")), fix)
        no_effect(
            self.ref is not None and self.tokenizer is not None, "tokenizer", f"with {opt('ref')}: it has its own"
        )
        no_effect(self.ref is None and self.revision is not None, "revision", f"without {opt('ref')}")
        no_effect(
            self.lora is not None and self.train == "head", "train", f"with {opt('lora')}: the adapters are trained"
        )
        checkpointing = self.checkpointing
        if checkpointing not in ("none", "all") and (isinstance(checkpointing, str) or checkpointing < 1):
            fix = "give none, all, or n for every n-th layer"
            raise UsageError(f"{opt('checkpointing', checkpointing)} is unknown", fix)


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Checked):
    """One set of rows."""

    path: str = option(MISSING, help="File, folder, pattern such as src/**/*.py, or data set on the Hub.", check=text())
    format: str | None = option(
        None, help=f"One of {', '.join(FORMATS)}; default: by the name.", check=one_of(*FORMATS)
    )
    name: str | None = option(None, help="Configuration of a Hub data set.", check=text())
    split: str | None = option(
        None, help="Split of a Hub data set; of an npz file: its arrays x_train, y_train ...", check=text()
    )
    header: bool | None = option(
        None, help="csv, tsv: whether the first line names columns; default: unless columns has numbers.", check=flag()
    )
    limit: int | None = option(None, help="Use only this many rows, the first.", check=whole(1))


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Checked):
    """How one set of rows is divided, by the hash of what they hold: the order of the file changes nothing."""

    validation: float = option(
        0.1, help="Share for validation; with folds, of what the fold leaves.", check=number("(0, 1)")
    )
    test: float = option(0.0, help="Share for the test set, which training never looks at.", check=number("[0, 1)"))
    by: str = option("random", help="random, stratified or grouped.", check=one_of("random", "stratified", "grouped"))
    group: str | None = option(
        None,
        help="Column whose equal values stay on one side, or a part of it: description:first_paragraph.",
        check=text(),
    )
    seed: int = option(0, help="Seed of the split alone.", check=whole(0))
    folds: int | None = option(
        None, help="Divide all rows but the test set into this many folds, of which one is held out.", check=whole(2)
    )
    fold: int | None = option(
        None, help="The fold that is held out, from 1: the run never looks at its rows.", check=whole(1)
    )
    outer: int | None = option(
        None, help="Before that, divide them into this many folds, of which one is held out as well.", check=whole(2)
    )
    outer_fold: int | None = option(None, help="The outer fold that is held out, from 1.", check=whole(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation + self.test >= 1:
            both = f"{opt('validation', self.validation)} and {opt('test', self.test)}"
            raise UsageError(f"{both} leave nothing to learn from", "let them add up to less than 1")
        no_effect(self.group is not None and self.by != "grouped", "group", f"without {opt('by', 'grouped')}")
        self._check_folds("folds", "fold")
        self._check_folds("outer", "outer_fold")
        no_effect(self.outer is not None and self.folds is None, "outer", f"without {opt('folds')}")
        if self.by == "grouped" and self.group is None:
            raise UsageError(f"{opt('by', 'grouped')} needs {opt('group')}", f"name the column in {opt('group')}")

    def _check_folds(self, count: str, number: str) -> None:
        """Refuse a fold without the number of folds, and the other way round, and one that there is not."""
        of, which = getattr(self, count), getattr(self, number)
        if (of is None) != (which is None):
            given, lacks = (number, count) if of is None else (count, number)
            raise UsageError(f"{opt(given, getattr(self, given))} without {opt(lacks)}", "give both, or neither")
        if of is not None and which > of:
            raise UsageError(f"{opt(number, which)} of {opt(count, of)}", f"give 1 to {of}")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """Rows, and how they are read."""

    train: SourceConfig = option(MISSING, help="Rows to learn from.")
    validation: SourceConfig | None = option(None, help="Rows to choose by.")
    test: SourceConfig | None = option(None, help="Rows that are only looked at for leaks.")
    columns: Mapping[str, str | int] = field(
        default_factory=dict, metadata=option(help="Objective's name of a column: the data's name or number.").metadata
    )
    split: SplitConfig | None = option(None, help="Take validation (and test) rows out of the training rows.")
    duplicates: str = option(
        "refuse",
        help="Rows of train that are in validation or test too: refuse, drop_train, group or allow.",
        check=one_of("refuse", "drop_train", "group", "allow"),
    )
    labels: Sequence[str] | None = option(None, help="Labels in order; default: those found, sorted.")
    max_length: int | None = option(None, help="Longest example in tokens; default: the model's.", check=whole(1))
    max_target_length: int | None = option(
        None, help="seq2seq, speech-to-text: longest target in tokens; default: the model's.", check=whole(1)
    )
    too_long: str | None = option(
        None,
        help="What happens to longer ones: cut, drop, or window; default: window to pre-train and for questions, else cut.",
        check=one_of("cut", "drop", "window"),
    )
    stride: int = option(0, help="Tokens that neighbouring windows share.", check=whole(0))
    prefix: str | None = option(
        None, help="seq2seq: what each source begins with, as T5's 'summarize: '.", check=text()
    )
    source_language: str | None = option(None, help="seq2seq: language of the sources, its code.", check=text())
    target_language: str | None = option(
        None, help="seq2seq, speech-to-text: language of the targets, its code.", check=text()
    )
    cache: str | None = option(
        None, help="Folder of tokenised data; default: the user's cache, 10 GiB at most, 30 days unread.", check=text()
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None and not self.labels:
            raise UsageError(
                f"{opt('labels', [])} leaves nothing to tell apart", f"name them, or leave {opt('labels')} out"
            )
        split = self.split
        if split is not None and self.validation is not None:
            fix = "give rows of their own, or let them be split off, not both"
            raise UsageError(f"both {opt('split')} and {opt('validation')} are given", fix)
        if split is not None and split.test and self.test is not None:
            raise UsageError(f"both {opt('split.test')} and {opt('test')} are given", "give one of the two")
        if self.max_length is not None and self.stride >= self.max_length:
            fix = f"give less than {opt('max_length', self.max_length)}"
            raise UsageError(f"{opt('stride', self.stride)} would never reach the end of a text", fix)
        alone = split is None and self.validation is None and self.test is None
        no_effect(
            alone and is_given(self, "duplicates"),
            "duplicates",
            f"without {opt('validation')}, {opt('test')} or {opt('split')}",
        )
        no_effect(self.duplicates == "group" and split is None, "duplicates", f"as 'group' without {opt('split')}")


@dataclass(frozen=True, kw_only=True)
class BatchConfig(Checked):
    """What one step learns from."""

    size: int = option(32, help="Rows of a step.", check=whole(1))
    micro: int | None = option(
        None, help="Rows that the model runs at a time; default: size. Fewer take less memory.", check=whole(1)
    )
    packed: bool = option(True, help="Put several documents into one row, where the objective can.", check=flag())
    row_length: int | None = option(None, help="Tokens of a packed row; default: max_length.", check=whole(2))
    by_length: bool = option(True, help="Batches of like length: less padding.", check=flag())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.micro is not None and self.micro > self.size:
            fix = f"give {opt('size')} or less"
            raise UsageError(f"{opt('micro', self.micro)} is more than {opt('size', self.size)}", fix)
        no_effect(self.row_length is not None and not self.packed, "row_length", f"without {opt('packed', True)}")


@dataclass(frozen=True, kw_only=True)
class LengthConfig(Checked):
    """How long training goes on: one of the three."""

    epochs: int | None = option(
        None, help="Passes over the data; default: 1 to pre-train, 3 to fine-tune.", check=whole(1)
    )
    steps: int | None = option(None, help="Steps.", check=whole(1))
    tokens: int | None = option(None, help="Tokens, rounded up to whole steps.", check=whole(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("epochs", "steps", "tokens") if getattr(self, name) is not None]
        if len(given) > 1:
            both = " and ".join(opt(name, getattr(self, name)) for name in given)
            raise UsageError(f"{both} are given", "give one of the three; null takes a value back")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Checked):
    """When validation rows are looked at, and what follows."""

    every: int | None = option(
        None, help="Steps between evaluations; default: each epoch, or 10 times.", check=whole(1)
    )
    first: bool = option(True, help="Evaluate before the first step, too.", check=flag())
    metric: str | None = option(None, help="Chooses the best checkpoint; default: the objective's.", check=text())
    patience: int | None = option(
        None,
        help="Stop after this many evaluations without a better one; 0: never; default: 2 to fine-tune for epochs.",
        check=whole(0),
    )
    batch_size: int = option(32, help="Rows at a time; the result does not depend on it.", check=whole(1))
    probe: bool = option(
        True, help="Also score as many fixed rows of train, by which overfitting is told.", check=flag()
    )
    margin: float = option(
        0.05,
        help="Rise of the validation loss, as a share, below which nothing is called overfitting.",
        check=number("(0, 1)"),
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Checked):
    """What is kept of a run."""

    every: int | None = option(None, help="Steps between checkpoints; default: at each evaluation.", check=whole(1))
    keep: int = option(2, help="Checkpoints kept besides the best and the last.", check=whole(1))


@dataclass(frozen=True, kw_only=True)
class FoldsConfig(Checked):
    """Cross validation: a run for each fold of `data.split`, which is held out of it.

    The choice of `search` is the candidate of which the mean over folds of the run's metric, on each fold's validation rows,
    is within one standard error of the best mean, and which is simplest: it has the smallest numbers, or the values that are
    listed first; of several options, the first counts most (Breiman et al. 1984).
    """

    count: int = option(5, help="Folds.", check=whole(2))
    search: Mapping[str, Any] | None = option(
        None,
        help="Option → values to choose from, by the one-standard-error rule: {optimizer.learning_rate: [1e-5, 1e-4]}.",
    )
    outer: int | None = option(
        None, help="Folds around the search, for an estimate that the choice has not touched.", check=whole(2)
    )
    vote: str = option(
        "mean",
        help="How the folds' models answer together: mean of probabilities, or majority.",
        check=one_of("mean", "majority"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search is not None and not self.search:
            raise UsageError(f"{opt('search', {})} names no option", "leave it out, or give options and their values")
        no_effect(self.outer is not None and not self.search, "outer", f"without {opt('search')}")
        for name, values in self.tried().items():
            own, several = f"search.{name}", isinstance(values, list | tuple) and len(values) > 1
            if not several or any(one in values[:place] for place, one in enumerate(values)):
                what = f"{opt(own, values)} is not a list of two values or more, each once"
                raise UsageError(what, f"give {opt('search')} lists: {{optimizer.learning_rate: [1e-5, 1e-4]}}")

    def tried(self) -> dict[str, Any]:
        """Return what a search tries: option, by its dotted name, → values. {} without a search."""

        def flat(found: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
            for key, value in found.items():
                name = before + key.replace("-", "_")
                yield from flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]

        return dict(flat(self.search or {}))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """One run. A run folder's `config.yaml` has every value written out."""

    objective: str = option(MISSING, help="What is learnt.", check=one_of(*OBJECTIVES))
    folder: str = option(MISSING, help="Folder of the run.", check=text())
    model: StartConfig = option(MISSING, help="What is trained.")
    data: DataConfig = option(MISSING, help="What it learns from.")
    batches: BatchConfig = field(default_factory=BatchConfig, metadata=_section(BatchConfig))
    length: LengthConfig = field(default_factory=LengthConfig, metadata=_section(LengthConfig))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig, metadata=_section(OptimizerConfig))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig, metadata=_section(ScheduleConfig))
    loss: LossConfig = field(default_factory=LossConfig, metadata=_section(LossConfig))
    scale: ScaleConfig = field(default_factory=ScaleConfig, metadata=_section(ScaleConfig))
    augment: AugmentConfig = field(default_factory=AugmentConfig, metadata=_section(AugmentConfig))
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata=_section(EvaluateConfig))
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=_section(CheckpointConfig))
    parallel: ParallelConfig = field(default_factory=ParallelConfig, metadata=_section(ParallelConfig))
    folds: FoldsConfig | None = option(None, help="Cross validation: a run for each fold.")
    seed: int = option(0, help="Of order, masks, dropout and new weights.", check=whole(0))
    device: str = option("cpu", help="cpu, cuda or cuda:N.", check=text())
    precision: str = option("fp32", help="fp32, or bf16 (autocast; weights stay fp32).", check=text())
    threads: int | None = option(None, help="Threads on a CPU; default: torch's.", check=whole(1, 1024))
    compile: bool = option(False, help="torch.compile the layers.", check=flag())
    log_every: int = option(10, help="Steps between lines of metrics.jsonl.", check=whole(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.folder:
            raise UsageError(
                f"{opt('folder', '')} names no folder", f"give {opt('folder', 'runs/first')}, or another name"
            )
        check_effects(self)
