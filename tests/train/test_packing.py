"""Packing beside the textbook's best fit decreasing, one example at a time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.config.training import BatchConfig, LengthConfig
from plainformer.train.packing import Packing, best_fit
from plainformer.train.plan import make_plan


def by_hand(lengths: list[int], row_length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if row_length - sum(row) >= length]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 24), st.data())
def test_it_is_best_fit_decreasing(row_length: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, row_length), max_size=80))
    groups = best_fit(np.bincount(lengths, minlength=row_length + 1), row_length)
    rows = [[length for length, many in held for _ in range(many)] for held, count in groups for _ in range(count)]
    assert Counter(length for row in rows for length in row) == Counter(lengths)
    # Of rows that are equally full either may be taken: how full the rows become is the same.
    assert sorted(map(sum, rows)) == sorted(map(sum, by_hand(lengths, row_length)))


@pytest.mark.parametrize("row_length", [256, 512, 1024, 70_000])
def test_rows_are_full_and_short_examples_whole(row_length: int) -> None:
    lengths = np.maximum(np.random.default_rng(0).lognormal(5, 1, 5000).astype(int), 1)
    plan = make_plan(lengths, BatchConfig(size=16), LengthConfig(epochs=1), 0, packs=True, row_length=row_length)
    rows = [row for k in range(plan.total_steps) for micro in plan.step(k).micro for row in micro]
    assert len(rows) == plan.rows_per_epoch
    assert 1 - lengths.sum() / (len(rows) * row_length) < (0.005 if row_length < 70_000 else 0.1)
    pieces = Counter(piece.example for row in rows for piece in row)
    assert all(pieces[i] == -(-int(n) // row_length) for i, n in enumerate(lengths))


def test_who_shares_a_row_changes_from_epoch_to_epoch() -> None:
    plan = make_plan([5] * 200, BatchConfig(size=20), LengthConfig(epochs=2), 0, packs=True, row_length=10)
    pairs = [
        {frozenset(piece.example for piece in row) for k in steps for row in plan.step(k).micro[0]}
        for steps in (range(5), range(5, 10))
    ]
    assert all(len(each) == 100 for each in pairs) and len(pairs[0] & pairs[1]) < 10


def test_pieces_of_a_long_example_are_not_all_in_one_step() -> None:
    plan = make_plan([1000, *[10] * 100], BatchConfig(size=10), LengthConfig(epochs=1), 0, packs=True, row_length=10)
    held = [sum(row[0].example == 0 for row in plan.step(k).micro[0]) for k in range(plan.total_steps)]
    assert sum(held) == 100 and max(held) < 10


def test_rows_come_in_random_order() -> None:
    """Not first the long examples and then the short ones, as they were laid out."""
    plan = make_plan(
        [10] * 100 + [1] * 1000, BatchConfig(size=20), LengthConfig(epochs=1), 0, packs=True, row_length=10
    )
    held = [sum(len(row) == 1 for row in plan.step(k).micro[0]) for k in range(plan.total_steps)]
    assert len(held) == 10 and all(3 <= each <= 17 for each in held)


def test_an_example_without_tokens_has_no_piece() -> None:
    packing = Packing(np.array([0, 3, 0]), 4)
    assert packing.rows == 1 and packing.example_P.tolist() == [1]
