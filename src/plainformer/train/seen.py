"""How often a run has seen each example: computed from its plan, not counted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.errors import CheckpointError, plural
from plainformer.train.plan import load_plan
from plainformer.train.record import METRICS, read_lines


@dataclass(frozen=True)
class Seen:
    """How often each example was seen.

    Attributes:
        step, total_steps: steps done, and those of the plan. epochs: passes over the data.
        times: how often each example was seen in whole, (N,).
        partly: how many examples, longer than a packed row, were seen in part once more.
        tokens, tokens_per_epoch: learnt from, and those of all examples.
    """

    step: int
    total_steps: int
    epochs: float
    times: npt.NDArray[np.int64]
    partly: int
    tokens: int
    tokens_per_epoch: int

    @property
    def histogram(self) -> dict[int, int]:
        """Return times → how many examples were seen that often."""
        values, counts = np.unique(self.times, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, without the times of each example."""
        names = ("step", "total_steps", "epochs", "partly", "tokens", "tokens_per_epoch")
        return {"examples": len(self.times), "seen": self.histogram, **{name: getattr(self, name) for name in names}}

    def __str__(self) -> str:
        lines = [
            f"After step {self.step:,} of {self.total_steps:,} ({self.epochs:.2f} epochs, {plural(self.tokens, 'token')})"
            f" of {plural(len(self.times), 'example')}:"
        ]
        for times, count in self.histogram.items():
            said = {0: "never seen", 1: "seen once", 2: "seen twice"}.get(times, f"seen {times:,} times")
            lines.append(f"  {said}: {count:,} ({count / len(self.times):.1%})")
        if self.partly:
            lines.append(f"  of them seen in part once more: {self.partly:,} (longer than a packed row)")
        return "\n".join(lines)


def seen(folder: str | Path, step: int | None = None) -> Seen:
    """Return how often a run has seen each example.

    Args:
        folder: of the run.
        step: after this many steps; default: at its last checkpoint, before the first one at the last line of metrics.jsonl.
    Raises:
        UsageError: it is not the folder of a run. CheckpointError: its files are damaged.
    """
    path = Path(folder)
    plan = load_plan(path)
    done = _steps_done(path) if step is None else step
    times, tokens = plan.seen(done), plan.tokens_seen(done)
    return Seen(
        step=done,
        total_steps=plan.total_steps,
        epochs=done / plan.steps_per_epoch,
        times=times,
        partly=int((tokens > times * plan.lengths).sum()),
        tokens=int(tokens.sum()),
        tokens_per_epoch=plan.tokens_per_epoch,
    )


def _steps_done(folder: Path) -> int:
    last = folder / "last.json"
    if last.is_file():
        try:
            return int(json.loads(last.read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{last} is damaged: {error}", "train on: the next checkpoint writes it anew"
            ) from None
    lines = read_lines(folder / METRICS)
    return int(lines[-1]["step"]) if lines else 0
