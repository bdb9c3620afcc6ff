"""Metrics of one label for each example: accuracy, F1, Matthews' correlation, ROC-AUC, and calibration.

Equal to scikit-learn's. Shapes: N examples, C classes, M numbers of an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.errors import InputError, UsageError, did_you_mean, opt
from plainformer.evaluate.base import Measure, Metric, Numbers, Scorer, Table, Whole, ratio, taken
from plainformer.evaluate.calibration import Reliability, brier, nats
from plainformer.evaluate.counts import (
    average_metrics,
    label_metrics,
    label_table,
    label_values,
    matthews,
    of_labels,
    over_labels,
)
from plainformer.evaluate.ranks import Area, roc_curve

# With more labels an example's row keeps no probabilities, so that there is no ROC-AUC, and F1 of a label has no interval.
MOST_LABELS = 50
_FIRST = ("reference", "answer", "confidence", "nll", "brier")
_CALIBRATION = (Metric("nll", "lower"), Metric("ece", "lower"), Metric("brier", "lower"))


class SingleLabel(Scorer):
    """One label for each example.

    A reference is a label; an answer is {"label": ..., "probabilities": [...]}, in the order of `labels`.

    Args:
        labels: all that can be given; those that no example has are left out of means over labels (see `counts`).
        probabilities: whether answers have them; without, there is neither ROC-AUC nor calibration.
    """

    name = "single-label"

    def __init__(self, labels: Sequence[str], probabilities: bool = True) -> None:
        self.labels, self.probabilities = checked_labels(labels), probabilities
        self.places = {label: place for place, label in enumerate(self.labels)}
        few = len(self.labels) <= MOST_LABELS
        self.columns = _FIRST if probabilities else _FIRST[:2]
        self.kept = probabilities and few
        why = "the references, or the answers, all have the same label"
        metrics = [Metric("accuracy"), Metric("f1_macro"), Metric("mcc", undefined=why)]
        metrics += [each for each in average_metrics(beside="accuracy") if each.name != "f1_macro"]
        if self.kept:
            self.columns += tuple(f"p({label})" for label in self.labels)
            metrics += [Metric("roc_auc", undefined="no label has both examples with and without it")]
        self.metrics = (*metrics, *_CALIBRATION * probabilities, *(label_metrics(self.labels) if few else ()))

    def settings(self) -> Mapping[str, Any]:
        return {"labels": list(self.labels), "probabilities": self.probabilities}

    def notes(self) -> Sequence[str]:
        return of_many_labels(len(self.labels))

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return the places of the right and the given label, how sure, nats and Brier score, and all probabilities.

        Raises InputError: a label that `labels` lack, or probabilities that are none.
        """
        right, given = (place_of(label, self.places) for label in (reference, answer["label"]))
        if not self.probabilities:
            return right, given
        chances_C = probabilities_of(answer, len(self.labels))
        first = (right, given, chances_C[given], nats(chances_C[right]), brier(chances_C, right))
        return (*first, *chances_C) if self.kept else first

    def measure(self, rows_NM: Numbers) -> Measure:
        size, few = len(self.labels), len(self.labels) <= MOST_LABELS
        places_N = whole(rows_NM, 0) * size + whole(rows_NM, 1)
        areas = [Area(*side) for side in self._sides(rows_NM)]
        sure = Reliability(taken(rows_NM, 2), _right(rows_NM)) if self.probabilities else None
        means_N2 = taken(rows_NM, slice(3, 5)) if self.probabilities else None

        def measured(weights_N: Numbers) -> dict[str, float]:
            confusion = confusion_of(places_N, size, weights_N)
            counts = np.diag(confusion), confusion.sum(0), confusion.sum(1)
            total = float(weights_N.sum())
            values = {
                "accuracy": ratio(float(counts[0].sum()), total),
                "mcc": matthews(confusion),
                **over_labels(*counts),
            }
            if areas:
                values["roc_auc"] = mean_of([area(weights_N) for area in areas])
            if sure is not None and means_N2 is not None:
                nll, square = weights_N @ means_N2
                values |= {"nll": ratio(nll, total), "ece": sure.error(weights_N), "brier": ratio(square, total)}
            return {**values, **(label_values(self.labels, of_labels(*counts)) if few else {})}

        return measured

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        if metric in ("accuracy", "f1_micro", "precision_micro", "recall_micro"):
            return _right(rows_NM).astype(np.float64)
        return column(self, rows_NM, metric) if metric in ("nll", "brier") and self.probabilities else None

    def tables(self, rows_NM: Numbers) -> list[Table]:
        confusion = confusion_of(whole(rows_NM, 0) * len(self.labels) + whole(rows_NM, 1), len(self.labels))
        counts = np.diag(confusion), confusion.sum(0), confusion.sum(1)
        found = [label_table(self.labels, *counts), confusion_table(self.labels, confusion)]
        if self.probabilities:
            found.append(Reliability(taken(rows_NM, 2), _right(rows_NM)).table())
        return found

    def _sides(self, rows_NM: Numbers) -> Iterator[tuple[Numbers, Any]]:
        """Yield scores and what is positive, of the second of two labels or of each of several against the others."""
        if not self.kept:
            return
        for label in (1,) if len(self.labels) == 2 else range(len(self.labels)):
            yield taken(rows_NM, len(_FIRST) + label), taken(rows_NM, 0) == label

    def roc(self, rows_NM: Numbers) -> dict[str, tuple[Numbers, Numbers]]:
        """Return the ROC curve, false against true positive rates, of the second of two labels or of each of several."""
        names = self.labels[1:] if len(self.labels) == 2 else self.labels
        return {name: roc_curve(*side)[:2] for name, side in zip(names, self._sides(rows_NM), strict=False)}


