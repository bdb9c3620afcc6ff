"""The interval of a metric, against the binomial distribution."""

import numpy as np
import pytest

from plainformer.train.interval import interval, said

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("right", "n"), [(757, 872), (50, 100), (380, 400)])
def test_of_an_accuracy_it_is_that_of_the_binomial_distribution(right: int, n: int) -> None:
    """Drawing n rows of which k are right gives a binomial count: its quantiles are known."""
    rows = np.stack([np.ones(n), np.arange(n) < right], 1).astype(np.float64)
    found = interval(rows, lambda sums: {"accuracy": sums[1] / sums[0]}, "accuracy")
    expected = scipy_stats.binom(n, right / n).ppf([0.025, 0.975]) / n
    assert np.abs(np.array(found) - expected).max() < 0.2 * (expected[1] - expected[0]) / 2
    assert found == interval(rows, lambda sums: {"accuracy": sums[1] / sums[0]}, "accuracy")


def test_rows_count_as_they_do_in_the_metric() -> None:
    """A ratio of sums, as of a loss per label: long rows weigh more, and a metric that some samples lack has an interval."""
    rows = np.array([[1.0, 1.0], [90.0, 9.0]])
    low, high = interval(rows, lambda sums: {"loss": sums[0] / sums[1]}, "loss")
    assert (low, high) == (1.0, 10.0)
    rows = np.array([[1.0, 1.0], [0.0, 0.0]])
    with np.errstate(invalid="ignore"):
        assert interval(rows, lambda sums: {"f1": sums[0] / sums[1]}, "f1") == (1.0, 1.0)


def test_it_is_said_for_people() -> None:
    assert said(0.86927, (0.84632, 0.8922)) == "0.8693 (0.846 to 0.892)" and said(2.5, None) == "2.5"
