"""Options of a run that have no effect together, or cannot work: refused, rather than ignored in silence."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from plainformer.config.values import no_effect
from plainformer.errors import UsageError, opt

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig

WORDS = ("causal-lm", "masked-lm", "denoising", "seq2seq", "instruction", "speech-to-text")  # scores for each token
PACKING = ("causal-lm", "masked-lm", "instruction")  # several documents may share a row
LABELLED = (
    "text-classification",
    "token-classification",
    "image-classification",
    "audio-classification",
)
# Option of `loss` → its default, and the objectives that it is for.
_LOSS = {
    "chunk": (None, WORDS),
    "mask_share": (None, ("masked-lm", "denoising")),
    "whole_words": (False, ("masked-lm",)),
    "mean_span": (3.0, ("denoising",)),
}


def check_effects(config: TrainConfig) -> None:
    """Refuse options that this run would not look at. An option that is given as its default passes: a run folder's
    config.yaml writes out all of them.
    """
    _check_machine(config)
    objective = f"with {opt('objective', config.objective)}"
    for name, (usual, objectives) in _LOSS.items():
        given = getattr(config.loss, name) != usual
        no_effect(given and config.objective not in objectives, f"loss.{name}", objective)
    no_effect(config.objective == "ctc" and config.loss.label_smoothing > 0, "loss.label_smoothing", objective)
    packs = config.objective in PACKING
    no_effect(not packs and not config.batches.packed, "batches.packed", objective)
    no_effect(not packs and config.batches.row_length is not None, "batches.row_length", objective)
    packed = packs and config.batches.packed
    no_effect(packed and not config.batches.by_length, "batches.by_length", f"with {opt('batches.packed', True)}")
    no_effect(config.objective not in LABELLED and config.data.labels is not None, "data.labels", objective)
    head_alone = config.model.train == "head"
    no_effect(
        head_alone and config.optimizer.layer_decay is not None,
        "optimizer.layer_decay",
        f"with {opt('model.train', 'head')}",
    )
    if config.data.validation is None and config.data.split is None:
        for name in ("every", "metric", "patience"):
            given = getattr(config.evaluate, name) is not None
            no_effect(given, f"evaluate.{name}", f"without {opt('data.validation')} or {opt('data.split')}")


def _check_machine(config: TrainConfig) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise UsageError(f"{opt('device', config.device)} is unknown", "give cpu, cuda or cuda:N")
    no_effect(config.device != "cpu" and config.threads is not None, "threads", f"with {opt('device', config.device)}")
    if config.precision in ("fp16", "float16", "half"):
        what = f"{opt('precision', config.precision)} needs its loss scaled, or small gradients become 0"
        raise UsageError(what, f"use {opt('precision', 'bf16')}: it has the range of fp32")
    if config.precision not in ("fp32", "bf16"):
        raise UsageError(f"{opt('precision', config.precision)} is unknown", "give fp32 or bf16")
    if config.precision == "bf16" and config.device == "cpu":
        what = f"{opt('precision', 'bf16')} is for a GPU: few processors compute in it, the others many times slower"
        raise UsageError(what, f"use {opt('precision', 'fp32')}, or {opt('device', 'cuda')}")
