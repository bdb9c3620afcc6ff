"""Metrics of numbers: correlations, errors and the share of explained variance.

Equal to scipy's and scikit-learn's. Shapes: N examples, C classes of the head (targets), M numbers of an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from plainformer.errors import InputError
from plainformer.evaluate.base import Measure, Metric, Numbers, Scorer, ratio, taken
from plainformer.evaluate.labels import checked_labels, mean_of
from plainformer.evaluate.ranks import correlation, spearman, varies

_CONSTANT = "the references, or the answers, are all the same"
_METRICS = (
    Metric("pearson", undefined=_CONSTANT),
    Metric("spearman", undefined=_CONSTANT),
    Metric("mean_absolute_error", "lower"),
    Metric("rmse", "lower"),
    Metric("r2", undefined="the references are all the same"),
)


class Regression(Scorer):
    """One number for each example, or one for each of several targets.

    A reference and an answer are a number, or a list of them. Metrics of several targets are the means over those that define
    them, and each target's own are "pearson/TARGET".

    Args:
        labels: names of the targets; ("value",) by default.
    """

    name = "regression"

    def __init__(self, labels: Sequence[str] = ("value",)) -> None:
        self.labels = checked_labels(labels)
        self.columns = tuple(f"{side}({label})" for side in ("reference", "answer") for label in self.labels)
        self.metrics = _METRICS
        if len(self.labels) > 1:
            self.metrics += tuple(
                Metric(f"{each.name}/{label}", each.better, each.undefined)
                for each in _METRICS
                for label in self.labels
            )

    def settings(self) -> Mapping[str, Any]:
        return {"labels": list(self.labels)}

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return the right numbers and the given ones. Raises InputError: another number of them, or one that is not finite."""
        sides = [np.atleast_1d(np.asarray(side, dtype=np.float64)) for side in (reference, answer)]
        for side in sides:
            if side.shape != (len(self.labels),) or not np.isfinite(side).all():
                raise InputError(
                    f"{side.tolist()} is not {len(self.labels)} finite numbers", "give one for each target"
                )
        return np.concatenate(sides).tolist()

    def measure(self, rows_NM: Numbers) -> Measure:
        size = len(self.labels)
        targets = [_target(taken(rows_NM, k), taken(rows_NM, size + k)) for k in range(size)]

        def measured(weights_N: Numbers) -> dict[str, float]:
            own = [target(weights_N) for target in targets]
            values = {metric.name: mean_of([each[metric.name] for each in own]) for metric in _METRICS}
            if size > 1:
                values |= {
                    f"{n.name}/{k}": each[n.name] for n in _METRICS for k, each in zip(self.labels, own, strict=True)
                }
            return values

        return measured

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        name, _, label = metric.partition("/")
        if name != "mean_absolute_error":
            return None
        errors_NC = np.abs(rows_NM[:, : len(self.labels)] - rows_NM[:, len(self.labels) :])
        return errors_NC[:, self.labels.index(label)] if label else errors_NC.mean(-1)


def _target(true_N: Numbers, given_N: Numbers) -> Callable[[Numbers], dict[str, float]]:
    """Return what gives the metrics of one target."""
    error_N, ranked = given_N - true_N, spearman(true_N, given_N)
    errors_N2 = np.stack((np.abs(error_N), error_N**2), -1)

    def measured(weights_N: Numbers) -> dict[str, float]:
        total = float(weights_N.sum())
        absolute, squared = (float(each) for each in weights_N @ errors_N2)
        explained = float("nan")
        if varies(weights_N, true_N):
            mean = weights_N @ true_N / total
            explained = 1 - squared / float(weights_N @ (true_N - mean) ** 2)
        return {
            "pearson": correlation(weights_N, true_N, given_N),
            **ranked(weights_N),
            "mean_absolute_error": ratio(absolute, total),
            "rmse": float(np.sqrt(ratio(squared, total))),
            "r2": explained,
        }

    return measured
