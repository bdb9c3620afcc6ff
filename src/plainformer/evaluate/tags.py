"""Metrics of words' tags that mark no entities, such as parts of speech: accuracy, and F1 of each tag.

Equal to scikit-learn's over all words. Shapes: N sentences, C classes (tags), M numbers of a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plainformer.errors import InputError
from plainformer.evaluate.base import Measure, Metric, Numbers, OfSums, Scorer, Table, ratio
from plainformer.evaluate.counts import (
    average_metrics,
    label_metrics,
    label_table,
    label_values,
    of_labels,
    over_labels,
)
from plainformer.evaluate.labels import checked_labels, place_of


class Tags(Scorer):
    """Tags of words. A reference and an answer are the tags of a sentence's words.

    Args:
        labels: all tags; those that no word has are left out of means over tags.
    """

    name = "tags"

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = checked_labels(labels)
        self.places = {label: place for place, label in enumerate(self.labels)}
        counts = [f"{kind}({label})" for kind in ("right", "found", "true") for label in self.labels]
        self.columns = ("words", "right", *counts)
        why = "there are no words"
        self.metrics = (Metric("accuracy", undefined=why), *average_metrics(("macro", "weighted")))
        self.metrics += label_metrics(self.labels)

    def settings(self) -> Mapping[str, Any]:
        return {"labels": list(self.labels)}

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return words and right ones; then of each tag how many are right, found and true.

        Raises InputError: another number of tags, or one that `labels` lack.
        """
        if len(reference) != len(answer):
            what = f"a sentence has {len(reference)} tags and {len(answer)} answers"
            raise InputError(what, "give one for each word")
        counts = np.zeros((3, len(self.labels)))
        for right, given in zip(reference, answer, strict=True):
            true, found = place_of(right, self.places), place_of(given, self.places)
            counts[0, true] += true == found
            counts[1, found] += 1
            counts[2, true] += 1
        return [float(len(reference)), float(counts[0].sum()), *counts.reshape(-1).tolist()]

    def measure(self, rows_NM: Numbers) -> Measure:
        return OfSums(rows_NM, self._measured)

    def _measured(self, sums_M: Numbers) -> dict[str, float]:
        counts = sums_M[2:].reshape(3, -1)
        over = {name: value for name, value in over_labels(*counts).items() if not name.endswith("_micro")}
        accuracy = ratio(float(sums_M[1]), float(sums_M[0]))
        return {"accuracy": accuracy, **over, **label_values(self.labels, of_labels(*counts))}

    def tables(self, rows_NM: Numbers) -> list[Table]:
        right_C, found_C, true_C = np.asarray(rows_NM[:, 2:]).sum(0).reshape(3, -1)
        return [label_table(self.labels, right_C, found_C, true_C, name="tags")]
