"""Intervals: that they cover, against scipy, with units, in flat memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from plainformer.errors import InputError, UsageError
from plainformer.evaluate import bootstrap, make_scorer
from plainformer.evaluate.base import Measure, OfSums
from plainformer.evaluate.intervals import resampled


def mean_of_ones(rows: Any) -> Measure:
    ones = np.concatenate((np.ones((len(rows), 1)), rows), axis=1)
    return OfSums(ones, lambda sums: {"mean": float(sums[1] / sums[0])})


def test_they_cover_the_truth() -> None:
    """Of 1,000 sets of 200 answers, 93 to 97 % have the true accuracy in their interval."""
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(1000):
        rows = (random.random((200, 1)) < 0.8).astype(np.float64)
        found = bootstrap(rows, mean_of_ones, resamples=400, seed=seed)["mean"]
        covered += found.low <= 0.8 <= found.high  # type: ignore[operator]
    assert 930 <= covered <= 970


def test_equal_to_scipys_of_a_mean() -> None:
    values = np.random.default_rng(0).gamma(1.0, size=300)
    found = bootstrap(values[:, None], mean_of_ones, resamples=4000)["mean"]
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    width = theirs.high - theirs.low
    assert found.value == pytest.approx(values.mean()) and found.units == 300
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)
    # Their standard error, by the formula.
    assert width == pytest.approx(2 * 1.96 * values.std() / np.sqrt(300), rel=0.08)


def test_sums_and_weights_give_the_same() -> None:
    rows = np.random.default_rng(0).random((50, 1))
    slow = bootstrap(rows, lambda rows: lambda weights: {"mean": float(weights @ rows[:, 0] / weights.sum())})
    fast = bootstrap(rows, mean_of_ones)
    units = np.arange(50) // 2
    for one, other in (
        (slow, fast),
        (bootstrap(rows, lambda rows: mean_of_ones(rows).__call__, units), bootstrap(rows, mean_of_ones, units)),
    ):
        assert (one["mean"].low, one["mean"].high) == pytest.approx((other["mean"].low, other["mean"].high))


def test_units_are_drawn_together() -> None:
    """Documents of equal lines: an interval over lines would be too narrow by the root of their number."""
    of_documents = np.random.default_rng(0).normal(size=60)
    rows, units = np.repeat(of_documents, 9)[:, None], np.repeat(np.arange(60) * 7 - 3, 9)
    one, lines, all_of_it = (
        bootstrap(of_documents[:, None], mean_of_ones)["mean"],
        bootstrap(rows, mean_of_ones)["mean"],
        bootstrap(rows, mean_of_ones, units)["mean"],
    )
    assert (all_of_it.low, all_of_it.high, all_of_it.units) == (pytest.approx(one.low), pytest.approx(one.high), 60)
    assert (one.high - one.low) / (lines.high - lines.low) == pytest.approx(3, rel=0.15)  # type: ignore[operator]
    mixed = np.random.default_rng(1).permutation(540)
    again = bootstrap(rows[mixed], mean_of_ones, units[mixed])["mean"]
    assert (again.low, again.high) == pytest.approx((all_of_it.low, all_of_it.high))


def test_too_few_and_undefined() -> None:
    rows = np.random.default_rng(0).random((19, 1))
    found = bootstrap(rows, mean_of_ones)["mean"]
    assert (
        found.low is None and found.high is None and "19" in found.reason and found.value == pytest.approx(rows.mean())
    )
    assert bootstrap(rows, mean_of_ones, fewest=1)["mean"].low is not None
    of_three = bootstrap(np.ones((60, 1)), mean_of_ones, np.arange(60) % 3)["mean"]
    assert of_three.low is None and of_three.units == 3
    scorer = make_scorer("single-label", labels=["a", "b"], probabilities=False)
    one_sided = np.zeros((30, 2))
    nothing = bootstrap(one_sided, scorer.measure, resamples=50)
    assert nothing["mcc"].low is None and nothing["mcc"].reason and nothing["accuracy"].low == 1
    assert nothing["mcc"].to_dict()["value"] is None
    one_sided[0, 0] = 1  # a label that one example has: most resamples have it, some do not
    assert bootstrap(one_sided, scorer.measure, resamples=200)["recall/b"].low == 0


def test_the_same_for_the_same_seed() -> None:
    rows = np.random.default_rng(0).random((40, 1))
    assert bootstrap(rows, mean_of_ones) == bootstrap(rows, mean_of_ones)
    assert bootstrap(rows, mean_of_ones, seed=1) != bootstrap(rows, mean_of_ones)
    wide, narrow = bootstrap(rows, mean_of_ones, level=0.99)["mean"], bootstrap(rows, mean_of_ones, level=0.5)["mean"]
    assert wide.low < narrow.low < narrow.high < wide.high  # type: ignore[operator]
    # The draws are those of one call after the other, however many are made at once.
    random = np.random.Generator(np.random.Philox(3))
    for times in resampled(7001, 5, seed=3):
        assert (times == np.bincount(random.integers(0, 7001, 7001), minlength=7001)).all()


def test_what_is_refused() -> None:
    rows = np.ones((30, 1))
    with pytest.raises(InputError, match="3 units for 30 rows"):
        bootstrap(rows, mean_of_ones, [1, 2, 3])
    for wrong in ({"resamples": 0}, {"level": 1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            bootstrap(rows, mean_of_ones, **wrong)


def test_memory_is_flat(tmp_path: Path) -> None:
    """100,000 rows of 10 numbers, from a file: less than 20 MB, whatever the number of resamples."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((100_000, 10)))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    tracemalloc.start()
    bootstrap(rows, lambda rows: OfSums(rows, lambda sums: {"ratio": float(sums[0] / sums[1])}), resamples=30)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20e6
