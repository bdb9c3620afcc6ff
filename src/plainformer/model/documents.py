"""Packed rows: several documents after one another in a row, none of which sees another (Krell et al. 2021).

Each document counts its positions from 0, and attention and local convolutions stay inside it, so that it has the hidden
states that it would have in a row of its own. Attention has two ways, of which `Stack.begin` chooses one:

    by runs   one call for each run of documents of equal length: what lies between documents is never computed. Needs to
              know the lengths when the calls are made, which is free where document ids are on the CPU.
    by mask   one call for the batch, with a mask over (T, T). For a GPU, which is not asked for values: that would wait
              for it. Also where attention probabilities are to be returned.

Shapes: B batch, T positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Where the documents of packed rows are. A run of padding counts as one of them here: it attends to itself alone.

    Attributes:
        number_BT: which document of its row a position belongs to, counted from 0.
        positions_BT: its place in that document, from 0; 0 for padding.
        real_BT: whether it is not padding.
        runs: how many documents of which length follow one another, (count, length), over all rows; None if not known.
    """

    number_BT: Tensor
    positions_BT: Tensor
    real_BT: Tensor
    runs: tuple[tuple[int, int], ...] | None

    @property
    def longest(self) -> int:
        """The length of the longest document, where lengths are known."""
        assert self.runs is not None
        return max(length for _, length in self.runs)

    def lengths_BT(self) -> Tensor:
        """Return how long the document of each position is."""
        counts_BT = torch.zeros_like(self.number_BT).scatter_add(1, self.number_BT, torch.ones_like(self.number_BT))
        return counts_BT.gather(1, self.number_BT)

    def same_BTT(self) -> Tensor:
        """Return whether two positions belong to the same document."""
        return self.number_BT[:, :, None] == self.number_BT[:, None]

    def split(self, x_BT: Tensor, each: int | None = None) -> list[Tensor]:
        """(B, T, ...) → for each run (count, length, ...). `each`: how many positions x has of a document; None: all."""
        assert self.runs is not None
        runs = self.runs if each is None else [(count, each) for count, _ in self.runs]
        # One split, and not a slice for each run: the gradient of a slice is as large as what it was cut from.
        parts = x_BT.flatten(0, 1).split([count * length for count, length in runs])
        return [part.unflatten(0, run) for part, run in zip(parts, runs, strict=True)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Undo `split`."""
        return torch.cat([part.flatten(0, 1) for part in parts]).unflatten(0, (len(self.number_BT), -1))


def documents_of(ids_BT: Tensor) -> Documents:
    """Return where the documents are, whose ids are 0 or more and differ between neighbours; padding has -1."""
    columns_T = torch.arange(ids_BT.size(1), device=ids_BT.device)
    starts_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    starts_BT[:, 1:] = ids_BT[:, 1:] != ids_BT[:, :-1]
    first_BT = torch.where(starts_BT, columns_T, 0).cummax(-1).values
    real_BT = ids_BT >= 0
    positions_BT = torch.where(real_BT, columns_T - first_BT, 0)
    runs = _runs(starts_BT) if ids_BT.device.type == "cpu" else None
    return Documents(starts_BT.long().cumsum(-1) - 1, positions_BT, real_BT, runs)


def _runs(starts_BT: Tensor) -> tuple[tuple[int, int], ...]:
    starts = [*starts_BT.flatten().nonzero().flatten().tolist(), starts_BT.numel()]
    lengths = [stop - start for start, stop in pairwise(starts)]
    return tuple((len(list(equal)), length) for length, equal in groupby(lengths))


def convolved_apart(conv: torch.nn.Conv1d, x_BTD: Tensor, documents: Documents) -> Tensor:
    """Return a convolution over positions, (B, T, D), that finds zeros around each document, as at the ends of a row.

    Documents move apart by as many columns as the kernel reaches, each by those of all before it.
    """
    length, reach = x_BTD.size(1), conv.kernel_size[0] // 2
    columns_BT = torch.arange(length, device=x_BTD.device) + reach * documents.number_BT
    columns_BTD = columns_BT[..., None].expand_as(x_BTD)
    apart_BTD = x_BTD.new_zeros(len(x_BTD), length * (1 + reach), x_BTD.size(2)).scatter(1, columns_BTD, x_BTD)
    local_BTD: Tensor = conv(apart_BTD.transpose(1, 2)).transpose(1, 2)
    return local_BTD.gather(1, columns_BTD)
