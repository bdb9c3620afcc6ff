"""Moments in one pass, and the scalings of them: scikit-learn's, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from plainformer.config.scaling import Scaling
from plainformer.data.moments import Moments
from plainformer.errors import CheckpointError

SCALERS = {
    "center": lambda: StandardScaler(with_std=False),
    "standardize": StandardScaler,
    "minmax": MinMaxScaler,
}


def blocks_of(seed: int, columns: int, sizes: list[int], shift: float, size: float) -> list[np.ndarray]:
    """Rows in blocks; some columns are constant, whole numbers, or far from 0."""
    draw = np.random.default_rng(seed)
    made = [draw.normal(shift, size, (count, columns)) for count in sizes]
    for block in made:
        block[:, 0] = shift
        if columns > 1:
            block[:, 1] = np.round(block[:, 1])
        if columns > 2:
            block[:, 2] = block[:, 2] * 1e-3 + 1e6
    return made


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    st.sampled_from([0.0, 1.0, -3.7, 1e4, 1e8]),
    st.sampled_from([0.0, 1e-6, 1.0, 300.0]),
    st.sampled_from(sorted(SCALERS)),
)
def test_equals_scikit_learn(seed: int, columns: int, sizes: list[int], shift: float, size: float, kind: str) -> None:
    """Of all rows at once, and of scikit-learn's own stream: `partial_fit`."""
    blocks = blocks_of(seed, columns, sizes, shift, size)
    ours = Moments.of(blocks, columns).scaling(kind)
    rows = np.concatenate(blocks)
    whole = SCALERS[kind]().fit(rows)
    for theirs in (whole, _streamed(kind, blocks)):
        offset = theirs.data_min_ if kind == "minmax" else theirs.mean_
        ones = np.ones(columns)
        scale = 1 / theirs.scale_ if kind == "minmax" else theirs.scale_ if kind == "standardize" else ones
        largest = np.abs(rows).max(0)
        assert (np.abs(np.array(ours.offset) - offset) <= 1e-12 * np.abs(offset) + 1e-15 * largest).all()
        # The deviation of numbers far from 0 is known to their rounding.
        assert (np.abs(np.array(ours.scale) - scale) <= 1e-9 * scale + 1e-14 * largest * len(rows)).all()
    made = (rows - ours.offset) / ours.scale
    known = 1e-8 + 1e-14 * np.abs(rows).max(0) / ours.scale  # the rounding of the rows themselves
    assert (np.abs(made - whole.transform(rows)) <= known * len(rows)).all()


def _streamed(kind: str, blocks: list[np.ndarray]) -> object:
    made = SCALERS[kind]()
    for block in blocks:
        if len(block):
            made.partial_fit(block)
    return made


def test_a_constant_column_is_only_shifted() -> None:
    rows = np.column_stack((np.full(100, 0.1), np.full(100, 1e9), np.arange(100.0)))
    for kind in ("standardize", "minmax"):
        assert Moments.of([rows], 3).scaling(kind).scale[:2] == (1.0, 1.0)


def test_a_small_variance_around_a_large_mean() -> None:
    """A sum of squares would leave nothing of it."""
    draw = np.random.default_rng(0)
    rows = 1e9 + draw.normal(0, 1, (100_000, 1))
    found = Moments.of(np.array_split(rows, 997), 1)
    assert found.variance[0] == pytest.approx(rows.var(), rel=1e-8)


def test_written_and_read() -> None:
    found = Moments.of([np.random.default_rng(0).normal(size=(9, 3))], 3).scaling("standardize")
    assert Scaling.from_dict(found.to_dict()) == found
    assert found.line().startswith("standardize: (x - ")
    with pytest.raises(CheckpointError):
        Scaling.from_dict({**found.to_dict(), "scale": [1.0, 0.0, 1.0]})
    with pytest.raises(CheckpointError):
        Scaling.from_dict({**found.to_dict(), "kind": "robust"})
