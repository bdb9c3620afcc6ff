"""Metrics of order: the area under the ROC curve and Spearman's correlation, of weighted examples sorted once.

Equal scores share a place. Shapes: N examples, G groups of equal scores.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plainformer.evaluate.base import Measure, Numbers, ratio


class Order:
    """Values in ascending order, with groups of equal ones.

    Attributes:
        places_N: which value is at each place. ends_G: the last place of each group. Both of four bytes a number: a bootstrap
            of 100,000 examples keeps several of them.
    """

    def __init__(self, values_N: npt.ArrayLike) -> None:
        values = np.asarray(values_N, dtype=np.float64)
        self.places_N = np.argsort(values, kind="stable").astype(np.int32)
        last_N = np.append(np.diff(values[self.places_N]) != 0, True)[: len(values)]
        self.ends_G = np.flatnonzero(last_N).astype(np.int32)

    def of_groups(self, values_N: Numbers) -> Numbers:
        """Return the value of each group, (G,), of the values that were ordered."""
        return np.asarray(values_N[self.places_N[self.ends_G]])

    def totals(self, weights_N: Numbers) -> Numbers:
        """Return the weight of each group and of all before it, (G,)."""
        return np.asarray(np.cumsum(weights_N[self.places_N])[self.ends_G], dtype=np.float64)

    def group_of(self) -> npt.NDArray[np.int32]:
        """Return the group of each value, (N,)."""
        found = np.empty(len(self.places_N), dtype=np.int32)
        sizes = np.diff(self.ends_G, prepend=-1)
        found[self.places_N] = np.repeat(np.arange(len(self.ends_G), dtype=np.int32), sizes)
        return found


class Area:
    """The area under the ROC curve: how likely a positive example has a higher score than a negative one, ties half.

    Equal to scikit-learn's `roc_auc_score`; NaN where one kind is missing (Hanley & McNeil 1982).
    """

    def __init__(self, scores_N: Numbers, positive_N: npt.NDArray[np.bool_]) -> None:
        order = Order(scores_N)
        group_N, count = order.group_of(), len(order.ends_G)
        has = [np.bincount(group_N[kind_N], minlength=count) > 0 for kind_N in (~positive_N, positive_N)]
        # Neighbouring groups of one kind alone are one cell: their order has no effect, and fewer cells are sooner added.
        same_G = (np.diff(has[0], prepend=False) == 0) & (np.diff(has[1], prepend=False) == 0) & ~(has[0] & has[1])
        cell_G = np.cumsum(~same_G, dtype=np.int32) - 1 if count else np.zeros(0, dtype=np.int32)
        self.cells = int(cell_G[-1]) + 1 if count else 0
        self.place_N = cell_G[group_N] * 2 + positive_N

    def __call__(self, weights_N: Numbers) -> float:
        negative, positive = np.bincount(self.place_N, weights_N, minlength=2 * self.cells).reshape(-1, 2).T
        below = np.cumsum(negative) - negative / 2
        return ratio(float(positive @ below), float(positive.sum() * negative.sum()))


def roc_curve(scores_N: Numbers, positive_N: npt.NDArray[np.bool_]) -> tuple[Numbers, Numbers, Numbers]:
    """Return false-positive rates, true-positive rates and thresholds from the strictest on, (G + 1,) each.

    What scores at least the threshold is called positive; the first threshold, infinite, calls nothing so. NaN where a kind
    of example is missing.
    """
    falling_N = -np.asarray(scores_N, dtype=np.float64)
    order = Order(falling_N)
    true_G = np.append(0.0, order.totals(positive_N.astype(np.float64)))
    false_G = np.append(0.0, order.totals((~positive_N).astype(np.float64)))
    with np.errstate(invalid="ignore"):
        rates = false_G / false_G[-1], true_G / true_G[-1]
    return *rates, np.append(np.inf, -order.of_groups(falling_N))


def varies(weights_N: Numbers, values_N: Numbers) -> bool:
    """Return whether values of any weight differ. The computed variance of equal values need not be exactly 0."""
    for part in (slice(64), slice(None)):  # nearly always the first few say so
        there = values_N[part][weights_N[part] > 0]
        if len(there) and there.min() < there.max():
            return True
    return False


def correlation(weights_N: Numbers, x_N: Numbers, y_N: Numbers) -> float:
    """Return Pearson's correlation; NaN of fewer than two examples, or where a side is constant."""
    if not (varies(weights_N, x_N) and varies(weights_N, y_N)):
        return float("nan")
    total = weights_N.sum()
    x_N, y_N = x_N - weights_N @ x_N / total, y_N - weights_N @ y_N / total
    wide_x, wide_y = float(weights_N @ x_N**2), float(weights_N @ y_N**2)
    return ratio(float((weights_N * x_N) @ y_N), np.sqrt(wide_x) * np.sqrt(wide_y))


def spearman(x_N: Numbers, y_N: Numbers) -> Measure:
    """Return what gives Spearman's correlation of ranks, equal values sharing their mean rank, as {"spearman": ...}."""
    sides = [(order, order.group_of()) for order in (Order(x_N), Order(y_N))]

    def measured(weights_N: Numbers) -> dict[str, float]:
        ranks = []
        for order, group_N in sides:
            totals_G = order.totals(weights_N)
            middle_G = (totals_G + np.append(0.0, totals_G[:-1])[: len(totals_G)]) / 2
            ranks.append(middle_G[group_N])
        return {"spearman": correlation(weights_N, *ranks)}

    return measured
