"""What the metrics of every kind of task share: a row of numbers for each example, and metrics of weighted rows.

    scorer = make_scorer("single-label", labels=("negative", "positive"))
    rows_NM = np.array([scorer.row(reference, answer) for reference, answer in pairs])
    measure = scorer.measure(rows_NM)
    measure(np.ones(len(rows_NM)))  # {"accuracy": 0.9, ...}

A bootstrap asks `measure` again with other weights; nothing else of an answer need be kept. No torch.

Shapes: N examples, M numbers of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Measure = Callable[[Numbers], dict[str, float]]  # weights of the rows, (N,) → metrics


@dataclass(frozen=True)
class Metric:
    """A number that evaluation gives. Its direction is a property of the metric, never an option."""

    name: str
    better: str = "higher"  # or "lower"


class Scorer(ABC):
    """The metrics of one kind of task.

    Attributes:
        name: in `SCORERS`. columns: names of the M numbers. metrics: the first is the main one.
    """

    name: ClassVar[str]
    columns: tuple[str, ...]
    metrics: tuple[Metric, ...]

    @abstractmethod
    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return what an example's metrics are made of, (M,)."""

    @abstractmethod
    def measure(self, rows_NM: Numbers) -> Measure:
        """Return what makes metrics of weights, (N,); what does not depend on weights is done once, here."""

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        """Return each example's own value, (N,), of which a metric is the mean; None where it is more than a mean."""
        return None

    def settings(self) -> Mapping[str, Any]:
        """Return what `make_scorer` needs besides the name to make this scorer again, as JSON holds it."""
        return {}
