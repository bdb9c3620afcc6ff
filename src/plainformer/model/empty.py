"""Standard modules without initial weights: loading fills them, so drawing random ones first would be wasted.

It would also cost seconds: torch imports its whole symbolic machinery to draw a random number on the meta device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Module):
    """A table of vectors, (rows, size), looked up by id: (...,) → (..., size)."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


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
