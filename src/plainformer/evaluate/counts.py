"""Precision, recall and F1 from counts of right, found and true answers, for each label and over labels.

What scikit-learn calls `zero_division`: a label's precision is undefined (NaN) where it was never given, its recall where it
is nowhere right, its F1 where neither. Means over labels are over those that occur on either side, with 0 for an undefined
precision or recall: scikit-learn's default, without its warning.

Shapes: C classes.
"""

from __future__ import annotations

import math

import numpy as np

from plainformer.evaluate.base import Metric, Numbers, Table, ratio

KINDS = ("precision", "recall", "f1")
_WHY = {
    "precision": "it was never given",
    "recall": "no example has it",
    "f1": "no example has it and none was given it",
}
_WHY_ALL = {"precision": "nothing was found", "recall": "there is nothing to find", "f1": "there is nothing to find"}


def divided(part_C: Numbers, whole_C: Numbers) -> Numbers:
    """Return part / whole, NaN where the whole is 0."""
    return np.divide(part_C, whole_C, out=np.full(len(part_C), np.nan), where=whole_C != 0)


def of_labels(right_C: Numbers, found_C: Numbers, true_C: Numbers) -> dict[str, Numbers]:
    """Return precision, recall and F1 of each label, (C,)."""
    values = divided(right_C, found_C), divided(right_C, true_C), divided(2 * right_C, found_C + true_C)
    return dict(zip(KINDS, values, strict=True))


def over_labels(right_C: Numbers, found_C: Numbers, true_C: Numbers) -> dict[str, float]:
    """Return precision, recall and F1 over labels: of all counts together (micro), and the means of the labels' own.

    "macro" gives each label the same weight, "weighted" as many as there are true ones of it.
    """
    right, found, true = float(right_C.sum()), float(found_C.sum()), float(true_C.sum())
    micro = ratio(right, found), ratio(right, true), ratio(2 * right, found + true)
    values = {f"{kind}_micro": value for kind, value in zip(KINDS, micro, strict=True)}
    own, occurs = of_labels(right_C, found_C, true_C), (found_C + true_C) > 0
    for kind in KINDS:
        known = np.nan_to_num(own[kind])
        values[f"{kind}_macro"] = ratio(float(known[occurs].sum()), float(occurs.sum()))
        values[f"{kind}_weighted"] = ratio(float(known @ true_C), true)
    return values


def label_values(names: tuple[str, ...], own: dict[str, Numbers], suffix: str = "") -> dict[str, float]:
    """Return the labels' values by the names of their metrics: "f1/positive"."""
    return {
        f"{kind}{suffix}/{name}": float(value)
        for kind, values in own.items()
        for name, value in zip(names, values, strict=True)
    }


def label_metrics(names: tuple[str, ...], suffix: str = "", why: dict[str, str] | None = None) -> tuple[Metric, ...]:
    """Return the metrics of `label_values`."""
    return tuple(Metric(f"{kind}{suffix}/{name}", undefined=(why or _WHY)[kind]) for kind in KINDS for name in names)


def average_metrics(kinds: tuple[str, ...] = ("micro", "macro", "weighted"), beside: str = "") -> tuple[Metric, ...]:
    """Return the metrics of `over_labels`; the micro averages of one label for each example all repeat accuracy."""
    return tuple(
        Metric(f"{kind}_{how}", undefined=_WHY_ALL[kind], beside=beside if how == "micro" else "")
        for how in kinds
        for kind in ("f1", "precision", "recall")
    )


def label_table(
    names: tuple[str, ...], right_C: Numbers, found_C: Numbers, true_C: Numbers, name: str = "labels"
) -> Table:
    """Return precision, recall and F1 of each label, how many are true (`support`) and how many were given."""
    own = of_labels(right_C, found_C, true_C)
    rows = zip(names, *(own[kind].tolist() for kind in KINDS), true_C.tolist(), found_C.tolist(), strict=True)
    whole = tuple((*row[:4], int(row[4]), int(row[5])) for row in rows)
    return Table(name, (name.removesuffix("s"), *KINDS, "support", "given"), whole)


def matthews(confusion_CC: Numbers) -> float:
    """Return Matthews' correlation of labels (Gorodkin 2004); NaN where one side is always the same.

    Args:
        confusion_CC: how often each label (rows) was given each label (columns).
    """
    true_C, found_C, total = confusion_CC.sum(1), confusion_CC.sum(0), confusion_CC.sum()
    both = float(np.trace(confusion_CC)) * total - float(true_C @ found_C)
    spread = math.sqrt(max(0.0, total**2 - float(found_C @ found_C))) * math.sqrt(
        max(0.0, total**2 - float(true_C @ true_C))
    )
    return ratio(both, spread)
