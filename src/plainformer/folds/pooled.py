"""Every row answered by the model that was held back from it: the folds' kept evaluations as one. No torch.

Shapes: N rows of all folds, M numbers of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.errors import InputError
from plainformer.evaluate import Interval, bootstrap
from plainformer.evaluate.base import plain_values, summary_metrics
from plainformer.evaluate.kept import Kept


@dataclass(frozen=True)
class Pooled:
    """Metrics of all folds' rows.

    Attributes:
        n: rows. unit, units: what intervals are drawn over, and how many of them there are.
        metrics: of all rows together, with intervals, the main one first. folds: of each fold's rows alone.
        mean, deviation: of the folds' values: their mean and standard deviation. shown: the metrics that people are shown:
            without those of single labels, and those that say the same as another.
    """

    n: int
    unit: str
    units: int
    metrics: Mapping[str, Interval]
    folds: tuple[Mapping[str, float], ...]
    mean: Mapping[str, float]
    deviation: Mapping[str, float]
    shown: tuple[str, ...] = ()

    @property
    def main(self) -> str:
        """Return the name of the main metric."""
        return next(iter(self.metrics))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it; numbers that are not defined are null."""
        metrics = {name: found.to_dict() for name, found in self.metrics.items()}
        folds = {"folds": self.folds, "mean": self.mean, "deviation": self.deviation}
        found = {"n": self.n, "unit": self.unit, "units": self.units, "metrics": metrics, **folds}
        return dict(plain_values(found))


def pool(kept: Sequence[Kept]) -> Pooled:
    """Return the metrics of kept evaluations of different rows, made with one scorer.

    Raises:
        InputError: they were scored in different ways.
    """
    first = kept[0]
    for other in kept[1:]:
        if other.info["scorer"] != first.info["scorer"]:
            what = f"{other.folder} and {first.folder} were not scored alike"
            raise InputError(what, "see that all folds have the same labels: data.labels")
    scorer = first.scorer
    rows_NM = np.concatenate([np.asarray(one.rows) for one in kept])
    units = units_of(kept)
    metrics = bootstrap(rows_NM, scorer.measure, units)
    folds = tuple(scorer.measure(np.asarray(one.rows))(np.ones(len(one))) for one in kept)
    own = {name: [fold.get(name, np.nan) for fold in folds] for name in metrics}
    mean = {name: fmean(values) for name, values in own.items()}
    deviation = {name: _deviation(values) for name, values in own.items()}
    unit = str(first.info["unit"]["name"])
    shown = tuple(summary_metrics({name: found.value for name, found in metrics.items()}, scorer.metrics))
    return Pooled(len(rows_NM), unit, int(units.max(initial=-1)) + 1, metrics, folds, mean, deviation, shown)


def units_of(kept: Sequence[Kept]) -> npt.NDArray[np.int64]:
    """Return the unit of each row, (N,), from 0; what lies in several folds (a document) is one unit."""
    found: dict[str, int] = {}
    numbers = []
    for fold, one in enumerate(kept):
        for place, line in enumerate(one.predictions()):
            # Each row is one, copies too, where nothing is named.
            name = str(line["unit"]) if line.get("unit") is not None else f"{fold} {place}"
            numbers.append(found.setdefault(name, len(found)))
    return np.array(numbers, np.int64)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if all(map(np.isfinite, values)) else float("nan")
