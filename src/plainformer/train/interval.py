"""How sure the metric of a validation is: the percentile bootstrap over the rows it was measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from plainformer.evaluate.intervals import bootstrap

RESAMPLES, SHARE = 1000, 0.95


def interval(
    rows: npt.NDArray[np.float64], measured: Callable[[npt.NDArray[np.float64]], Mapping[str, float]], metric: str
) -> tuple[float, float]:
    """Return between which two values a metric lies in 95 % of samples like these rows; the same for the same rows.

    Args:
        rows: each row's statistics, (B, M), of which the metric is made. measured: makes metrics of their sums, (M,).
    """

    def measure(weights: npt.NDArray[np.float64]) -> dict[str, float]:
        # A product of matrices would add in another order, and training's records are the same to the last bit.
        return {metric: measured((weights[:, None] * rows).sum(0))[metric]}

    found = bootstrap(rows, lambda _: measure, resamples=RESAMPLES, fewest=1)[metric]
    return (np.nan, np.nan) if found.low is None or found.high is None else (found.low, found.high)


def resampled(
    rows: npt.NDArray[np.float64],
    measured: Callable[[npt.NDArray[np.float64]], Mapping[str, float]],
    metric: str,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """Return a metric of samples of the rows, drawn with replacement, (RESAMPLES,)."""
    random = np.random.Generator(np.random.Philox(seed))
    values = []
    for _ in range(RESAMPLES):
        times = np.bincount(random.integers(0, len(rows), len(rows)), minlength=len(rows))
        values.append(measured((times[:, None] * rows).sum(0))[metric])
    return np.array(values)


def bounds_of(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return between which two values 95 % of those that are known lie."""
    known = values[values == values]
    low, high = np.quantile(known if len(known) else np.array([np.nan]), [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)


def said(value: float, bounds: object) -> str:
    """Return a value with its interval for people: "0.869 (0.846 to 0.89)"."""
    low, high = bounds if isinstance(bounds, list | tuple) else (None, None)
    return f"{value:.4g}" if low is None else f"{value:.4g} ({low:.3g} to {high:.3g})"
