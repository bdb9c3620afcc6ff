"""A run of training as its YAML file says it: which model, and what a step asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.config.layout import Layout
from plainformer.errors import UsageError
from plainformer.plan.asked import LayoutOptions
from plainformer.plan.workload import TRAINING
from plainformer.planning.described import Described

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig

# What `train` puts on a model, by objective (each objective's `head`), and which of them are for labels.
HEADS = {
    "causal-lm": "causal_lm",
    "masked-lm": "masked_lm",
    "denoising": "seq2seq_lm",
    "seq2seq": "seq2seq_lm",
    "instruction": "causal_lm",
    "text-classification": "sequence",
    "token-classification": "token",
    "question-answering": "span",
    "multiple-choice": "choice",
    "ctc": "ctc",
    "speech-to-text": "seq2seq_lm",
    "image-classification": "image",
    "audio-classification": "audio",
}
LABELLED = ("sequence", "token", "image", "audio")


def of_run(path: Path) -> Described:
    """Return the model of a run's YAML, and what the run asks of it."""
    from plainformer.config.building import read_config

    return describe_run(read_config(path))


def describe_run(run: TrainConfig) -> Described:
    """Return the same of a run that has been read."""
    from plainformer.checkpoint.opened import open_checkpoint
    from plainformer.starting import config_of_fragment, config_with_head

    head, labels = HEADS[run.objective], run.data.labels
    notes: tuple[str, ...] = ()
    if labels is None and head in LABELLED and run.model.config is not None:
        labels, notes = ("0", "1"), ("labels are in the data, which was not read: two are assumed",)
    if run.model.ref is None:
        config = config_of_fragment(run.model.config or {}, head, labels=labels, problem=run.model.problem)
    else:
        with open_checkpoint(run.model.ref, revision=run.model.revision, part="config") as checkpoint:
            try:
                config, _ = config_with_head(checkpoint, head, labels, run.model.problem)
            except UsageError:
                if head not in LABELLED or labels is not None:
                    raise
                notes = ("labels are in the data, which was not read: two are assumed",)
                config, _ = config_with_head(checkpoint, head, ("0", "1"), run.model.problem)
    name = Path(run.model.ref or run.folder).name
    return Described(name, config, run=run, notes=notes)


def workload_of(run: TrainConfig, dp: int = 1) -> dict[str, Any]:
    """Return what a run asks of its model, as options of `Workload`; lengths that its data decides are the defaults.

    `dp`: data-parallel ranks, among which the micro-batches of a step are dealt out.
    """
    micro = run.batches.micro or run.batches.size
    model = run.model
    found: dict[str, Any] = {
        "purpose": TRAINING,
        "batch": micro,
        "accumulate": -(-run.batches.size // (micro * dp)),
        "precision": run.precision,
        "trainable": "lora" if model.lora is not None else model.train,
        "checkpointing": str(model.checkpointing),
        "average": run.optimizer.ema is not None,
    }
    length = run.batches.row_length or run.data.max_length
    found |= {} if length is None else {"length": length}
    found |= {} if run.data.max_target_length is None else {"target_length": run.data.max_target_length}
    found |= {} if model.dropout is None else {"dropout": model.dropout}
    found |= {} if run.loss.chunk is None else {"loss_chunk": run.loss.chunk}
    if model.lora is not None:
        found["lora_rank"] = model.lora.rank
        found |= {} if model.lora.targets is None else {"lora_targets": ",".join(model.lora.targets)}
    return found


def divided(asked: Mapping[str, Any], run: TrainConfig | None) -> Layout:
    """Return the layout that is asked for; what is not said of it is as the run has it."""
    from plainformer.config.parallel import processes

    if run is None:
        return LayoutOptions(**asked).layout()
    if not asked:
        return run.parallel.planned(processes())
    own = {name: getattr(run.parallel, name) for name in ("tp", "pp", "zero", "schedule")}
    usual = LayoutOptions()
    return LayoutOptions(**{n: v for n, v in own.items() if v != getattr(usual, n)} | dict(asked)).layout()
