"""Is one system better than another on the same examples? Paired tests, over units: documents, speakers, or examples.

    tested = compare_rows(scorer, [rows_NM], [others_NM], "f1", units)
    tested.difference, tested.low, tested.high, tested.p

The null hypothesis is that the two could change places in each unit. A difference is "second minus first".

Shapes: N examples, M numbers of each, G units, W draws or resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.errors import UsageError, opt, plural
from plainformer.evaluate.base import Measure, Numbers, OfSums, Scorer, ratio
from plainformer.evaluate.intervals import FEWEST, LEVEL, RESAMPLES, Interval, resampled, unit_places
from plainformer.evaluate.student import critical, two_sided

DRAWS = 10_000
MOST_EXACT = 20  # units that differ: 2^20 ways to change places are counted, not drawn
_AT_ONCE = 1 << 21  # numbers
_TIE = 1e-9  # of the largest possible value: sums of the same numbers in another order may differ

SIGN_FLIP = "sign-flip permutation"
EXACT = "exact sign-flip permutation"
SWAP = "approximate randomisation"
SEEDS = "t over seeds and units"
FOLDS = "corrected resampled t"


@dataclass(frozen=True)
class Tested:
    """A difference of two systems, "second minus first".

    Attributes:
        low, high: between which it would lie in `level` of other samples; None where there is no interval.
        p: how often as large a difference, or larger, comes about if the two are alike; None where it cannot be told.
        method: of the test. reason: why there is no interval, or no p.
        trains: whether the interval and p cover the noise of training: seeds or folds were compared, not one run each.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    method: str
    reason: str = ""
    trains: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None for what is undefined."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def compare_rows(
    scorer: Scorer,
    first: Sequence[Numbers],
    second: Sequence[Numbers],
    metric: str,
    units: npt.ArrayLike | None = None,
    *,
    draws: int = DRAWS,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Tested:
    """Test whether a metric of two systems differs on the same examples.

    One run each: a permutation test over units, by signs where the metric is a mean over examples, else with the metric
    computed anew (approximate randomisation, Noreen 1989); and the percentile interval of a paired bootstrap. Several
    runs that differ by their seed: see `_seeds`.

    Args:
        first, second: rows of the scorer, (N, M), for each seed. units: of each example, (N,); each is one by default.
        draws: of a permutation test that is not exact. resamples: of the bootstrap.
    """
    places, count = placed_units(units, len(first[0]))
    sides = [[Weighted(scorer, one, metric, places, count) for one in side] for side in (first, second)]
    found = _measured(sides, count, resamples, level, seed)
    if found.difference != found.difference or len(first) > 1 or len(second) > 1:
        return found
    p, method = _permuted(scorer, first[0], second[0], metric, places, count, draws, seed)
    return replace(found, p=p, method=method)


