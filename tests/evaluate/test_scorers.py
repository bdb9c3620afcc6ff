"""What holds for every scorer: weights are repetitions, order has no effect, and nothing is undefined without being so said."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.errors import InputError, UsageError
from plainformer.evaluate import SCORERS, Scorer, make_scorer
from tests.support.scorers import CASES, LABELS, TAGS, pairs

CASE_NAMES = sorted(CASES)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error", RuntimeWarning)
        yield


def scorer_of(name: str) -> Scorer:
    return make_scorer(CASES[name][0], **CASES[name][1])


def rows_of(name: str, count: int, seed: int = 0) -> np.ndarray:
    scorer = scorer_of(name)
    rows = [scorer.row(*pair) for pair in pairs(name, count, seed)]
    return np.array(rows, dtype=np.float64).reshape(count, len(scorer.columns))


def test_every_scorer_is_tried() -> None:
    assert {scorer for scorer, _, _ in CASES.values()} == set(SCORERS)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_weights_are_repetitions(name: str) -> None:
    scorer = scorer_of(name)
    known = rows_of(name, 60)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 3)), max_size=12))
    def check(drawn: list[tuple[int, int]]) -> None:
        rows = known[[place for place, _ in drawn]]
        weights = np.array([times for _, times in drawn], dtype=np.int64)
        weighted = scorer.measure(rows)(weights.astype(np.float64))
        repeated = np.repeat(rows, weights, axis=0)
        same = scorer.measure(repeated)(np.ones(len(repeated)))
        assert weighted == pytest.approx(same, rel=1e-9, abs=1e-12, nan_ok=True)

    check()


@pytest.mark.parametrize("name", CASE_NAMES)
def test_order_has_no_effect(name: str) -> None:
    scorer, rows = scorer_of(name), rows_of(name, 60)
    expected = scorer.measure(rows)(np.ones(60))
    for seed in range(5):
        mixed = np.random.default_rng(seed).permutation(rows)
        assert scorer.measure(mixed)(np.ones(60)) == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_metrics_are_those_it_names(name: str) -> None:
    scorer, rows = scorer_of(name), rows_of(name, 80)
    values = scorer.measure(rows)(np.ones(80))
    names = [metric.name for metric in scorer.metrics]
    assert set(values) == set(names) and len(names) == len(set(names))
    assert all(isinstance(value, float) for value in values.values())
    assert all(metric.better in ("higher", "lower") and metric.undefined for metric in scorer.metrics)
    assert {metric.beside for metric in scorer.metrics} <= {*names, ""}
    again = make_scorer(scorer.name, **json.loads(json.dumps(scorer.settings())))
    assert (again.columns, again.metrics) == (scorer.columns, scorer.metrics)
    assert again.measure(rows)(np.ones(80)) == pytest.approx(values, nan_ok=True)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_of_nothing_all_is_undefined(name: str) -> None:
    scorer, rows = scorer_of(name), rows_of(name, 0)
    assert all(math.isnan(value) for value in scorer.measure(rows)(np.ones(0)).values())
    assert all(math.isnan(value) for value in scorer.measure(rows_of(name, 9))(np.zeros(9)).values())
    for table in scorer.tables(rows):
        json.dumps(table.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_outcomes_have_the_metric_as_mean(name: str) -> None:
    scorer, rows = scorer_of(name), rows_of(name, 70)
    values = scorer.measure(rows)(np.ones(70))
    for metric in scorer.metrics:
        outcomes = scorer.outcomes(rows, metric.name)
        assert outcomes is None or outcomes.shape == (70,)
        assert outcomes is None or outcomes.mean() == pytest.approx(values[metric.name])


@pytest.mark.parametrize("name", CASE_NAMES)
def test_tables_are_data(name: str) -> None:
    scorer, rows = scorer_of(name), rows_of(name, 70)
    values = scorer.measure(rows)(np.ones(70))
    for table in scorer.tables(rows):
        assert all(len(line) == len(table.header) for line in table.rows)
        assert json.loads(json.dumps(table.to_dict(), allow_nan=False))["name"] == table.name
        for line in table.rows:  # a cell that is a metric has its value
            for column, cell in zip(table.header[1:], line[1:], strict=True):
                if table.name != "strict_types" and f"{column}/{line[0]}" in values:
                    assert cell == pytest.approx(values[f"{column}/{line[0]}"], nan_ok=True)


def test_rows_may_be_memory_mapped(tmp_path: Any) -> None:
    for name in CASE_NAMES:
        np.save(tmp_path / "rows.npy", rows_of(name, 30))
        scorer, mapped = scorer_of(name), np.load(tmp_path / "rows.npy", mmap_mode="r")
        expected = scorer.measure(np.array(mapped))(np.ones(30))
        assert scorer.measure(mapped)(np.ones(30)) == pytest.approx(expected, nan_ok=True)
        assert len(scorer.tables(mapped)) == len(scorer.tables(np.array(mapped)))


def test_what_cannot_be_scored_is_said() -> None:
    for name, wrong in (("single", {}), ("single-label", {}), ("single-label", {"labels": LABELS, "top": 3})):
        with pytest.raises(UsageError, match=r"unknown|cannot be made"):
            make_scorer(name, **wrong)
    for wrong_labels in ((), ("a", "a")):
        with pytest.raises(UsageError, match="labels"):
            make_scorer("multi-label", labels=wrong_labels)
    scorer = make_scorer("single-label", labels=LABELS)
    with pytest.raises(InputError, match="no label 'd'"):
        scorer.row("d", {"label": "a", "probabilities": [1, 0, 0, 0]})
    for chances in ([1, 0], [0.5, 0.1, 0, 0], [math.nan] * 4, [2, -1, 0, 0]):
        with pytest.raises(InputError, match="probabilities"):
            scorer.row("a", {"label": "a", "probabilities": chances})
    with pytest.raises(InputError, match="probabilities"):
        make_scorer("multi-label", labels=LABELS).row([], {"labels": [], "probabilities": [0, 0, 0, 2]})
    with pytest.raises(InputError, match="no choice 2 among 2"):
        make_scorer("choice").row(2, {"label": 0, "probabilities": [1, 0]})
    with pytest.raises(InputError, match="finite"):
        make_scorer("regression").row(1.0, math.nan)
    with pytest.raises(InputError, match="2 tags and 1"):
        make_scorer("entities", labels=TAGS).row(["O", "O"], ["O"])
    with pytest.raises(InputError, match="type 'ORG'"):
        make_scorer("entities", labels=TAGS).row(["B-ORG"], ["O"])
    with pytest.raises(UsageError, match="no entity"):
        make_scorer("entities", labels=["O"])
    with pytest.raises(UsageError, match="BILOU"):
        make_scorer("entities", labels=TAGS, scheme="BILOU")
    with pytest.raises(InputError, match="no reference"):
        make_scorer("text").row([], "a")
    with pytest.raises(InputError, match="nats"):
        make_scorer("language").row("a", {"nats": math.inf, "tokens": 1})
    with pytest.raises(UsageError, match="tokenize"):
        make_scorer("text", tokenize="14").row("a", "a")
    with pytest.raises(UsageError, match="no effect"):
        make_scorer("squad", threshold=0.5)
