"""Prompts of random ids, alone and padded into a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.models import VOCABULARY


def prompts(lengths: tuple[int, ...], seed: int = 0, vocabulary: int = VOCABULARY) -> list[Tensor]:
    """(1, T) ids each, of which none is special."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, vocabulary, (1, length), generator=generator) for length in lengths]


def pad(rows: list[Tensor], side: str, extra: int = 0, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """(R, T) ids and their mask: the rows, padded on one side to the longest and `extra` more."""
    width = max(row.size(1) for row in rows) + extra
    ids, mask = torch.full((len(rows), width), pad_id), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(0, row.size(1)) if side == "right" else slice(width - row.size(1), width)
        ids[index, place], mask[index, place] = row[0], 1
    return ids, mask
