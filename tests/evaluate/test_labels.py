"""One label, several labels and choices, against scikit-learn."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from plainformer.evaluate import make_scorer
from plainformer.evaluate.calibration import expected_calibration_error
from plainformer.evaluate.ranks import roc_curve
from tests.support.scorers import LABELS, pairs

seeds = given(st.integers(0, 10**6), st.integers(1, 40))
LETTERS = LABELS[:3]


def measured(scorer: Any, found: list[Any]) -> dict[str, float]:
    rows = np.array([scorer.row(*pair) for pair in found])
    return dict(scorer.measure(rows)(np.ones(len(rows))))


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where we give NaN
        yield


def averages(right: Any, answers: Any, labels: Any = None) -> dict[str, float]:
    """Scikit-learn's means over labels."""
    expected = {}
    for how in ("micro", "macro", "weighted"):
        values = oracle.precision_recall_fscore_support(right, answers, average=how, labels=labels, zero_division=0)
        expected |= {
            f"{kind}_{how}": float(value) for kind, value in zip(("precision", "recall", "f1"), values[:3], strict=True)
        }
    return expected


@settings(max_examples=40, deadline=None)
@seeds
def test_one_label(seed: int, count: int) -> None:
    found = pairs("single-label", count, seed)
    values = measured(make_scorer("single-label", labels=LABELS), found)
    right, answers = [pair[0] for pair in found], [pair[1]["label"] for pair in found]
    chances = np.array([pair[1]["probabilities"] for pair in found])
    expected = {"accuracy": oracle.accuracy_score(right, answers), **averages(right, answers)}
    places = [LABELS.index(label) for label in right]
    expected["nll"] = oracle.log_loss(places, chances, labels=range(4))
    expected["brier"] = oracle.brier_score_loss(places, chances, labels=range(4))
    mcc = oracle.matthews_corrcoef(right, answers)
    constant = len(set(right)) == 1 or len(set(answers)) == 1
    expected["mcc"] = math.nan if constant else mcc
    areas = []
    for place, label in enumerate(LABELS):
        own = [each == label for each in right]
        areas += [oracle.roc_auc_score(own, chances[:, place])] if len(set(own)) == 2 else []
    expected["roc_auc"] = float(np.mean(areas)) if areas else math.nan
    nan = oracle.precision_recall_fscore_support(right, answers, labels=LABELS, zero_division=np.nan)
    for kind, each in zip(("precision", "recall", "f1"), nan[:3], strict=True):
        expected |= {f"{kind}/{label}": float(value) for label, value in zip(LABELS, each, strict=True)}
    del values["ece"]
    assert values == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


@settings(max_examples=40, deadline=None)
@seeds
def test_two_labels(seed: int, count: int) -> None:
    found = pairs("two labels", count, seed)
    values = measured(make_scorer("single-label", labels=LABELS[:2]), found)
    positive = [pair[0] == LABELS[1] for pair in found]
    chances = [pair[1]["probabilities"][1] for pair in found]
    area = oracle.roc_auc_score(positive, chances) if len(set(positive)) == 2 else math.nan
    assert values["roc_auc"] == pytest.approx(area, nan_ok=True)
    assert values["brier"] == pytest.approx(oracle.brier_score_loss(positive, chances, pos_label=True))