class Choice(Scorer):
    """One of several choices, whose number may differ between questions.

    A reference is the place of the right choice; an answer is {"label": its place, "probabilities": one for each choice}.
    """

    name = "choice"
    columns = ("right", "confidence", "nll", "brier")
    metrics = (Metric("accuracy"), *_CALIBRATION)

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return whether the answer is right, how sure, nats and Brier score. Raises InputError: there is no such choice."""
        chances_C = probabilities_of(answer, None)
        right, given = (int(place) for place in (reference, answer["label"]))
        for place in (right, given):
            if not 0 <= place < len(chances_C):
                raise InputError(f"there is no choice {place} among {len(chances_C)}", "places are counted from 0")
        return float(right == given), chances_C[given], nats(chances_C[right]), brier(chances_C, right)

    def measure(self, rows_NM: Numbers) -> Measure:
        sure, means_N3 = Reliability(taken(rows_NM, 1), taken(rows_NM, 0) > 0), taken(rows_NM, (0, 2, 3))

        def measured(weights_N: Numbers) -> dict[str, float]:
            means = (weights_N @ means_N3) / (weights_N.sum() or np.nan)
            values = dict(zip(("accuracy", "nll", "brier"), map(float, means), strict=True))
            return {**values, "ece": sure.error(weights_N)}

        return measured

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        if metric == "ece":
            return None
        return column(self, rows_NM, "right" if metric == "accuracy" else metric)

    def tables(self, rows_NM: Numbers) -> list[Table]:
        return [Reliability(taken(rows_NM, 1), taken(rows_NM, 0) > 0).table()]


def of_many_labels(count: int) -> Sequence[str]:
    """Return what is not measured of that many labels."""
    if count <= MOST_LABELS:
        return ()
    what = "neither ROC-AUC nor intervals of single labels"
    return (f"of {count} labels, more than {MOST_LABELS}, there are {what}; the table of labels has their values",)


def _right(rows_NM: Numbers) -> npt.NDArray[np.bool_]:
    return taken(rows_NM, 0) == taken(rows_NM, 1)


def whole(rows_NM: Numbers, place: int) -> Whole:
    """Return a column of whole numbers, (N,)."""
    return taken(rows_NM, place).astype(np.int64)


def column(scorer: Scorer, rows_NM: Numbers, name: str) -> Numbers:
    """Return a column by its name, (N,)."""
    return taken(rows_NM, scorer.columns.index(name))


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of those that are defined, NaN of none."""
    known = [value for value in values if value == value]
    return ratio(sum(known), len(known))


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return labels; refuse none, and one that occurs twice."""
    found = tuple(labels)
    if not found or len(set(found)) < len(found):
        raise UsageError(
            f"{opt('labels', list(found))} has {'a label twice' if found else 'nothing'}", "give each once"
        )
    return found


def place_of(label: Any, places: Mapping[str, int]) -> int:
    """Return the place of a label. Raises InputError."""
    if label not in places:
        known = did_you_mean(str(label), places) or f"known: {', '.join(list(places)[:20])}"
        raise InputError(f"the model has no label {label!r}", known)
    return places[label]


def probabilities_of(answer: Mapping[str, Any], count: int | None) -> Numbers:
    """Return an answer's probabilities, (C,). Raises InputError: another number of them, or they do not add up to 1."""
    found = np.asarray(answer["probabilities"], dtype=np.float64)
    if found.ndim != 1 or (count is not None and len(found) != count):
        raise InputError(f"an answer has {found.size} probabilities", f"give one for each of {count} labels")
    if not (found >= 0).all() or not abs(found.sum() - 1) <= 1e-3:
        raise InputError(f"probabilities are {found.tolist()[:5]}", "give numbers from 0 to 1 that add up to 1")
    return found


def confusion_of(places_N: Whole, size: int, weights_N: Numbers | None = None) -> Numbers:
    """Return how often each label (rows) was given each label (columns), (C, C). `places_N`: right label · C + given label."""
    found = np.bincount(places_N, weights_N, minlength=size * size)
    return np.asarray(found, dtype=np.float64).reshape(size, size)


def confusion_table(labels: Sequence[str], confusion_CC: Numbers) -> Table:
    """Return the confusion matrix; of more than 50 labels the pairs that are confused most often."""
    counts = confusion_CC.astype(np.int64)
    if len(labels) <= MOST_LABELS:
        rows = tuple((label, *line) for label, line in zip(labels, counts.tolist(), strict=True))
        return Table("confusion", ("label", *labels), rows, "Lines are right labels, columns are answers.")
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_LABELS]
    pairs = [(labels[place // len(labels)], labels[place % len(labels)], int(wrong.flat[place])) for place in order]
    return Table("confused", ("label", "answer", "times"), tuple(pair for pair in pairs if pair[2]))
