"""A step whose loss or gradient is not finite changes nothing, and ends the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plainformer.errors import TrainingError
from plainformer.train.plan import Step

STOPPED = "stopped.json"


class Finite:
    """Watches losses and gradients.

    Reading a number of a GPU's waits for it, so there it is done where `check` is called anyway: from the first bad step on,
    the fused optimizer itself skips every step, as it does for a `GradScaler`.

    Args:
        optimizer: fused.
        at_once: whether each step is checked before the optimizer's: costs nothing on a CPU.
        writes: whether this process writes down what happened.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, writes: bool = True) -> None:
        self.at_once, self.writes = device.type == "cpu", writes
        self.bad = torch.zeros((), device=device)
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        if not self.at_once:
            optimizer.found_inf = self.bad  # type: ignore[attr-defined]

    def watch(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Take note of a step, before the optimizer's. Waits for nothing."""
        bad = ~(loss.isfinite() & norm.isfinite())
        self.first_bad.copy_(torch.where(bad & (self.first_bad < 0), step, self.first_bad))
        self.bad.copy_(torch.maximum(self.bad, bad.float()))

    def check(self, folder: Path, step_of: Callable[[int], Step]) -> None:
        """Raise TrainingError if there was a bad step; its examples are written to the run's `stopped.json`."""
        if not self.bad.item():
            return
        step = step_of(int(self.first_bad.item()))
        rows = [row for micro in step.micro for row in micro]
        examples = sorted({piece.example for row in rows for piece in row})
        about: dict[str, Any] = {
            "cause": "the loss or its gradient is not finite",
            "step": step.step + 1,
            "epoch": step.epoch + 1,
            "examples": examples,
        }
        if self.writes:
            (folder / STOPPED).write_text(json.dumps(about) + "\n", encoding="utf-8")
        some = ", ".join(map(str, examples[:8])) + (" ..." if len(examples) > 8 else "")
        raise TrainingError(
            f"step {step.step + 1}: the loss or its gradient is not finite; the weights are those of the step before. "
            f"Its examples: {some} ({STOPPED} has them all)",
            "look at these examples; or train with a smaller learning rate or longer warm-up, in a new folder",
        )