@settings(max_examples=40, deadline=None)
@seeds
def test_several_labels(seed: int, count: int) -> None:
    found = pairs("multi-label", count, seed)
    scorer = make_scorer("multi-label", labels=LABELS)
    values = measured(scorer, found)
    right, answers = (
        np.array([[label in side for label in LABELS] for side in sides]).astype(int)
        for sides in (
            [pair[0] for pair in found],
            [pair[1]["labels"] for pair in found],
        )
    )
    chances = np.array([pair[1]["probabilities"] for pair in found])
    occurs = [place for place in range(4) if right[:, place].any() or answers[:, place].any()]
    if not occurs:
        return
    theirs = averages(right, answers, occurs)
    if not right.any():
        theirs |= {name: math.nan for name in values if name.startswith("recall_mi") or name.endswith("_weighted")}
    if not answers.any():
        theirs["precision_micro"] = math.nan
    theirs["f1_samples"] = oracle.f1_score(right, answers, average="samples", zero_division=1)
    theirs["subset_accuracy"] = oracle.accuracy_score(right, answers)
    theirs["hamming_loss"] = oracle.hamming_loss(right, answers)
    both = [place for place in range(4) if 0 < right[:, place].sum() < count]
    theirs["roc_auc"] = oracle.roc_auc_score(right[:, both], chances[:, both]) if both else math.nan
    theirs["nll"] = oracle.log_loss(right.reshape(-1), chances.reshape(-1), labels=[0, 1])
    theirs["brier"] = oracle.brier_score_loss(right.reshape(-1), chances.reshape(-1), labels=[0, 1])
    theirs["ece"] = expected_calibration_error(chances.reshape(-1), right.reshape(-1))
    nan = oracle.precision_recall_fscore_support(right, answers, zero_division=np.nan)
    for kind, each in zip(("precision", "recall", "f1"), nan[:3], strict=True):
        theirs |= {f"{kind}/{label}": float(value) for label, value in zip(LABELS, each, strict=True)}
    assert values == pytest.approx(theirs, rel=1e-9, abs=1e-12, nan_ok=True)


def test_choices_are_scored_as_labels_are() -> None:
    found = pairs("single-label", 50)
    as_places = [(LABELS.index(right), {**answer, "label": LABELS.index(answer["label"])}) for right, answer in found]
    ours = measured(make_scorer("choice"), as_places)
    labels = measured(make_scorer("single-label", labels=LABELS), found)
    assert ours == pytest.approx({name: labels[name] for name in ("accuracy", "nll", "brier", "ece")})


def test_many_labels_have_no_interval_each() -> None:
    names = tuple(map(str, range(60)))
    scorer = make_scorer("single-label", labels=names)
    found = pairs("many labels", 300)
    values = measured(scorer, found)
    right, answers = [pair[0] for pair in found], [pair[1]["label"] for pair in found]
    assert values["f1_macro"] == pytest.approx(oracle.f1_score(right, answers, average="macro"))
    assert "roc_auc" not in values and not any("/" in name for name in values)
    rows = np.array([scorer.row(*pair) for pair in found])
    of_labels, confused, _ = scorer.tables(rows)
    assert len(of_labels.rows) == 60 and confused.name == "confused"
    for label, answer, times in confused.rows:
        assert times == sum(pair == (label, answer) for pair in zip(right, answers, strict=True)) > 0


def test_confusion_matrix() -> None:
    scorer = make_scorer("single-label", labels=LABELS)
    found = pairs("single-label", 90)
    table = scorer.tables(np.array([scorer.row(*pair) for pair in found]))[1]
    theirs = oracle.confusion_matrix([pair[0] for pair in found], [pair[1]["label"] for pair in found], labels=LABELS)
    assert [list(line[1:]) for line in table.rows] == theirs.tolist() and table.header == ("label", *LABELS)


@settings(max_examples=40, deadline=None)
@seeds
def test_roc_curve(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    scores, positive = random.integers(0, 6, count) / 5, np.append(random.random(count - 1) < 0.5, True)
    if positive.all():
        return
    ours, theirs = roc_curve(scores, positive), oracle.roc_curve(positive, scores, drop_intermediate=False)
    for each, expected in zip(ours, theirs, strict=True):
        assert each == pytest.approx(expected)


def test_curves_of_a_scorer() -> None:
    scorer: Any = make_scorer("single-label", labels=LETTERS)
    rows = np.array(
        [
            scorer.row(LETTERS[place % 3], {"label": "a", "probabilities": [1 - place / 9, place / 9, 0]})
            for place in range(9)
        ]
    )
    assert set(scorer.roc(rows)) == set(LETTERS)
    scorer = make_scorer("single-label", labels=LETTERS[:2])
    rows = np.array(
        [
            scorer.row(LETTERS[place > 4], {"label": "a", "probabilities": [1 - place / 9, place / 9]})
            for place in range(9)
        ]
    )
    (false, true) = scorer.roc(rows)["b"]
    assert (false[true == 1][0], true[-1]) == (0, 1)
