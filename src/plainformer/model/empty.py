"""Standard modules without initial weights: loading fills them, so drawing random ones first would be wasted.

It would also cost seconds: torch imports its whole symbolic machinery to draw a random number on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Module):
    """A table of vectors, (rows, size), looked up by id: (...,) → (..., size).

    Attributes:
        leave, start: where ranks share the table, what adds up their vectors, and the id of the first row that is here.
    """

    leave: Callable[[Tensor], Tensor] | None = None
    start = 0

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size))

    def forward(self, ids: Tensor) -> Tensor:
        if self.leave is None:
            return F.embedding(ids, self.weight)
        row = ids - self.start
        away = (row < 0) | (row >= len(self.weight))
        vectors = F.embedding(row.masked_fill(away, 0), self.weight)
        return self.leave(vectors.masked_fill(away[..., None], 0.0))


class _Unfilled:
    def reset_parameters(self) -> None:
        """Do nothing."""


class Conv1d(_Unfilled, nn.Conv1d):
    """`nn.Conv1d` without initial weights."""


class Conv2d(_Unfilled, nn.Conv2d):
    """`nn.Conv2d` without initial weights."""


class LayerNorm(_Unfilled, nn.LayerNorm):
    """`nn.LayerNorm` without initial weights."""


class GroupNorm(_Unfilled, nn.GroupNorm):
    """`nn.GroupNorm` without initial weights."""
