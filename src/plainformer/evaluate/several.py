"""Metrics of several labels for each example: F1 over labels and of examples, subset accuracy, ROC-AUC.

Equal to scikit-learn's on indicator matrices. Shapes: N examples, C classes, M numbers of an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plainformer.errors import InputError
from plainformer.evaluate.base import Measure, Metric, Numbers, Scorer, Table, taken
from plainformer.evaluate.calibration import Reliability, nats
from plainformer.evaluate.counts import (
    average_metrics,
    label_metrics,
    label_table,
    label_values,
    of_labels,
    over_labels,
)
from plainformer.evaluate.labels import MOST_LABELS, checked_labels, column, mean_of, of_many_labels, place_of
from plainformer.evaluate.ranks import Area

_MEANS_OF_CHANCES = ("nll", "brier")
_MEANS = ("f1_samples", "subset_accuracy", "hamming_loss")


class MultiLabel(Scorer):
    """Any number of labels for each example.

    A reference is a list of labels; an answer is {"labels": [...], "probabilities": [...]}, one for each of `labels`, each of its
    own. "f1_samples" is the mean of the examples' own F1: 1 where there is nothing to find and nothing was found
    (scikit-learn's `zero_division=1`). Means over labels are over those that occur (see `counts`). Calibration is that of each
    label's own probability: "nll" and "brier" are means over labels and examples.

    Args:
        labels: all that can be given. probabilities: whether answers have them.
    """

    name = "multi-label"
    in_training = {"f1": "f1_micro"}  # noqa: RUF012

    def __init__(self, labels: Sequence[str], probabilities: bool = True) -> None:
        self.labels, self.probabilities = checked_labels(labels), probabilities
        self.places = {label: place for place, label in enumerate(self.labels)}
        self.few = len(self.labels) <= MOST_LABELS
        self.means = (*_MEANS, *_MEANS_OF_CHANCES * probabilities)
        # With many labels a row keeps no probabilities, as those of one label do.
        self.kept = probabilities and self.few
        self.columns = tuple(f"{kind}({label})" for kind in ("is", "given") for label in self.labels)
        self.columns += (*self.means, *(f"p({label})" for label in self.labels if self.kept))
        averages = average_metrics()
        first = next(each for each in averages if each.name == "f1_micro")
        self.metrics = (first, *(each for each in averages if each is not first))
        self.metrics += (Metric("f1_samples"), Metric("subset_accuracy"), Metric("hamming_loss", "lower"))
        if self.kept:
            self.metrics += (
                Metric("roc_auc", undefined="no label has both examples with and without it"),
                Metric("ece", "lower"),
            )
        self.metrics += tuple(Metric(name, "lower") for name in _MEANS_OF_CHANCES * probabilities)
        self.metrics += label_metrics(self.labels) if self.few else ()

    def settings(self) -> Mapping[str, Any]:
        return {"labels": list(self.labels), "probabilities": self.probabilities}

    def notes(self) -> Sequence[str]:
        return of_many_labels(len(self.labels))

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return 1 for each right label, 1 for each given one; F1, whether all are right, the share of wrong ones; then nats and
        Brier score, means over labels, and all probabilities.

        Raises InputError: an unknown label, or probabilities that are none.
        """
        size = len(self.labels)
        true_C, found_C = np.zeros(size), np.zeros(size)
        for side_C, labels in ((true_C, reference), (found_C, answer["labels"])):
            side_C[[place_of(label, self.places) for label in labels]] = 1.0
        both, together = float(true_C @ found_C), float((true_C + found_C).sum())
        wrong = together - 2 * both
        first = [*true_C, *found_C, 2 * both / together if together else 1.0, float(not wrong), wrong / size]
        if not self.probabilities:
            return first
        chances_C = np.asarray(answer["probabilities"], dtype=np.float64)
        if chances_C.shape != (size,) or not ((chances_C >= 0) & (chances_C <= 1)).all():
            raise InputError(f"an answer has probabilities {chances_C.tolist()[:5]}", f"give {size} from 0 to 1")
        own_C = np.where(true_C > 0, chances_C, 1 - chances_C)
        first += [sum(map(nats, own_C)) / size, float(((1 - own_C) ** 2).mean())]
        return [*first, *chances_C] if self.kept else first

    def measure(self, rows_NM: Numbers) -> Measure:
        size, (true_NC, found_NC) = len(self.labels), self._sides(rows_NM)
        right_NC, means_NM = true_NC * found_NC, taken(rows_NM, slice(2 * size, 2 * size + len(self.means)))
        areas, sure = [], self._reliability(rows_NM)
        if self.kept:
            scores_NC = np.array(rows_NM[:, -size:])
            areas = [Area(scores_NC[:, label], true_NC[:, label] > 0) for label in range(size)]

        def measured(weights_N: Numbers) -> dict[str, float]:
            counts = weights_N @ right_NC, weights_N @ found_NC, weights_N @ true_NC
            values = over_labels(*counts)
            means = (weights_N @ means_NM) / (weights_N.sum() or np.nan)
            values |= zip(self.means, map(float, means), strict=True)
            if sure is not None:
                values |= {
                    "roc_auc": mean_of([area(weights_N) for area in areas]),
                    "ece": sure.error(weights_N.repeat(size)),
                }
            return {**values, **(label_values(self.labels, of_labels(*counts)) if self.few else {})}

        return measured

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        return column(self, rows_NM, metric) if metric in self.means else None

    def tables(self, rows_NM: Numbers) -> list[Table]:
        true_NC, found_NC = self._sides(rows_NM)
        sure = self._reliability(rows_NM)
        found = [label_table(self.labels, (true_NC * found_NC).sum(0), found_NC.sum(0), true_NC.sum(0))]
        return found if sure is None else [*found, sure.table()]

    def _sides(self, rows_NM: Numbers) -> tuple[Numbers, Numbers]:
        """Return which labels are right and which were given, (N, C) each."""
        size = len(self.labels)
        return taken(rows_NM, slice(size)), taken(rows_NM, slice(size, 2 * size))

    def _reliability(self, rows_NM: Numbers) -> Reliability | None:
        """Return how often labels are right by their probabilities, over all labels of all examples."""
        if not self.kept:
            return None
        size = len(self.labels)
        return Reliability(np.array(rows_NM[:, -size:]).reshape(-1), np.array(rows_NM[:, :size]).reshape(-1) > 0)
