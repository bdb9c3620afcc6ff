"""Rows of token ids as tensors: padding on the right, texts that share a row, and where the labels are.

Labels are arrays as long as their row, with NONE where there is nothing to learn: they come from where tokens are, never
from comparing ids with the padding's, which many models share with the end of a text.

Shapes: B batch, T positions, N labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.int64]
NONE = -1  # in an array of labels: nothing to learn here


def as_ids(values: Sequence[int] | npt.NDArray[np.integer]) -> Ids:
    """Return ids as an array that torch takes."""
    return np.asarray(values, dtype=np.int64)


def padded(rows: Sequence[npt.NDArray[np.integer]], filler: int) -> Tensor:
    """Return rows as (B, T), T of the longest, with `filler` after the shorter ones."""
    table = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(table)


def mask(rows: Sequence[npt.NDArray[np.integer]]) -> Tensor | None:
    """Return (B, T), 1 on tokens and 0 on padding; None where no row is padded, which lets attention take its fastest way."""
    lengths = [len(row) for row in rows]
    if len(set(lengths)) == 1:
        return None
    return padded([np.ones(length, dtype=np.int64) for length in lengths], 0)


def document_ids(rows: Sequence[Sequence[npt.NDArray[np.integer]]]) -> Tensor:
    """Return (B, T), the number of each token's piece in its row, and -1 on padding."""
    return padded([np.repeat(np.arange(len(row)), [len(piece) for piece in row]) for row in rows], -1)


def token_inputs(rows: Sequence[Sequence[npt.NDArray[np.integer]]], filler: int) -> dict[str, Tensor]:
    """Return what a model's forward takes of rows of pieces: `input_ids`, and what says which positions belong together."""
    joined = [np.concatenate(row) for row in rows]
    inputs = {"input_ids": padded(joined, filler)}
    if any(len(row) > 1 for row in rows):
        return {**inputs, "document_ids": document_ids(rows)}
    real = mask(joined)
    return inputs if real is None else {**inputs, "attention_mask": real}


def label_targets(rows: Sequence[Ids]) -> dict[str, Tensor]:
    """Return the labels of rows that are padded to the longest.

    Returns:
        "labels" (N,), "places" (N,): their positions in (B, T) flattened, and "per_row" (B,): how many each row has; N is in
        the order of the rows.
    """
    width = max(map(len, rows))
    found = [np.flatnonzero(row != NONE) for row in rows]
    places = np.concatenate([number * width + place for number, place in enumerate(found)])
    labels = np.concatenate([row[place] for row, place in zip(rows, found, strict=True)])
    counts = np.array([len(place) for place in found], dtype=np.int64)
    return {
        "labels": torch.from_numpy(labels.astype(np.int64)),
        "places": torch.from_numpy(places.astype(np.int64)),
        "per_row": torch.from_numpy(counts),
    }


def row_sums(values_N: Tensor, per_row_B: Tensor) -> Tensor:
    """Return the sum over each row's labels, (B,), which are next to each other in (N,): in the same order on any device."""
    return torch.segment_reduce(values_N.detach(), "sum", lengths=per_row_B, initial=0, unsafe=True)


def count_of(rows: Sequence[Sequence[npt.NDArray[np.integer]]]) -> int:
    """Return how many tokens rows of pieces have."""
    return sum(len(piece) for piece in chain.from_iterable(rows))
