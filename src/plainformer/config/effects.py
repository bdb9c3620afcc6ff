"""Options of a run that have no effect together, or cannot work: refused, rather than ignored in silence."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from plainformer.config.values import no_effect
from plainformer.errors import UsageError, opt, opt_text

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig

PRETRAINING = ("causal-lm", "masked-lm", "denoising")  # one epoch is enough; the others take several
WORDS = ("causal-lm", "masked-lm", "denoising", "seq2seq", "instruction", "speech-to-text")  # scores for each token
PACKING = ("causal-lm",)  # several documents may share a row
LABELLED = (
    "text-classification",
    "token-classification",
    "image-classification",
    "audio-classification",
)
SOUNDS = ("audio-classification", "ctc", "speech-to-text")
IMAGES = ("image-classification",)
TEXTS = (
    *("causal-lm", "masked-lm", "denoising", "seq2seq", "instruction"),
    *("text-classification", "token-classification", "question-answering", "multiple-choice"),
)
_CLASSES = (*WORDS, *LABELLED, "multiple-choice", "question-answering")  # their losses are cross entropies of labels
_NUMBERS = ("text-classification", "image-classification")
# Loss → the objectives that it is for.
_LOSSES = {"usual": (*_CLASSES, "ctc"), "focal": _CLASSES, "gce": _CLASSES, "huber": _NUMBERS}
# Option → the objectives that it is for.
_FOR = {
    "augment.embedding_noise": TEXTS,
    "model.problem": ("text-classification", "image-classification"),
    "loss.label_smoothing": (*WORDS, *LABELLED, "multiple-choice"),
    "loss.chunk": WORDS,
    "loss.mask_share": ("masked-lm", "denoising"),
    "loss.whole_words": ("masked-lm",),
    "loss.mean_span": ("denoising",),
    "scale.inputs": (*SOUNDS, *IMAGES),
    "scale.targets": ("text-classification", "image-classification"),
    **dict.fromkeys(("augment.time_mask", "augment.time_mask_length"), SOUNDS),
    **dict.fromkeys(("augment.feature_mask", "augment.feature_mask_length"), SOUNDS),
    **dict.fromkeys(("augment.shift", "augment.rotate", "augment.zoom", "augment.flip"), IMAGES),
    "data.labels": LABELLED,
    "data.max_length": TEXTS,
    "data.too_long": TEXTS,
    "data.max_target_length": ("seq2seq", "speech-to-text"),
    "data.prefix": ("seq2seq",),
    "data.source_language": ("seq2seq",),
    "data.target_language": ("seq2seq", "speech-to-text"),
    "batches.packed": PACKING,
    "batches.row_length": PACKING,
}


def check_effects(config: TrainConfig) -> None:
    """Refuse options that this run would not look at. An option that is given as its default passes: a run folder's
    config.yaml writes out all of them.
    """
    _check_machine(config)
    objective = f"with {opt('objective', config.objective)}"
    for name, objectives in _FOR.items():
        section, _, option = name.partition(".")
        given = is_given(getattr(config, section), option)
        no_effect(given and config.objective not in objectives, name, objective)
    packed = config.objective in PACKING and config.batches.packed
    no_effect(packed and not config.batches.by_length, "batches.by_length", f"with {opt('batches.packed', True)}")
    for name in ("too_long", "stride"):  # a document goes on in the next row
        given = packed and is_given(config.data, name)
        no_effect(given, f"data.{name}", f"with {opt('batches.packed', True)}: nothing is cut")
    usual = "window" if config.objective in (*PRETRAINING, "question-answering") else "cut"
    windows = (config.data.too_long or usual) == "window"
    no_effect(config.data.stride > 0 and not windows, "data.stride", f"without {opt('data.too_long', 'window')}")
    _check_loss(config)
    head_alone = config.model.train == "head"
    no_effect(
        head_alone and config.optimizer.layer_decay is not None,
        "optimizer.layer_decay",
        f"with {opt('model.train', 'head')}",
    )
    numbers = config.model.problem in (None, "regression")
    no_effect(
        config.scale.targets is not None and not numbers,
        "scale.targets",
        f"with {opt('model.problem', config.model.problem)}",
    )
    if config.model.lora is not None and config.model.ref is None:
        what = f"{opt('model.lora')} adapts a model that has learnt something, and this one begins from scratch"
        raise UsageError(what, f"give {opt('model.ref', ...)}, or leave {opt('model.lora')} out")
    _check_folds(config)
    if config.data.validation is None and config.data.split is None and config.folds is None:
        for name in ("every", "metric", "patience"):
            given = getattr(config.evaluate, name) is not None
            no_effect(given, f"evaluate.{name}", f"without {opt('data.validation')} or {opt('data.split')}")


def _check_loss(config: TrainConfig) -> None:
    loss, packed = config.loss, config.objective in PACKING and config.batches.packed
    kind, numbers = opt("loss.kind", loss.kind), config.model.problem == "regression"
    if config.objective not in _LOSSES[loss.kind]:
        why = (
            "of a clip's text, whose alignments all count"
            if config.objective == "ctc"
            else "of other things than numbers"
        )
        what = f"{kind} cannot be with {opt('objective', config.objective)}: its losses are {why}"
        raise UsageError(what, f"leave {opt('loss.kind')} out")
    if loss.kind != "usual" and config.model.problem is not None and numbers != (loss.kind == "huber"):
        fix = opt("loss.kind", "huber") if numbers else f"{opt('loss.kind', 'focal')} or {opt('loss.kind', 'gce')}"
        raise UsageError(f"{kind} cannot be with {opt('model.problem', config.model.problem)}", f"give {fix}")
    if loss.kind != "usual" and loss.label_smoothing:
        what = (
            f"{kind} is made of the label's own probability, and {opt('loss.label_smoothing')} of those of all labels"
        )
        raise UsageError(what, "give one of the two")
    if loss.trim and packed:
        what = f"{opt('loss.trim', loss.trim)} leaves out whole rows, and a packed row has parts of several documents"
        raise UsageError(what, f"give {opt('batches.packed', False)}")


# What a search cannot try: where a run is and what it is made with, not what is learnt; and which rows it learns from.
_NOT_SEARCHED = (
    *(
        "objective",
        "seed",
        "folder",
        "folds",
        "device",
        "threads",
        "compile",
        "log_every",
        "checkpoints",
        "batches.micro",
        "parallel",
    ),
    *("model.checkpointing", "data.train", "data.validation", "data.test", "data.columns", "data.split", "data.cache"),
    *("data.duplicates", "data.labels", "evaluate"),
)


def _check_folds(config: TrainConfig) -> None:
    """Refuse cross validation of rows that cannot be divided into folds, and a search for what is not learnt."""
    folds, split = config.folds, config.data.split
    if folds is None:
        return
    if config.data.validation is not None:
        what = f"{opt('folds')} takes each fold's validation rows out of train, and {opt('data.validation')} is given"
        raise UsageError(what, f"give {opt_text('data.validation', 'null')}, or name these rows {opt('data.test')}")
    if split is not None and split.folds is not None:
        what = f"{opt('folds')} makes a run for each fold, and {opt('data.split.fold', split.fold)} is one of them"
        raise UsageError(what, "give one of the two")
    if folds.vote == "majority" and (config.objective == "question-answering" or config.model.problem == "regression"):
        what = f"{opt('folds.vote', 'majority')}: answers of {config.objective} are hardly ever equal"
        raise UsageError(what, f"give {opt('folds.vote', 'mean')}")
    for name in folds.tried():
        if any(name == one or name.startswith(f"{one}.") for one in _NOT_SEARCHED):
            what = f"{opt('folds.search')} cannot choose {opt(name)}, which changes what is measured, or nothing at all"
            raise UsageError(what, "search for what a model learns by, such as optimizer.learning_rate")


def is_given(section: Any, name: str) -> bool:
    """Return whether an option of a section has another value than its default."""
    (default,) = (f.default for f in fields(section) if f.name == name)
    return bool(getattr(section, name) != default)


def _check_machine(config: TrainConfig) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise UsageError(f"{opt('device', config.device)} is unknown", "give cpu, cuda or cuda:N")
    no_effect(config.device != "cpu" and config.threads is not None, "threads", f"with {opt('device', config.device)}")
    config.parallel.on(config.device)  # refuses devices of another kind
    if config.parallel.devices is not None and config.loss.teacher is not None and config.device != "cpu":
        what = f"{opt('parallel.devices', config.parallel.devices)}: {opt('loss.teacher')} is on one device alone"
        raise UsageError(what, "start a process for each device, with torchrun")
    if config.precision in ("fp16", "float16", "half"):
        what = f"{opt('precision', config.precision)} needs its loss scaled, or small gradients become 0"
        raise UsageError(what, f"use {opt('precision', 'bf16')}: it has the range of fp32")
    if config.precision not in ("fp32", "bf16"):
        raise UsageError(f"{opt('precision', config.precision)} is unknown", "give fp32 or bf16")
    if config.precision == "bf16" and config.device == "cpu":
        what = f"{opt('precision', 'bf16')} is for a GPU: few processors compute in it, the others many times slower"
        raise UsageError(what, f"use {opt('precision', 'fp32')}, or {opt('device', 'cuda')}")
