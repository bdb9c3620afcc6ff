"""The nucleus is found among the likeliest tokens, and is to the bit what a sort of all tokens gives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.generation.processors.context import Context
from plainformer.generation.processors.sampling import TOP_P_FIRST, TopP

NOTHING = Context(torch.zeros(1, 1, dtype=torch.long), 1)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 2**31),
    st.sampled_from([TOP_P_FIRST - 1, 4 * TOP_P_FIRST, 9001, 49152]),
    st.sampled_from([0.0, 0.5, 2.0, 4.0, 9.0]),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([0, 1, 40, 2000]),
    st.one_of(st.sampled_from([0.0, 1e-4, 0.5, 0.9, 1 - 1e-6, 1.0]), st.floats(0, 1)),
    st.sampled_from([1, 2, 40, 1500]),
)
def test_as_sorted(
    seed: int, size: int, spread: float, decimals: int | None, allowed: int, mass: float, least: int
) -> None:
    """`decimals` make equally likely tokens; `allowed`: how many are not banned before, 0 for all."""
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(2, size, generator=generator) * spread
    if decimals is not None:
        logits_RV = logits_RV.round(decimals=decimals)
    if allowed:
        banned = torch.rand(2, size, generator=generator).argsort(-1)[:, allowed:]
        logits_RV = logits_RV.scatter(1, banned, -math.inf)
    process = TopP(mass, least)
    assert torch.equal(process(logits_RV, NOTHING), process._of_all(logits_RV))


def test_sums_that_rounding_decides() -> None:
    """Powers of two, whose sums are 1 - `top_p` exactly, or miss it by the last bit."""
    logits_RV = torch.full((1, 8192), -math.inf)
    logits_RV[0, torch.arange(20) * 401] = -torch.arange(20) * math.log(2)
    for mass in (0.5, 0.75, 0.875, 1 - 2**-10):
        for near in (mass, math.nextafter(mass, 0), math.nextafter(mass, 1), mass + 1e-7, mass - 1e-7, mass + 1e-5):
            process = TopP(near)
            assert torch.equal(process(logits_RV, NOTHING), process._of_all(logits_RV))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number(bad: float) -> None:
    logits_RV = torch.randn(2, 8192, generator=torch.Generator().manual_seed(0)) * 4
    logits_RV[1, 77] = bad
    found, expected = TopP(0.9)(logits_RV, NOTHING), TopP(0.9)._of_all(logits_RV)
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_most_rows_need_no_sort() -> None:
    """Logits of a language model fall about as a normal distribution of this width."""
    logits_RV = torch.randn(100, 49152, generator=torch.Generator().manual_seed(0)) * 4.5
    for mass in (0.5, 0.9, 0.95):
        _, sure_R = TopP(mass)._of_the_top(logits_RV, TOP_P_FIRST)
        assert int(sure_R.sum()) >= 90
