"""Metrics of several labels for each example: F1 over labels and of examples, subset accuracy, ROC-AUC.

Equal to scikit-learn's on indicator matrices. Shapes: N examples, C classes, M numbers of an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plainformer.errors import InputError
from plainformer.evaluate.base import Measure, Metric, Numbers, Scorer, Table
from plainformer.evaluate.counts import (
    average_metrics,
    label_metrics,
    label_table,
    label_values,
    of_labels,
    over_labels,
)
from plainformer.evaluate.labels import MOST_LABELS, checked_labels, mean_of, place_of
from plainformer.evaluate.ranks import Area

_MEANS = ("f1_samples", "subset_accuracy", "hamming_loss")


class MultiLabel(Scorer):
    """Any number of labels for each example.

    A reference is a list of labels; an answer is {"labels": [...], "probabilities": [...]}, one for each of `labels`, each of its
    own. "f1_samples" is the mean of the examples' own F1: 1 where there is nothing to find and nothing was found
    (scikit-learn's `zero_division=1`). Means over labels are over those that occur (see `counts`).

    Args:
        labels: all that can be given. probabilities: whether answers have them.
    """

    name = "multi-label"

    def __init__(self, labels: Sequence[str], probabilities: bool = True) -> None:
        self.labels, self.probabilities = checked_labels(labels), probabilities
        self.places = {label: place for place, label in enumerate(self.labels)}
        self.few = len(self.labels) <= MOST_LABELS
        kinds = ("is", "given", "p")[: 3 if probabilities else 2]
        self.columns = tuple(f"{kind}({label})" for kind in kinds for label in self.labels)
        averages = average_metrics()
        first = next(each for each in averages if each.name == "f1_micro")
        self.metrics = (first, *(each for each in averages if each is not first))
        self.metrics += (Metric("f1_samples"), Metric("subset_accuracy"), Metric("hamming_loss", "lower"))
        if probabilities and self.few:
            self.metrics += (Metric("roc_auc", undefined="no label has both examples with and without it"),)
        self.metrics += label_metrics(self.labels) if self.few else ()

    def settings(self) -> Mapping[str, Any]:
        return {"labels": list(self.labels), "probabilities": self.probabilities}

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return 1 for each right label, 1 for each given one, and all probabilities. Raises InputError: an unknown label."""
        found = np.zeros(len(self.columns))
        size = len(self.labels)
        for start, labels in ((0, reference), (size, answer["labels"])):
            found[[start + place_of(label, self.places) for label in labels]] = 1.0
        if self.probabilities:
            chances_C = np.asarray(answer["probabilities"], dtype=np.float64)
            if chances_C.shape != (size,) or not ((chances_C >= 0) & (chances_C <= 1)).all():
                raise InputError(f"an answer has probabilities {chances_C.tolist()}", f"give {size} from 0 to 1")
            found[2 * size :] = chances_C
        return found.tolist()

    def measure(self, rows_NM: Numbers) -> Measure:
        size = len(self.labels)
        true_NC, found_NC = np.array(rows_NM[:, :size]), np.array(rows_NM[:, size : 2 * size])
        right_NC, means_N3 = true_NC * found_NC, self._means(rows_NM)
        areas = []
        if self.probabilities and self.few:
            areas = [Area(np.array(rows_NM[:, 2 * size + label]), true_NC[:, label] > 0) for label in range(size)]

        def measured(weights_N: Numbers) -> dict[str, float]:
            counts = weights_N @ right_NC, weights_N @ found_NC, weights_N @ true_NC
            values = over_labels(*counts)
            means = (weights_N @ means_N3) / (weights_N.sum() or np.nan)
            values |= zip(_MEANS, map(float, means), strict=True)
            if areas:
                values["roc_auc"] = mean_of([area(weights_N) for area in areas])
            return {**values, **(label_values(self.labels, of_labels(*counts)) if self.few else {})}

        return measured

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        return self._means(rows_NM)[:, _MEANS.index(metric)] if metric in _MEANS else None

    def tables(self, rows_NM: Numbers) -> list[Table]:
        true_NC, found_NC = rows_NM[:, : len(self.labels)], rows_NM[:, len(self.labels) : 2 * len(self.labels)]
        return [label_table(self.labels, (true_NC * found_NC).sum(0), found_NC.sum(0), true_NC.sum(0))]

    def _means(self, rows_NM: Numbers) -> Numbers:
        """Return each example's F1, whether it is wholly right, and the share of labels that are wrong, (N, 3)."""
        true_NC, found_NC = rows_NM[:, : len(self.labels)], rows_NM[:, len(self.labels) : 2 * len(self.labels)]
        both_N, size_N = (true_NC * found_NC).sum(-1), (true_NC + found_NC).sum(-1)
        wrong_N = size_N - 2 * both_N
        f1_N = np.divide(2 * both_N, size_N, out=np.ones(len(size_N)), where=size_N > 0)
        return np.stack((f1_N, wrong_N == 0, wrong_N / len(self.labels)), -1)
