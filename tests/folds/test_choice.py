"""The one-standard-error rule, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from plainformer.config.training import FoldsConfig
from plainformer.errors import UsageError
from plainformer.folds.choice import candidates, choose

RATES = {"optimizer.learning_rate": [1e-3, 1e-5, 1e-4]}


def chosen(rates: dict[float, list[float]], better: str = "higher") -> float:
    measured = [({"optimizer.learning_rate": rate}, folds) for rate, folds in rates.items()]
    (found,) = [one.values["optimizer.learning_rate"] for one in choose(measured, RATES, better) if one.chosen]
    return float(found)


def test_the_simplest_within_one_standard_error_of_the_best() -> None:
    # The best is 1e-3: mean 0.9, deviation 0.04, error 0.04 / √4 = 0.02.
    best = [0.86, 0.86, 0.94, 0.94]
    error = math.sqrt(4 * 0.04**2 / 3) / 2
    assert error == pytest.approx(0.02309, abs=1e-5)
    near, far = 0.9 - error + 1e-9, 0.9 - error - 1e-6
    assert chosen({1e-3: best, 1e-5: [near] * 4, 1e-4: [0.89] * 4}) == 1e-5
    assert chosen({1e-3: best, 1e-5: [far] * 4, 1e-4: [0.89] * 4}) == 1e-4
    assert chosen({1e-3: best, 1e-5: [far] * 4, 1e-4: [far] * 4}) == 1e-3
    # The error is the best one's own: others may vary as they like.
    assert chosen({1e-3: [0.9] * 4, 1e-5: [0.5, 1.0, 1.0, 1.0], 1e-4: [0.5] * 4}) == 1e-3


def test_a_loss_is_better_lower() -> None:
    best = [0.30, 0.34]  # mean 0.32, error 0.02
    assert chosen({1e-3: best, 1e-5: [0.339, 0.339], 1e-4: [0.5, 0.5]}, "lower") == 1e-5
    assert chosen({1e-3: best, 1e-5: [0.341, 0.341], 1e-4: [0.5, 0.5]}, "lower") == 1e-3


def test_runs_that_ran_away_are_not_chosen() -> None:
    assert chosen({1e-3: [0.7, 0.7], 1e-5: [math.nan, 0.9], 1e-4: [0.6, 0.6]}) == 1e-3


def test_what_is_simplest() -> None:
    """Numbers by size, others as listed; the first option counts most."""
    tried: dict[str, list[Any]] = {"loss.kind": ["gce", "focal"], "optimizer.weight_decay": [0.1, 0.0]}
    found = candidates(tried)
    assert len(found) == 4 and found[1] == {"loss.kind": "gce", "optimizer.weight_decay": 0.0}
    same = [(values, [0.5, 0.6]) for values in found]
    (one,) = [each for each in choose(same, tried, "higher") if each.chosen]
    assert one.values == {"loss.kind": "gce", "optimizer.weight_decay": 0.0}
    assert one.mean == pytest.approx(0.55) and one.error == pytest.approx(0.05)


@pytest.mark.parametrize("values", [[1e-4], 1e-4, [1e-4, 1e-4], "ab"])
def test_a_search_among_nothing_is_refused(values: object) -> None:
    with pytest.raises(UsageError):
        FoldsConfig(search={"optimizer.learning_rate": values})


def test_nested_options_are_dotted_ones() -> None:
    nested = FoldsConfig(search={"optimizer": {"learning-rate": [1, 2]}, "loss.kind": ["gce", "focal"]})
    assert nested.tried() == {"optimizer.learning_rate": [1, 2], "loss.kind": ["gce", "focal"]}
