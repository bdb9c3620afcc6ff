"""How sure the metric of a validation is: the percentile bootstrap over the rows it was measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from plainformer.evaluate.intervals import bootstrap

RESAMPLES = 1000


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


def said(value: float, bounds: object) -> str:
    """Return a value with its interval for people: "0.869 (0.846 to 0.89)"."""
    low, high = bounds if isinstance(bounds, list | tuple) else (None, None)
    return f"{value:.4g}" if low is None else f"{value:.4g} ({low:.3g} to {high:.3g})"
