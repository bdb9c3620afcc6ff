"""Which of several values is chosen: the simplest within one standard error of the best (Breiman et al. 1984, section 3.4.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev
from typing import Any

Values = Mapping[str, Any]  # option → value


@dataclass(frozen=True)
class Tried:
    """A candidate, measured.

    Attributes:
        values: of the options. folds: the metric of each fold's best checkpoint on its validation rows.
        mean: of them. error: its standard error, the standard deviation by the root of their number.
        chosen: whether it is the choice.
    """

    values: dict[str, Any]
    folds: tuple[float, ...]
    mean: float
    error: float
    chosen: bool = False


def candidates(tried: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of the options' values, in their order; the last option changes first."""
    return [dict(zip(tried, values, strict=True)) for values in product(*tried.values())]


def simplicity(values: Values, tried: Mapping[str, Sequence[Any]]) -> tuple[int, ...]:
    """Return what candidates are ordered by, the simplest first: of numbers the smaller, of other values the one listed first."""
    places = []
    for name, listed in tried.items():
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in listed)
        places.append((sorted(listed) if numbers else list(listed)).index(values[name]))
    return tuple(places)


def choose(
    measured: Sequence[tuple[Values, Sequence[float]]], tried: Mapping[str, Sequence[Any]], better: str
) -> list[Tried]:
    """Return all candidates, of which one is chosen.

    The best has the best mean. Of those whose mean is within its own standard error of it, the simplest is chosen.
    A candidate with a fold that is not a number (its loss ran away) is not chosen.

    Args:
        measured: values, and the metric of each fold. better: "higher" or "lower".
    """
    sign = 1 if better == "higher" else -1
    found = [Tried(dict(values), tuple(folds), fmean(folds), _error(folds)) for values, folds in measured]
    sound = [one for one in found if math.isfinite(one.mean)] or found[:1]
    best = max(sound, key=lambda one: sign * one.mean)
    near = [one for one in sound if sign * one.mean >= sign * best.mean - best.error]
    choice = min(near, key=lambda one: simplicity(one.values, tried))
    return [Tried(one.values, one.folds, one.mean, one.error, one is choice) for one in found]


def _error(folds: Sequence[float]) -> float:
    return stdev(folds) / math.sqrt(len(folds)) if all(map(math.isfinite, folds)) else math.nan
