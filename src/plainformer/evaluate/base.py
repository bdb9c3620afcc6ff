"""What the metrics of every kind of task share: a row of numbers for each example, and metrics of weighted rows.

    scorer = make_scorer("single-label", labels=("negative", "positive"))
    rows_NM = np.array([scorer.row(reference, answer) for reference, answer in pairs])
    measure = scorer.measure(rows_NM)
    measure(np.ones(len(rows_NM)))  # {"accuracy": 0.9, ...}

A bootstrap asks `measure` again with other weights; nothing else of an answer need be kept. A row of weight 2 counts as two
equal rows. A metric that rows do not define is NaN, and `Metric.undefined` says when. No torch.

Shapes: N examples, M numbers of each, W sets of weights.
"""

from __future__ import annotations

import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
_ROWS_AT_ONCE = 8192

Measure = Callable[[Numbers], dict[str, float]]  # weights of the rows, (N,) → metrics


@dataclass(frozen=True)
class Metric:
    """A number that evaluation gives. Its direction is a property of the metric, never an option.

    Attributes:
        name: what `measure` calls it. Metrics of a part of the answers are "name/part", for example "f1/PER".
        better: "higher" or "lower".
        undefined: when it is NaN, as a reason: "no example has this label".
        beside: a metric that it repeats in most cases: people are shown it only where it differs from that.
        evaluated: of a metric of training, what `evaluate` calls its counterpart, where that has another name.
    """

    name: str
    better: str = "higher"
    undefined: str = "there are no examples"
    beside: str = ""
    evaluated: str = ""

    @property
    def part(self) -> str:
        """Return the label or type that it is of; "" where it is of all answers."""
        return self.name.partition("/")[2]


def summary_metrics(values: Mapping[str, float], metrics: Sequence[Metric]) -> list[str]:
    """Return the names of the metrics that people are shown: those of all answers, without repetitions of another."""
    known = {metric.name: metric for metric in metrics}
    found = []
    for name, value in values.items():
        metric = known.get(name, Metric(name))
        if not metric.part and (metric.beside not in values or values[metric.beside] != value):
            found.append(name)
    return found


@dataclass(frozen=True)
class Table:
    """A table for people and for JSON.

    Attributes:
        name: what it is: "labels", "confusion", "reliability" ...
        header: names of the columns; the first is that of the rows' names. Where a cell is a metric with an interval,
            that is "column/row": "f1/positive".
        rows: text, whole numbers and numbers; NaN where a number is undefined.
        note: how to read it, in one sentence.
    """

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, None for what is undefined."""
        return dict(plain_values(asdict(self)))


class Scorer(ABC):
    """The metrics of one kind of task.

    Attributes:
        name: in `SCORERS`. columns: names of the M numbers. metrics: the first is the main one.
        in_training: what training calls a metric, where it has another name there → the name here.
    """

    name: ClassVar[str]
    columns: tuple[str, ...]
    metrics: tuple[Metric, ...]
    in_training: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return what an example's metrics are made of, (M,)."""

    @abstractmethod
    def measure(self, rows_NM: Numbers) -> Measure:
        """Return what makes metrics of weights, (N,); what does not depend on weights is done once, here."""

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        """Return each example's own value, (N,), of which a metric is the mean; None where it is more than a mean."""
        return None

    def tables(self, rows_NM: Numbers) -> list[Table]:
        """Return what is shown besides the metrics: of each label, which were taken for which ..."""
        return []

    def notes(self) -> Sequence[str]:
        """Return what a reader must know of the rows that were scored, which the metrics do not say."""
        return ()

    def settings(self) -> Mapping[str, Any]:
        """Return what `make_scorer` needs besides the name to make this scorer again, as JSON holds it."""
        return {}


class OfSums:
    """A measure whose metrics are made of weighted sums of columns: fast, since many sets of weights are one product."""

    def __init__(self, columns_NM: Numbers, measured: Callable[[Numbers], dict[str, float]]) -> None:
        self.columns_NM, self.measured = columns_NM, measured

    def __call__(self, weights_N: Numbers) -> dict[str, float]:
        return self.measured(weights_N @ self.columns_NM)


def plain_values(value: Any) -> Any:
    """Return a value as JSON holds it: numbers that are not finite as null, arrays and tuples as lists."""
    if isinstance(value, Mapping):
        return {str(name): plain_values(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_values(inner) for inner in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain_values(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def taken(rows_NM: Numbers, places: int | slice | tuple[int, ...]) -> Numbers:
    """Return a copy of columns, (N,) or (N, places). Of a file no more than a few rows are in memory at a time."""
    found = np.empty((len(rows_NM), *rows_NM[:0, places].shape[1:]))
    mapped = getattr(rows_NM, "_mmap", None)
    for start in range(0, len(rows_NM), _ROWS_AT_ONCE):
        found[start : start + _ROWS_AT_ONCE] = rows_NM[start : start + _ROWS_AT_ONCE, places]
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)  # the system may take back what is read; it reads it again if asked
    return found


def ratio(part: float, whole: float) -> float:
    """Return part / whole, NaN where the whole is 0."""
    return float(part / whole) if whole else float("nan")
