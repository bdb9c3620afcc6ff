"""Rows without their padding: what a batch of unequal rows is computed on, so that no product has a column of padding.

    (B, T) with padding            (1, N): real positions alone, rows of equal length side by side
    a a a a .                      a a a a c c c c b b
    b b . . .            pack →
    c c c c .            ← unpack

Rows become documents of one packed row (see `documents.py`): attention stays within each, and those of equal length share
a call. The answer is that of the padded batch, up to the order in which sums are taken.

Shapes: B batch, T positions of a padded row, N real positions of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from plainformer.model.documents import Documents


@dataclass(frozen=True)
class Packing:
    """Where the real positions of a padded batch are.

    Attributes:
        size: (B, T). places_N: each one's place among the B * T. documents: the rows, longest first.
        rank_B: which document a row is. first_B, last_B: which of the N are a document's ends.
    """

    size: tuple[int, int]
    places_N: Tensor
    documents: Documents
    rank_B: Tensor
    first_B: Tensor
    last_B: Tensor

    def pack(self, x_BT: Tensor) -> Tensor:
        """Leave the padding out: (B, T, ...) → (1, N, ...)."""
        return x_BT.flatten(0, 1).index_select(0, self.places_N)[None]

    def unpack(self, x_1N: Tensor) -> Tensor:
        """Undo `pack`, with zeros for padding: (1, N, ...) → (B, T, ...)."""
        padded = x_1N.new_zeros(self.size[0] * self.size[1], *x_1N.shape[2:])
        return padded.index_copy_(0, self.places_N, x_1N[0]).unflatten(0, self.size)

    def ends(self, only: slice) -> Tensor:
        """Return which of the N positions `only` stands for, (B,): each document's first, or its last."""
        return self.first_B if only.start == 0 else self.last_B

    def unpack_ends(self, x_1BD: Tensor) -> Tensor:
        """Return what there is of one position of each document, (1, B, D), as rows: (B, 1, D)."""
        return x_1BD.transpose(0, 1).index_select(0, self.rank_B)


def packing_of(real_BT: Tensor) -> Packing | None:
    """Return where the real positions are; None where a row has none, or has padding between them."""
    size = real_BT.size(0), real_BT.size(1)
    length_B, start_B = real_BT.sum(-1), real_BT.int().argmax(-1)
    columns_T = torch.arange(size[1])
    within_BT = (columns_T >= start_B[:, None]) & (columns_T < (start_B + length_B)[:, None])
    if not bool((length_B > 0).all()) or not bool((within_BT == real_BT).all()):
        return None
    lengths, order_B = length_B.sort(descending=True, stable=True)
    row_N = torch.repeat_interleave(lengths)  # counted in that order
    before_B = lengths.cumsum(0) - lengths
    position_N = torch.arange(len(row_N)) - before_B[row_N]
    places_N = (order_B * size[1] + start_B[order_B])[row_N] + position_N
    runs = tuple((len(list(equal)), length) for length, equal in groupby(lengths.tolist()))
    real_1N = torch.ones(1, len(row_N), dtype=torch.bool)
    documents = Documents(row_N[None], position_N[None], real_1N, runs)
    return Packing(size, places_N, documents, order_B.argsort(), before_B, before_B + lengths - 1)
