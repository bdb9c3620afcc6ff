"""What is asked of loading, said once: Python's keywords, the command line's options and their checks derive from it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from plainformer.config.options import NotTyped, OptionSet, flag, one_of, option, text, whole
from plainformer.errors import UsageError, opt, spelling_of

if TYPE_CHECKING:
    import torch

DTYPES = ("fp32", "bf16", "fp16", "float32", "bfloat16", "float16")
PURPOSES = ("infer", "train")
BACKENDS = ("auto", "plain", "fused", "onednn", "compiled", "int8", "int4")


def _dtype(name: str, value: Any) -> None:
    named = value in DTYPES if isinstance(value, str) else hasattr(value, "is_floating_point")  # torch's own
    if not named:
        raise UsageError(
            f"{opt(name, value)} is not supported", spelling_of(str(value), DTYPES) or "give fp32, bf16 or fp16"
        )


def _device(name: str, value: Any) -> None:
    if isinstance(value, str) and not re.fullmatch(r"cpu|cuda(:\d+)?", value):
        raise UsageError(f"{opt(name, value)} is unknown", "give cpu, cuda or cuda:0")


@dataclass(frozen=True, kw_only=True)
class LoadOptions(OptionSet):
    """How a checkpoint becomes a model."""

    dtype: str | torch.dtype | None = option(
        None,
        help="fp32, bf16 or fp16; default: fp32 on a CPU, the checkpoint's own on a GPU.",
        check=_dtype,
        typed=str,
    )
    device: str | torch.device = option("cpu", help="cpu, cuda or cuda:N.", check=_device, typed=str)
    backend: str = option(
        "auto",
        help="How linear layers run on the CPU: auto, plain, fused, onednn or compiled.",
        check=one_of(*BACKENDS),
    )
    quantize: str | None = option(
        None,
        help="int8 or int4 rounds the weights of all linears to 8 or 4 bits; keep: a GGUF's blocks stay as they are (CPU).",
        check=one_of("int8", "int4", "keep"),
    )
    threads: int | None = option(
        None,
        help="Threads on a CPU, for all of the process; default: OMP_NUM_THREADS, else the cores it may use.",
        check=whole(1, 1024),
    )
    ffn_chunk_size: int = option(
        0, help="Positions that a feed-forward network runs at a time; 0 for all.", check=whole(0)
    )
    allow_unused: bool = option(
        False, help="Load even if the file has tensors that the model does not use.", check=flag()
    )
    family: str | None = option(
        None, help="Read config.json as this model_type's, where it names none or code of its own.", check=text()
    )
    purpose: str = option(
        "infer",
        help="train: weights in memory of their own, with gradients, fp32.",
        check=one_of(*PURPOSES),
        typed=NotTyped,
    )
    adapter: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]] | None = (
        option(
            None,
            help="LoRA adapters that are added to the weights: a folder or Hub id, or several.",
            typed=list[str],
        )
    )
    prepare: bool = option(True, help="Rearrange the weights for inference.", check=flag(), typed=NotTyped)
    tp: int = option(1, help="Processes of torchrun that share each layer's heads, units and words.", check=whole(1))
    pp: int = option(1, help="Processes of torchrun that have some of the layers each.", check=whole(1))
    revision: str | None = option(None, help="Branch, tag or commit of a Hub repository.", check=text())
    token: str | None = option(None, help="Hub access token; default: HF_TOKEN.", check=text())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantize is not None and (self.backend != "auto" or not self.prepare):
            raise UsageError(
                f"{opt('quantize', self.quantize)} chooses the backend itself",
                f"leave out {opt('backend', ...)} and {opt('prepare', ...)}",
            )
        if self.threads is not None and str(self.device) != "cpu":
            raise UsageError(
                f"{opt('threads', self.threads)} has no effect with {opt('device', str(self.device))}",
                f"leave out {opt('threads', ...)}: a GPU has its own",
            )
        if isinstance(self.adapter, Mapping) and not self.adapter:
            raise UsageError(f"{opt('adapter', {})} names no adapter", f"leave {opt('adapter')} out")
        if self.purpose == "train":
            self._check_training()

    def _check_training(self) -> None:
        """Refuse what would have no effect in training, or spoil it."""
        train = opt("purpose", "train")
        if str(self.dtype).removeprefix("torch.") not in ("None", "fp32", "float32"):
            raise UsageError(
                f"{opt('dtype', self.dtype)} with {train}: an update is often smaller than the gap between two such numbers",
                f"leave out {opt('dtype', ...)}: weights are trained in fp32",
            )
        usual = {"quantize": None, "backend": "auto", "prepare": True, "tp": 1, "pp": 1}
        for name in (name for name, value in usual.items() if getattr(self, name) != value):
            raise UsageError(
                f"{opt(name, getattr(self, name))} is for inference, and has no effect with {train}",
                f"leave out {opt(name, ...)}: what is trained are plain weights",
            )


class LoadArgs(TypedDict, total=False):
    """The same names and types, for editors and type checkers: `**options: Unpack[LoadArgs]`."""

    dtype: str | torch.dtype | None
    device: str | torch.device
    backend: str
    quantize: str | None
    threads: int | None
    ffn_chunk_size: int
    allow_unused: bool
    family: str | None
    purpose: str
    adapter: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]] | None
    prepare: bool
    tp: int
    pp: int
    revision: str | None
    token: str | None
