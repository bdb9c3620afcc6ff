"""F1 of entities, as seqeval counts them (Nakayama 2018), in its default mode and strictly by a scheme.

An entity is right where its words and its type are. The default mode reads tags as the CoNLL-2000 script does, where any tag
but O belongs to an entity, and L and U mean what E and S do (seqeval's default mode does not know them); strictly, what breaks
the rules of the scheme is not one.

Shapes: N sentences, C classes (types),
M numbers of a sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plainformer.config.tag_schemes import SCHEMES, check_scheme, read_tags, scheme_of, types_of
from plainformer.config.values import check_choice
from plainformer.errors import InputError, UsageError, opt
from plainformer.evaluate.base import Measure, Metric, Numbers, OfSums, Scorer, Table, ratio
from plainformer.evaluate.counts import KINDS, label_metrics, label_table, label_values, of_labels, over_labels
from plainformer.evaluate.labels import checked_labels

_NONE = {
    "precision": "no entity was found",
    "recall": "the references have no entities",
    "f1": "neither side has entities",
}
_OTHERS = ("f1_macro", "f1_weighted")
_TYPE = {"precision": "none was found", "recall": "there are none", "f1": "there are none, and none was found"}


class Entities(Scorer):
    """Entities in sentences of tagged words.

    A reference and an answer are the tags of a sentence's words: ["B-PER", "I-PER", "O"].

    Args:
        labels: all tags. scheme: by which entities are read strictly; by default the one whose prefixes the labels have.
            Labels that are of no scheme have no strict metrics.
    """

    name = "entities"

    def __init__(self, labels: Sequence[str], scheme: str | None = None) -> None:
        self.labels = checked_labels(labels)
        self.types = types_of(self.labels)
        if not self.types:
            raise UsageError(f"{opt('labels', list(labels))} name no entity", "are they those of another task?")
        if scheme is not None:
            check_choice("scheme", scheme, SCHEMES)
            check_scheme(scheme, self.labels)
        self.scheme = scheme or scheme_of(self.labels)
        self.places = {kind: place for place, kind in enumerate(self.types)}
        self.modes = ("", "_strict") if self.scheme else ("",)
        counts = [
            f"{count}{mode}({kind})"
            for mode in self.modes
            for count in ("right", "found", "true")
            for kind in self.types
        ]
        self.columns = ("words", "right", *counts)
        metrics = [Metric(kind, undefined=_NONE[kind]) for kind in ("f1", "precision", "recall")]
        metrics += [Metric(name, undefined=_NONE["f1"]) for name in _OTHERS]
        metrics += [Metric("accuracy", undefined="there are no words")]
        if self.scheme:
            metrics += [
                Metric(f"{each.name}_strict", undefined=each.undefined, beside=each.name) for each in metrics[:-1]
            ]
        self.metrics = (*metrics, *label_metrics(self.types, why=_TYPE))

    def settings(self) -> Mapping[str, Any]:
        return {"labels": list(self.labels), "scheme": self.scheme}

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return words, right tags, and how many entities of each type are right, found and true; then the same strictly.

        Raises InputError: another number of tags, or a type that the labels lack.
        """
        if len(reference) != len(answer):
            raise InputError(
                f"a sentence has {len(reference)} tags and {len(answer)} answers", "give one for each word"
            )
        same = sum(right == given for right, given in zip(reference, answer, strict=True))
        counts: list[float] = []
        for mode in self.modes:
            true, found = (set(read_tags(tags, self.scheme if mode else None)) for tags in (reference, answer))
            for entities in (true & found, found, true):
                counts += self._of_types(Counter(kind for _, _, kind in entities))
        return len(reference), same, *counts

    def _of_types(self, counts: Counter[str]) -> list[float]:
        if counts.keys() - self.places.keys():
            what = f"the model has no entities of type {min(counts.keys() - self.places.keys())!r}"
            raise InputError(what, f"it has {', '.join(self.types)}; give the types of the data those names")
        return [float(counts[kind]) for kind in self.types]

    def measure(self, rows_NM: Numbers) -> Measure:
        return OfSums(rows_NM, self._measured)

    def _measured(self, sums_M: Numbers) -> dict[str, float]:
        values = {"accuracy": ratio(float(sums_M[1]), float(sums_M[0]))}
        for mode, counts in zip(self.modes, sums_M[2:].reshape(len(self.modes), 3, -1), strict=True):
            over = over_labels(*counts)
            values |= {f"{kind}{mode}": over[f"{kind}_micro"] for kind in KINDS}
            values |= {f"{name}{mode}": over[name] for name in _OTHERS}
            if not mode:
                values |= label_values(self.types, of_labels(*counts))
        return values

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        return None

    def tables(self, rows_NM: Numbers) -> list[Table]:
        counts_M = np.asarray(rows_NM[:, 2:]).sum(0).reshape(len(self.modes), 3, -1)
        (right_C, found_C, true_C), *strict = counts_M
        tables = [label_table(self.types, right_C, found_C, true_C, name="types")]
        for right_C, found_C, true_C in strict:
            if (counts_M[0] != counts_M[1]).any():
                tables.append(label_table(self.types, right_C, found_C, true_C, name="strict_types"))
        return tables
