"""Metrics of numbers, against scipy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from plainformer.evaluate import make_scorer


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30), st.sampled_from([0.1, 1e6])
)
def test_one_number(found: list[tuple[int, int]], size: float) -> None:
    scorer = make_scorer("regression")
    right, given = np.array(found, dtype=np.float64).T * size + 7 * size
    rows = np.array([scorer.row(*pair) for pair in zip(right, given, strict=True)])
    values = scorer.measure(rows)(np.ones(len(rows)))
    varied = len(set(right)) > 1
    both = varied and len(set(given)) > 1
    expected = {
        "pearson": stats.pearsonr(right, given)[0] if both else math.nan,
        "spearman": stats.spearmanr(right, given)[0] if both else math.nan,
        "mean_absolute_error": oracle.mean_absolute_error(right, given),
        "rmse": oracle.root_mean_squared_error(right, given),
        "r2": oracle.r2_score(right, given) if varied else math.nan,
    }
    assert values == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


def test_several_numbers() -> None:
    random = np.random.default_rng(0)
    right, given = random.normal(size=(2, 50, 3))
    given += right
    scorer = make_scorer("regression", labels=["x", "y", "z"])
    rows = np.array([scorer.row(*pair) for pair in zip(right, given, strict=True)])
    values = scorer.measure(rows)(np.ones(50))
    assert values["rmse"] == pytest.approx(oracle.root_mean_squared_error(right, given))
    assert values["r2"] == pytest.approx(oracle.r2_score(right, given))
    assert values["pearson/z"] == pytest.approx(stats.pearsonr(right[:, 2], given[:, 2])[0])
    assert values["spearman"] == pytest.approx(
        np.mean([stats.spearmanr(right[:, k], given[:, k])[0] for k in range(3)])
    )


def test_numbers_far_from_zero() -> None:
    """Sums of squares would lose all digits of these."""
    random = np.random.default_rng(0)
    right, given = 1e9 + random.normal(size=(2, 100))
    scorer = make_scorer("regression")
    values = scorer.measure(np.array([scorer.row(*pair) for pair in zip(right, given, strict=True)]))(np.ones(100))
    assert values["pearson"] == pytest.approx(stats.pearsonr(right - 1e9, given - 1e9)[0], rel=1e-6)
