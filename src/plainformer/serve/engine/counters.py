"""What an engine counts, as plain numbers: an observer makes metrics of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple


class Observation(NamedTuple):
    """A number by its name, the model that it is of, and what distinguishes it from others of the name."""

    name: str
    value: float
    model: str = ""
    label: str = ""


class Counters:
    """Sums of observations, and those who are told of each as it is made.

    Attributes:
        totals: (name, model, label) → the sum of all values.
        observers: called in the thread that computes; quick ones that never raise.
    """

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str, str], float] = defaultdict(float)
        self.observers: list[Callable[[Observation], None]] = []

    def __call__(self, name: str, value: float = 1.0, model: str = "", label: str = "") -> None:
        """Count something."""
        self.totals[name, model, label] += value
        for observer in self.observers:
            observer(Observation(name, value, model, label))
