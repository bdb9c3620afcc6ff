"""What is asked of a model: one inference, or one step of training. Each field is an option of `plan`. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from plainformer.config.options import OptionSet, flag, number, one_of, option, text, whole
from plainformer.config.values import no_effect
from plainformer.errors import UsageError, opt

INFERENCE, TRAINING = "inference", "training"
WEIGHT_DTYPES = ("fp32", "bf16", "fp16", "int8")
QUANTIZED = ("int8", "int4", "keep")
PRECISIONS = ("fp32", "bf16", "pure-bf16")
OPTIMIZERS = ("adamw", "sgd", "sgd-momentum", "adafactor")
_LENGTHS = "Lengths"
_TRAINING = "Training"
_INFERENCE = "Inference"


def _checkpointing(name: str, value: Any) -> None:
    if value in ("none", "all"):
        return
    if not str(value).isdecimal() or int(value) < 1:
        raise UsageError(f"{opt(name, value)} is unknown", "give none, all, or n for every n-th layer")


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise UsageError(
            f"{opt('padded', text)} is neither yes nor no", f"give {opt('padded', 'yes')} or {opt('padded', 'no')}"
        )
    return text == "yes"


def _size(name: str, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", value):
        raise UsageError(
            f"{opt(name, value)} is not a size of an image", f"give {opt(name, '224')} or {opt(name, '224x320')}"
        )


@dataclass(frozen=True, kw_only=True)
class Workload(OptionSet):
    """What is asked of a model.

    Of inference: `batch` prompts of `prompt` tokens, each answered by `new` tokens in `copies` beams or samples (an
    encoder-decoder reads `prompt` in its encoder and writes `new` in its decoder; an encoder has no `new`).
    Of training: `accumulate` micro-batches a step on each data-parallel rank, of `batch` rows of `length` tokens
    (`target_length` of the decoder, where there is an encoder). Images and sound have their own sizes.
    """

    purpose: str = option(
        INFERENCE, flag="for_", help="What the memory is for: inference or training.", check=one_of(INFERENCE, TRAINING)
    )
    batch: int = option(1, help="Rows at a time: prompts, or rows of one micro-batch.", check=whole(1), group=_LENGTHS)
    prompt: int = option(512, help="Inference: tokens of a prompt.", check=whole(1), group=_LENGTHS)
    new: int = option(512, help="Inference: tokens that may follow.", check=whole(0), group=_LENGTHS)
    copies: int = option(1, help="Inference: beams or samples of each prompt.", check=whole(1), group=_LENGTHS)
    length: int = option(512, help="Training: tokens of a row.", check=whole(1), group=_LENGTHS)
    target_length: int = option(
        128, help="Training an encoder-decoder: tokens of a target.", check=whole(1), group=_LENGTHS
    )
    padded: bool | None = option(
        None,
        help="Whether rows differ in length, and need a mask: yes or no; default: yes for more than one.",
        check=flag(),
        typed=str,
        read=_yes,
        group=_LENGTHS,
    )
    image_size: str | None = option(
        None, help="Pixels of an image, 224 or HxW; default: the model's.", check=_size, group=_LENGTHS
    )
    seconds: float = option(
        30.0, help="Seconds of sound; 30 for a spectrogram, which is always as long.", check=number("(0, 86400]"), group=_LENGTHS
    )  # fmt: skip
    dtype: str | None = option(
        None,
        help="Inference: dtype of the weights, fp32, bf16 or fp16; default: fp32. int8 is quantize int8.",
        check=one_of(*WEIGHT_DTYPES),
        group=_INFERENCE,
    )
    quantize: str | None = option(
        None,
        help="As `load` has it: int8 or int4 rounds the weights of all linears; keep: a GGUF's blocks stay as they are.",
        check=one_of(*QUANTIZED),
        group=_INFERENCE,
    )
    cache: str = option(
        "full", help="Key-value cache: full, as the weights compute, or int8.", check=one_of("full", "int8"), group=_INFERENCE
    )  # fmt: skip
    optimizer: str = option(
        "adamw", help="adamw, which `train` has; sgd, sgd-momentum, adafactor.", check=one_of(*OPTIMIZERS), group=_TRAINING
    )  # fmt: skip
    precision: str = option(
        "fp32",
        help="fp32; bf16, computed in it from fp32 weights, as `train` does; pure-bf16, weights and all states in it.",
        check=one_of(*PRECISIONS),
        group=_TRAINING,
    )
    trainable: str = option(
        "all", help="What is trained: all, head or lora.", check=one_of("all", "head", "lora"), group=_TRAINING
    )
    lora_rank: int = option(8, help="With lora: its rank.", check=whole(1), group=_TRAINING)
    lora_targets: str | None = option(
        None, help="With lora: linears by the checkpoint's names, with commas; default: attention's.", check=text(), group=_TRAINING
    )  # fmt: skip
    checkpointing: str = option(
        "none",
        help="Activation checkpointing: none, all, or every n-th layer.",
        check=_checkpointing,
        group=_TRAINING,
    )
    dropout: float | None = option(
        None, help="One dropout for all places; default: the model's own.", check=number("[0, 1)"), group=_TRAINING
    )
    average: bool = option(False, help="Keep an average of the weights (ema).", check=flag(), group=_TRAINING)
    accumulate: int = option(
        1, help="Micro-batches of a step on each data-parallel rank.", check=whole(1), group=_TRAINING
    )
    loss_chunk: int | None = option(
        None, help="Labels scored at a time; 0: all; default: as `train`, by size.", check=whole(0), group=_TRAINING
    )
    ffn_chunk: int = option(0, help="Positions that a feed-forward network runs at a time; 0: all.", check=whole(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in sorted(self.given & set(_OF_INFERENCE if self.training else _OF_TRAINING)):
            raise UsageError(
                f"{opt(name, getattr(self, name))} has no effect on {self.purpose}",
                f"leave it out, or give {opt('purpose', INFERENCE if self.training else TRAINING)}",
            )
        for name in ("lora_rank", "lora_targets"):
            no_effect(self.trainable != "lora" and name in self.given, name, f"without {opt('trainable', 'lora')}")
        if self.quantize is not None and self.dtype not in (None, "fp32"):
            what = f"{opt('quantize', self.quantize)} computes in fp32, and {opt('dtype', self.dtype)} says otherwise"
            raise UsageError(what, f"leave {opt('dtype')} out")

    @property
    def training(self) -> bool:
        """Return whether it is a step of training."""
        return self.purpose == TRAINING

    @property
    def quantized(self) -> str | None:
        """Return how the weights of linears are rounded, or kept; None: they are numbers of the dtype."""
        return "int8" if self.dtype == "int8" else self.quantize

    @property
    def number(self) -> str:
        """Return the dtype that an inference computes in."""
        return self.dtype if self.dtype is not None and self.quantized is None else "fp32"

    @property
    def rows(self) -> int:
        """Return the rows of the decoder: beams and samples counted."""
        return self.batch * self.copies

    @property
    def has_padding(self) -> bool:
        """Return whether the rows of a batch are taken to differ in length."""
        return self.batch > 1 if self.padded is None else self.padded

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Return height and width of an image, None for the model's own."""
        if self.image_size is None:
            return None
        height, _, width = self.image_size.partition("x")
        return int(height), int(width or height)

    @property
    def recomputed_every(self) -> int:
        """Return n where every n-th layer is recomputed in the backward pass: 0 for none, 1 for all."""
        words = {"none": 0, "all": 1}
        return words[self.checkpointing] if self.checkpointing in words else int(self.checkpointing)


_OF_INFERENCE = ("prompt", "new", "copies", "dtype", "quantize", "cache")
_OF_TRAINING = (
    *("length", "target_length", "optimizer", "precision", "trainable", "lora_rank", "lora_targets"),
    *("checkpointing", "dropout", "average", "accumulate", "loss_chunk"),
)
