"""How sure metrics are: the percentile bootstrap over units (Efron 1979).

Shapes: N rows, M numbers of each, G units, W resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.config.values import check_number, check_whole
from plainformer.errors import InputError, plural
from plainformer.evaluate.base import Measure, Numbers, OfSums, plain_values

RESAMPLES, LEVEL, FEWEST = 2000, 0.95, 20
_NUMBERS_AT_ONCE, _DRAWS_AT_ONCE = 1 << 20, 1 << 14


@dataclass(frozen=True)
class Interval:
    """A metric and between which two values it would lie in `level` of other samples of as many units.

    Attributes:
        low, high: None where there is no interval; `reason` says why.
        units: how many units were drawn from.
    """

    value: float
    low: float | None
    high: float | None
    units: int
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None for what is undefined."""
        return dict(plain_values(asdict(self)))


def bootstrap(
    rows_NM: Numbers,
    measure: Callable[[Numbers], Measure],
    units: npt.ArrayLike | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    fewest: int = FEWEST,
) -> dict[str, Interval]:
    """Return each metric with its interval.

    Units are drawn with replacement, as many as there are; a row weighs as much as its unit was drawn. A metric that some
    resamples do not define (a rare label may be missing) has the interval of the others.

    Args:
        rows_NM: may be memory-mapped. measure: makes of rows what makes metrics of weights: `scorer.measure`.
        units: the unit of each row (a document, a speaker), (N,) of any whole numbers; each row is one by default.
        fewest: of fewer units there is no interval: so few values do not show how far others may lie.
    """
    check_whole("resamples", resamples)
    check_number("level", level, "(0, 1)")
    places = None if units is None else unit_places(units, len(rows_NM))
    whole = measure(rows_NM)
    values = whole(np.ones(len(rows_NM)))
    count = len(rows_NM) if places is None else int(places.max(initial=-1)) + 1
    if count < fewest:
        reason = f"{plural(count, 'unit')} {'is' if count == 1 else 'are'} too few, an interval needs {fewest}"
        return {name: Interval(value, None, None, count, reason) for name, value in values.items()}
    found_WM = np.empty((resamples, len(values)))
    for place, numbers in enumerate(_measured(whole, tuple(values), places, count, resamples, seed)):
        found_WM[place] = numbers
    return {name: _interval(values[name], found_WM[:, place], level, count) for place, name in enumerate(values)}


def unit_places(units: npt.ArrayLike, rows: int) -> npt.NDArray[np.int64]:
    """Return units as numbers from 0, without gaps, (N,), so that each row's weight is that of its unit."""
    found = np.unique(np.asarray(units), return_inverse=True)[1].reshape(-1)
    if len(found) != rows:
        raise InputError(f"{len(found)} units for {rows} rows", "give the unit of each row")
    return found.astype(np.int64)


def resampled(count: int, resamples: int, seed: int = 0) -> Iterator[npt.NDArray[np.int64]]:
    """Yield how often each unit was drawn, (G,), for each resample; the same for the same seed and count."""
    random = np.random.Generator(np.random.Philox(seed))
    at_once = max(1, min(resamples, _DRAWS_AT_ONCE // max(1, count)))
    for start in range(0, resamples, at_once):
        wide = min(at_once, resamples - start)
        # The same numbers as of one call for each; small sets are sooner counted together.
        drawn_WG = random.integers(0, count, (wide, count)) + count * np.arange(wide)[:, None]
        yield from np.bincount(drawn_WG.reshape(-1), minlength=wide * count).reshape(wide, count)


def _measured(
    whole: Measure, names: tuple[str, ...], places: Any, count: int, resamples: int, seed: int
) -> Iterator[list[float]]:
    """Yield the metrics of each resample."""
    draws = resampled(count, resamples, seed)
    if not isinstance(whole, OfSums):
        for times_G in draws:
            values = whole((times_G if places is None else times_G[places]).astype(np.float64))
            yield [values[name] for name in names]
        return
    # Sums over a unit's rows are made once; then many resamples are one product of matrices.
    columns_GM = whole.columns_NM if places is None else _summed(whole.columns_NM, places, count)
    at_once = max(1, min(64, _NUMBERS_AT_ONCE // max(1, count)))
    for start in range(0, resamples, at_once):
        times_WG = np.empty((min(at_once, resamples - start), count))
        for place in range(len(times_WG)):
            times_WG[place] = next(draws)
        for sums_M in times_WG @ columns_GM:
            values = whole.measured(sums_M)
            yield [values[name] for name in names]


def _summed(columns_NM: Numbers, places_N: npt.NDArray[np.int64], count: int) -> Numbers:
    sums = [np.bincount(places_N, columns_NM[:, place], minlength=count) for place in range(columns_NM.shape[1])]
    return np.stack(sums, axis=1)


def _interval(value: float, resampled_W: Numbers, level: float, units: int) -> Interval:
    known = resampled_W[~np.isnan(resampled_W)]
    if math.isnan(value) or len(known) * 2 < len(resampled_W):
        why = "it is undefined" if math.isnan(value) else "most resamples do not define it"
        return Interval(value, None, None, units, why)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), units)


def plain(values: Mapping[str, Interval]) -> dict[str, Any]:
    """Return intervals as JSON holds them."""
    return {name: value.to_dict() for name, value in values.items()}
