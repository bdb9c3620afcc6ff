"""The measures of likeness by their formulas, number by number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from plainformer.tasks.text.similarity import SIMILARITIES
from tests.support.close import close

Row = Sequence[float]


def dot(a: Row, b: Row) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


BY_HAND: dict[str, Callable[[Row, Row], float]] = {
    "cosine": lambda a, b: dot(a, b) / (math.hypot(*a) * math.hypot(*b)),
    "dot": dot,
    "euclidean": lambda a, b: -math.dist(a, b),
    "manhattan": lambda a, b: -sum(abs(x - y) for x, y in zip(a, b, strict=True)),
}


@pytest.mark.parametrize("name", SIMILARITIES)
def test_by_hand(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a_ND, b_MD = torch.randn(30, 7, generator=generator), torch.randn(40, 7, generator=generator)
    expected = [[BY_HAND[name](a, b) for b in b_MD.tolist()] for a in a_ND.tolist()]
    close(SIMILARITIES[name](a_ND, b_MD), expected)
    assert SIMILARITIES[name](a_ND[:0], b_MD).shape == (0, 40)


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
def test_equal_vectors_are_not_apart(name: str) -> None:
    """Of many rows too, where torch would take distances from a matrix product."""
    rows_ND = 100 + torch.randn(60, 16, generator=torch.Generator().manual_seed(1)) / 100
    found = SIMILARITIES[name](rows_ND, rows_ND)
    assert not found.diagonal().any() and (found <= 0).all()
    close(found, [[BY_HAND[name](a, b) for b in rows_ND.tolist()] for a in rows_ND.tolist()])


def test_a_vector_of_zeros_is_like_nothing() -> None:
    close(SIMILARITIES["cosine"](torch.zeros(1, 3), torch.ones(2, 3)), [[0.0, 0.0]])
