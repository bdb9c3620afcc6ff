"""Trimming: a step leaves out those of its examples that have the highest loss, because their labels may be wrong.

An example's loss is the mean over its labels, so that long ones are not left out for being long. All rows of the step
are ranked together, however they are divided into micro-batches; of equal ones the first is left out. A run's
trimmed.jsonl says which examples each step left out: their numbers, as `examples` of all other files count them.

Shapes: B rows of a micro-batch, R rows of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plainformer.config.training import LossConfig
from plainformer.errors import UsageError, opt, plural
from plainformer.train.checkpoint import Saved
from plainformer.train.objectives.base import Loss
from plainformer.train.plan import Plan, Step
from plainformer.train.record import Lines, NoLines

TRIMMED = "trimmed.jsonl"


@dataclass(frozen=True)
class Kept:
    """What a step learns from: each micro-batch's rows as weights of 1 or 0, (B,), and how many labels they have, ()."""

    rows: list[Tensor]
    labels: Tensor


class Trimming:
    """Chooses what a step leaves out, and writes it down. Nothing here waits for a GPU but `flush`.

    Args:
        config: the run's `loss`. plan: of its steps. folder: of the run.
        saved: the checkpoint from which the run goes on, whose state has what `state` returned; None for a new run.
        writes: whether this process writes it down.
    Attributes:
        left_out: labels that were left out since the last line of metrics.jsonl, in the steps that are written down.
    """

    def __init__(self, config: LossConfig, plan: Plan, folder: Path, saved: Saved | None, writes: bool = True) -> None:
        self.share, self.first = config.trim, first_step(config, plan)
        before = saved.state["trimming"] if saved is not None else {"bytes": 0, "left_out": 0}
        self.lines = Lines(folder / TRIMMED, before["bytes"]) if writes else NoLines()
        self.left_out: int = before["left_out"]
        self._steps: dict[int, tuple[tuple[int, ...], Tensor, Tensor]] = {}

    def begun(self, step: int) -> bool:
        """Return whether a step, counted from 0, leaves anything out."""
        return step >= self.first

    def choose(self, step: Step, examples: Sequence[tuple[int, ...]], losses: Sequence[Loss]) -> Kept:
        """Return what a step keeps, given the examples and losses of all its micro-batches. One that runs again counts once."""
        labels_R = torch.cat([loss.labels_per_row for loss in losses])
        means_R = torch.cat([loss.per_row for loss in losses]) / labels_R.clamp_min(1)
        worst = means_R.argsort(descending=True, stable=True)[: left_out(self.share, len(means_R))]
        kept_R = torch.ones_like(means_R).index_fill_(0, worst, 0)
        out = (labels_R * (1 - kept_R)).sum().long()
        self._steps[step.step] = tuple(number for some in examples for number in some), worst, out
        return Kept(list(kept_R.split([len(some) for some in examples])), (labels_R.sum() - out).clamp_min(1))

    def flush(self) -> None:
        """Write down what the steps since the last time left out."""
        for step, (examples, worst, out) in self._steps.items():
            self.left_out += int(out.item())
            self.lines.write({"step": step + 1, "examples": sorted(examples[place] for place in worst.tolist())})
        self._steps.clear()

    def counted(self) -> int:
        """Return how many labels were left out since the last line of metrics.jsonl, and begin anew."""
        self.flush()
        count, self.left_out = self.left_out, 0
        return count

    def state(self) -> dict[str, int]:
        """Force all to the disk; return what a checkpoint keeps."""
        self.flush()
        return {"bytes": self.lines.sync(), "left_out": self.left_out}

    def close(self) -> None:
        self.lines.close()


def left_out(share: float, rows: int) -> int:
    """Return how many of that many rows are left out: the share, rounded down."""
    return int(share * rows + 1e-9)  # 0.29 · 100 is 28.999999999999996


def first_step(config: LossConfig, plan: Plan) -> float:
    """Return the step, counted from 0, from which on something is left out."""
    return config.trim_after * plan.steps_per_epoch - 1e-9


def check_trimming(config: LossConfig, plan: Plan) -> None:
    """Refuse trimming that would never leave anything out. Raises UsageError."""
    if config.trim and plan.total_steps - 1 < first_step(config, plan):
        epochs = f"{plan.total_steps / plan.steps_per_epoch:.3g}"
        what = f"{opt('loss.trim', config.trim)} has no effect: it begins after {opt('loss.trim_after', config.trim_after)} epochs"
        raise UsageError(
            f"{what}, and the run has {epochs}", f"give a smaller {opt('loss.trim_after')}, or more epochs"
        )
    rows = min(plan.size, len(plan.lengths))
    if config.trim and not left_out(config.trim, rows):
        what = f"{opt('loss.trim', config.trim)} has no effect: of {plural(rows, 'row')} a step leaves out none"
        raise UsageError(what, f"give {1 / rows:.3g} or more, or larger steps: {opt('batches.size')}")