def interval_of(
    scorer: Scorer,
    runs: Sequence[Numbers],
    metric: str,
    units: npt.ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Return a metric of one system with its interval: of one run by a bootstrap over units, of several seeds as `_seeds`.

    Args:
        runs: rows of the scorer, (N, M), for each seed; the metric is the mean of theirs. Others as for `compare_rows`.
    """
    places, count = placed_units(units, len(runs[0]))
    side = [Weighted(scorer, one, metric, places, count) for one in runs]
    found = _measured([side], count, resamples, level, seed)
    return Interval(found.difference, found.low, found.high, count, found.reason)


def placed_units(units: npt.ArrayLike | None, rows: int) -> tuple[npt.NDArray[np.int64], int]:
    """Return the unit of each row as a number from 0, (N,), and how many units there are; each row is one by default."""
    places = np.arange(rows, dtype=np.int64) if units is None else unit_places(units, rows)
    return places, int(places.max(initial=-1)) + 1


def _measured(sides: Sequence[Sequence[Weighted]], count: int, resamples: int, level: float, seed: int) -> Tested:
    """Return the metric of one side, or the difference of two, with its interval; with p where seeds are compared."""
    ones, metric = np.ones((1, count)), sides[0][0].metric
    values = [[float(one(ones)[0]) for one in side] for side in sides]
    means = [math.fsum(side) / len(side) for side in values]
    difference = means[-1] - (means[0] if len(means) > 1 else 0.0)
    if math.isnan(difference):
        return Tested(difference, None, None, None, "", f"{metric} is undefined on these examples")
    few = f"{plural(count, 'unit')}: too few for an interval, which needs {FEWEST}" if count < FEWEST else ""
    spread = np.empty(0) if few else _resampled(sides, count, resamples, seed)
    if any(len(side) > 1 for side in sides):
        return _seeds(difference, values, spread, count, level, few)
    if few or len(spread) * 2 < resamples:
        return Tested(difference, None, None, None, "", few or "most resamples do not define it")
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return Tested(difference, float(low), float(high), None, "")


def _permuted(
    scorer: Scorer,
    first_NM: Numbers,
    second_NM: Numbers,
    metric: str,
    places_N: npt.NDArray[np.int64],
    count: int,
    draws: int,
    seed: int,
) -> tuple[float, str]:
    """Return p of the permutation test that suits a metric, and the test's name."""
    random = np.random.Generator(np.random.Philox(seed))
    one, other = scorer.outcomes(first_NM, metric), scorer.outcomes(second_NM, metric)
    if one is None or other is None or np.isnan(one).any() or np.isnan(other).any():
        both = np.concatenate([first_NM, second_NM])
        weighted = Weighted(scorer, both, metric, np.concatenate([places_N, places_N + count]), 2 * count)
        return swap_test(weighted, count, draws, random), SWAP
    sums_G = np.bincount(places_N, other - one, minlength=count).astype(np.float64)
    exact = np.count_nonzero(sums_G) <= MOST_EXACT
    return sign_flip_test(sums_G, draws, random), EXACT if exact else SIGN_FLIP


class Weighted:
    """A metric of one system as a function of how often each unit counts.

    Args:
        places_N: the unit of each row, from 0 to count - 1.
    """

    def __init__(
        self, scorer: Scorer, rows_NM: Numbers, metric: str, places_N: npt.NDArray[np.int64], count: int
    ) -> None:
        self.metric, self.places_N = metric, places_N
        outcomes_N = scorer.outcomes(rows_NM, metric)
        if outcomes_N is not None:  # a mean needs no other metric computed
            self.whole: Measure = OfSums(np.stack([outcomes_N, np.ones(len(rows_NM))], axis=1), self._mean)
        else:
            self.whole = scorer.measure(rows_NM)
        self.sums_GM = np.empty((count, 0))
        if isinstance(self.whole, OfSums):
            columns = self.whole.columns_NM.T
            self.sums_GM = np.stack([np.bincount(places_N, column, minlength=count) for column in columns], axis=1)

    def _mean(self, sums: Numbers) -> dict[str, float]:
        return {self.metric: ratio(float(sums[0]), float(sums[1]))}

    def __call__(self, times_WG: npt.NDArray[Any]) -> Numbers:
        """Return the metric for each line of weights of the units, (W,)."""
        times_WG = times_WG.astype(np.float64)
        if isinstance(self.whole, OfSums):
            measured = self.whole.measured
            return np.array([measured(sums_M)[self.metric] for sums_M in times_WG @ self.sums_GM])
        return np.array([self.whole(times_G[self.places_N])[self.metric] for times_G in times_WG])


def sign_flip_test(sums_G: Numbers, draws: int = DRAWS, random: np.random.Generator | None = None) -> float:
    """Return the two-sided p of sums that could as well have the other sign, each by itself (Fisher 1935).

    A sum of 0 has no sign, so that only the others count: with up to 20 of them all ways are counted, and p is exact; for
    outcomes that are 0 or 1 it is then McNemar's exact test. Else p = (b + 1) / (draws + 1), of b draws that reach the sum.

    Args:
        sums_G: the difference of each unit, summed over its examples.
    """
    sums_G = sums_G[sums_G != 0]
    reached = abs(sums_G.sum()) - _TIE * np.abs(sums_G).sum()
    if len(sums_G) <= MOST_EXACT:
        totals = np.zeros(1)
        for value in sums_G:
            totals = np.concatenate([totals + value, totals - value])
        return float((np.abs(totals) >= reached).mean())
    random = random or np.random.Generator(np.random.Philox(0))
    # Signs are sums too: total - 2 * (what is flipped).
    beyond = 0
    for flipped_WG in _chosen(len(sums_G), draws, random):
        beyond += int((np.abs(sums_G.sum() - 2 * (flipped_WG @ sums_G)) >= reached).sum())
    return (beyond + 1) / (draws + 1)


def swap_test(weighted: Weighted, count: int, draws: int = DRAWS, random: np.random.Generator | None = None) -> float:
    """Return the two-sided p of a metric's difference where two systems could change places in each unit (Noreen 1989).

    p = (b + 1) / (draws + 1), of b draws whose difference is as large. A draw that does not define the metric counts too.

    Args:
        weighted: of the rows of both, the first system's G units before the second's. count: G.
    """
    random = random or np.random.Generator(np.random.Philox(0))

    def differences(chosen_WG: npt.NDArray[np.bool_]) -> Numbers:
        one = weighted(np.concatenate([chosen_WG, ~chosen_WG], axis=1))
        return np.abs(one - weighted(np.concatenate([~chosen_WG, chosen_WG], axis=1)))

    found = float(differences(np.ones((1, count), bool))[0])
    reached = found - _TIE * max(found, 1e-3)
    return (sum(int((~(differences(c) < reached)).sum()) for c in _chosen(count, draws, random)) + 1) / (draws + 1)


def _chosen(count: int, draws: int, random: np.random.Generator) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield which units change places, (W, G), for all draws in parts of few numbers.

    A part has a multiple of 32 lines: numpy makes 32 of one number, and so the parts are those of one large draw.
    """
    lines = max(32, _AT_ONCE // max(count, 1) // 32 * 32)
    for start in range(0, draws, lines):
        yield random.integers(2, size=(min(lines, draws - start), count), dtype=bool)


def _resampled(sides: Sequence[Sequence[Weighted]], count: int, resamples: int, seed: int) -> Numbers:
    """Return one side's metric, or the difference of two, for each resample of the units, (W,); undefined ones left out."""
    lines = max(1, _AT_ONCE // max(count, 1))
    draws, found = resampled(count, resamples, seed), []
    for start in range(0, resamples, lines):
        times_WG = np.stack([next(draws) for _ in range(min(lines, resamples - start))])
        means = [np.mean([one(times_WG) for one in side], axis=0) for side in sides]
        found.append(means[-1] - means[0] if len(means) > 1 else means[0])
    values = np.concatenate(found)
    return np.asarray(values[~np.isnan(values)])


def _seeds(
    difference: float, values: Sequence[Sequence[float]], spread: Numbers, count: int, level: float, few: str
) -> Tested:
    """Return the test of runs that differ by their seed, where training is noisy and examples are a sample.

    The variance is that over resampled units, plus that of each side's mean over its seeds; t has Satterthwaite's (1946)
    degrees of freedom. A bootstrap that draws seeds, then units, finds too much: of two or three values it sees half or
    two thirds of their variance, and its ends are those of a normal distribution. Of simulated pairs that are alike it tells
    apart, at 0.05, up to 31 % (2 seeds) and 21 % (3); this test 1.4 to 5.6 %; units alone up to 84 %.
    """
    if not len(spread):
        return Tested(difference, None, None, None, SEEDS, few or "no resample defines it", trains=True)
    parts = [(float(spread.var(ddof=1)), max(count - 1, 1))]
    parts += [(float(np.var(side, ddof=1)) / len(side), len(side) - 1) for side in values if len(side) > 1]
    variance = math.fsum(part for part, _ in parts)
    trains = all(len(side) > 1 for side in values)
    return _t_test(difference, variance, parts, level, SEEDS, trains)


def _t_test(
    difference: float, variance: float, parts: Sequence[tuple[float, int]], level: float, method: str, trains: bool
) -> Tested:
    """Return the t-test of a difference whose variance is a sum of parts (variance, degrees of freedom)."""
    if variance == 0:
        p = 1.0 if difference == 0 else 0.0
        return Tested(difference, difference, difference, p, method, trains=trains)
    df = variance**2 / math.fsum(part**2 / freedom for part, freedom in parts)
    deviation = math.sqrt(variance)
    reach = critical(level, df) * deviation
    p = two_sided(difference / deviation, df)
    return Tested(difference, difference - reach, difference + reach, p, method, trains=trains)


def compare_folds(differences: Sequence[float], ratio: float, level: float = LEVEL) -> Tested:
    """Test the differences of two k-fold runs, fold by fold: the corrected resampled t-test (Nadeau & Bengio 2003).

    Folds share training data, so that their differences vary less than those of independent samples: the variance is
    multiplied by 1/k + n_test/n_train, not by 1/k.

    Args:
        differences: of the metric, a value for each of the k folds. ratio: held-out examples of a fold / training ones.
    Raises:
        UsageError: fewer than two folds.
    """
    k = len(differences)
    if k < 2:
        raise UsageError(f"{opt('differences')} are of {plural(k, 'fold')}", "the test needs two folds at least")
    mean = math.fsum(differences) / k
    if math.isnan(mean):
        return Tested(mean, None, None, None, FOLDS, "it is undefined in a fold", trains=True)
    variance = math.fsum((one - mean) ** 2 for one in differences) / (k - 1) * (1 / k + ratio)
    return _t_test(mean, variance, [(variance, k - 1)], level, FOLDS, trains=True)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for how many there are, so that the chance of any false one stays below the level.

    Holm (1979): the smallest of m is multiplied by m, the next by m - 1, and so on; none is less than one before it.
    """
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    corrected, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = least
    return corrected
