"""Logits and rows for the processors' tests."""

from __future__ import annotations

import torch
from torch import Tensor

from plainformer.generation.processors.context import Context

INF = float("inf")


def context(ids: object, prompt: int | None = None, encoder: object = None) -> Context:
    """Unpadded rows; `prompt` of their columns are prompt (None: all of them)."""
    ids_RT = torch.as_tensor(ids)
    encoder_RS = None if encoder is None else torch.as_tensor(encoder)
    return Context(ids_RT, ids_RT.size(1) if prompt is None else prompt, encoder_ids=encoder_RS)


def steps(count: int, rows: int = 2, prompt: int = 1) -> Context:
    """Rows of zeros, of which `count` tokens were generated."""
    return context(torch.zeros(rows, prompt + count, dtype=torch.long), prompt)


def uniform(rows: int, vocabulary: int) -> Tensor:
    return torch.full((rows, vocabulary), 1 / vocabulary)


def random_logits(seed: int, rows: int = 4, vocabulary: int = 40, banned: float = 0.0) -> Tensor:
    """Logits of a model's spread, no two equal, and a part of them banned."""
    generator = torch.Generator().manual_seed(seed)
    logits_RV = 3 * torch.randn(rows, vocabulary, generator=generator)
    away_RV = torch.rand(rows, vocabulary, generator=generator) < banned
    away_RV[:, 0] = False
    return logits_RV.masked_fill(away_RV, -INF)


def random_ids(seed: int, rows: int = 4, length: int = 20, vocabulary: int = 6) -> Tensor:
    """A vocabulary of few tokens, so that rows repeat themselves."""
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def ramps(vocabulary: int = 10) -> Tensor:
    """(2, V) logits that rise by 1, and by 100."""
    ramp_V = torch.arange(vocabulary, dtype=torch.float) - vocabulary // 2
    return torch.stack((ramp_V, 100 * ramp_V))


def kept(logits_RV: Tensor) -> list[list[int]]:
    """The tokens of each row that are not banned."""
    return [row.nonzero()[:, 0].tolist() for row in ~logits_RV.isneginf()]


def banned(logits_RV: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in logits_RV.isneginf()]
