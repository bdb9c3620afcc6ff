"""What learning gave for each example: its last loss, when it was first learnt, how often it was forgotten again.

An example is learnt where its right answer gets more than half of the probability: the mean loss of its labels is below ln 2.
It is forgotten where it was learnt when it was seen last, and no longer is: Toneva et al. 2019 count these (arXiv 1812.05159),
by whether the answer is right. Examples that are never forgotten can be left out; those that are forgotten most are often
mislabelled.

Losses are those of training, of weights and dropout of that step: they are there anyway. Nothing waits for a GPU until numbers
are written down. Rows of several examples have no loss of each.

Shapes: N examples, B batch (rows of a micro-batch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plainformer.config.learning import LossConfig
from plainformer.train.objectives.base import Batch, Loss

Means = dict[tuple[int, tuple[int, ...]], Any]  # step and examples → each example's mean loss
BYTES = 13  # of an example in a checkpoint


class History:
    """Keeps them.

    Args:
        count: of the examples, N; 0 keeps nothing. learnt_below: the loss below which one is learnt; None: that says nothing.

    Attributes:
        last: the last loss, nan before the first, (N,). first: step of which it was first learnt, from 1 on; 0 for never.
        forgotten: how often it was. known: whether it was learnt when it was seen last.
    """

    def __init__(self, count: int, learnt_below: float | None) -> None:
        self.learnt_below = learnt_below
        self.last = np.full(count, np.nan, np.float32)
        self.first, self.forgotten = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self.known = np.zeros(count, bool)
        self._waiting: dict[tuple[int, tuple[int, ...]], Loss] = {}  # by step and examples

    def take(self, step: int, batch: Batch, loss: Loss) -> None:
        """Remember what a micro-batch of a step gave, on the device where it is. A step that runs again counts once."""
        if len(self.last):
            self._waiting[step, batch.examples] = Loss(loss.values.detach(), loss.counts, loss.labels)

    def settle(self, everywhere: Callable[[Means], list[Means]] = lambda means: [means]) -> None:
        """Fetch what is on the device, and count. `everywhere`: what each process of several has, given what this one has."""
        means = {
            key: (loss.per_row.double() / loss.labels_per_row.clamp(min=1)).cpu().numpy()
            for key, loss in self._waiting.items()
        }
        found: Means = {}
        for of_rank in everywhere(means):
            found |= of_rank
        for step, examples in sorted(found, key=lambda key: key[0]):
            self._count(step, np.array(examples), found[step, examples])
        self._waiting.clear()

    def _count(self, step: int, examples_B: Any, losses_B: Any) -> None:
        self.last[examples_B] = losses_B
        if self.learnt_below is None:
            return
        learnt_B = losses_B < self.learnt_below
        self.forgotten[examples_B] += self.known[examples_B] & ~learnt_B
        self.first[examples_B[learnt_B & (self.first[examples_B] == 0)]] = step + 1
        self.known[examples_B] = learnt_B

    def tensors(self) -> dict[str, Tensor]:
        """Return what a run needs to go on; {} where nothing is kept."""
        self.settle()
        names = ("last", "first", "forgotten", "known") if len(self.last) else ()
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in names}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        for name, tensor in tensors.items():
            setattr(self, name, tensor.numpy().copy())


def learnt_below(config: LossConfig) -> float | None:
    """Return the loss of a right answer that has half of the probability; None of a teacher's, which has other answers."""
    if config.teacher is not None or config.kind == "huber":
        return None
    if config.kind == "focal":
        return float(0.5**config.gamma) * math.log(2)
    return (1 - 0.5**config.q) / config.q if config.kind == "gce" else math.log(2)
