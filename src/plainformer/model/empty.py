"""Standard modules without initial weights: loading fills them, so drawing random ones first would be wasted.

It would also cost seconds: torch imports its whole symbolic machinery to draw a random number on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainformer.model.unpacking import Unpacking


class PackedTable(Protocol):
    """A table in another layout. For inference alone; `model/fast/blocks.py` has one."""

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors of ids: (...,) → (..., size)."""

    def dense(self) -> Tensor:
        """Return the table as an ordinary (rows, size) tensor."""


class Embedding(Unpacking):
    """A table of vectors, (rows, size), looked up by id: (...,) → (..., size).

    Attributes:
        leave, start: where ranks share the table, what adds up their vectors, and the id of the first row that is here.
    """

    leave: Callable[[Tensor], Tensor] | None = None
    start = 0
    packed: PackedTable | None = None  # set while the table keeps a file's own layout; `weight` is None then

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the vectors."""
        return torch.float32 if self.packed is not None else self.weight.dtype

    def pack(self, packed: PackedTable) -> None:
        """Look vectors up in another layout of the table; the plain one is released."""
        self.packed, self.weight = packed, None  # type: ignore[assignment]

    def unpack(self) -> None:
        """Look vectors up in a plain table again; does nothing where it is plain."""
        if self.packed is not None:
            self.weight = nn.Parameter(self.packed.dense(), requires_grad=False)
            self.packed = None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            destination[prefix + "weight"] = self.packed.dense()

    def forward(self, ids: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed.lookup(ids)
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
