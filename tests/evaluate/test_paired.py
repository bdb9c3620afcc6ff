"""Paired tests against brute force, scipy and sacrebleu; false alarms and power by simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from scipy import stats

from plainformer.errors import UsageError
from plainformer.evaluate import make_scorer
from plainformer.evaluate.base import Measure, Metric, Numbers, OfSums, Scorer, ratio
from plainformer.evaluate.paired import (
    EXACT,
    FOLDS,
    SEEDS,
    SIGN_FLIP,
    SWAP,
    Weighted,
    compare_folds,
    compare_rows,
    holm,
    interval_of,
    placed_units,
    sign_flip_test,
    swap_test,
)
from plainformer.evaluate.student import critical, incomplete_beta, two_sided

PAIRS = 1000


class Toy(Scorer):
    """A mean ("value") and F1 of counts; `slow` has F1 computed from weights, as metrics that are not sums are."""

    name = "toy"
    columns = ("value", "right", "found", "true")
    metrics = (Metric("value"), Metric("f1"))

    def __init__(self, slow: bool = False) -> None:
        self.slow = slow

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        return tuple(answer)

    def measure(self, rows_NM: Numbers) -> Measure:
        columns = np.column_stack([rows_NM, np.ones(len(rows_NM))])

        def measured(sums: Numbers) -> dict[str, float]:
            return {"value": ratio(sums[0], sums[4]), "f1": ratio(2 * sums[1], sums[2] + sums[3])}

        made = OfSums(columns, measured)
        return (lambda weights: made(weights)) if self.slow else made

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        return rows_NM[:, 0] if metric == "value" else None

    def settings(self) -> Mapping[str, Any]:
        return {}


def means(values: Numbers) -> Numbers:
    return np.column_stack([values, np.zeros((len(values), 3))])


def counts(random: np.random.Generator, count: int, skill: float = 0.0) -> Numbers:
    """Return rows of two systems' like: true and found entities of sentences, and how many of them are right."""
    true = random.poisson(2, count)
    found = random.binomial(true + 1, 0.7)
    right = random.binomial(np.minimum(true, found), min(0.7 + skill, 1.0))
    return np.column_stack([np.zeros(count), right, found, true]).astype(float)


def rate(test: Callable[[np.random.Generator], float | None], pairs: int = PAIRS) -> float:
    """Return in how many simulated comparisons p is below 0.05."""
    ps = [test(np.random.default_rng(seed)) for seed in range(pairs)]
    assert all(p is not None and 0 <= p <= 1 for p in ps)
    return float(np.mean([p < 0.05 for p in ps if p is not None]))


# ---- how often pairs that are alike are told apart ------------------------------------------------------------------------


def p_of(first: Numbers, second: Numbers, metric: str = "value", units: Any = None, draws: int = 199) -> float | None:
    return compare_rows(Toy(), [first], [second], metric, units, draws=draws, resamples=1).p


def test_sign_flips_of_pairs_that_are_alike() -> None:
    """Outcomes of 0 and 1 that agree mostly, as those of two good classifiers."""

    def test(random: np.random.Generator) -> float | None:
        easy = random.random(800)
        sides = (means((easy + random.normal(0, 0.3, 800) > 0.3).astype(float)) for _ in range(2))
        return p_of(*sides, draws=399)

    assert 0.03 <= rate(test) <= 0.07


def clustered(random: np.random.Generator, effect: float = 0.0) -> tuple[Numbers, Numbers, Numbers]:
    """Return rows of two systems and units: in each document one of the two is luckier."""
    units = np.repeat(np.arange(60), random.integers(1, 9, 60))
    shared, own = random.normal(0, 1, len(units)), random.normal(effect, 0.5, 60)[units]
    return means(shared), means(shared + own + random.normal(0, 0.5, len(units))), units


def test_sign_flips_of_documents_that_are_alike() -> None:
    def test(random: np.random.Generator) -> float | None:
        first, second, units = clustered(random)
        return p_of(first, second, units=units)

    def naive(random: np.random.Generator) -> float | None:
        first, second, _ = clustered(random)
        return p_of(first, second)

    assert 0.03 <= rate(test) <= 0.07
    assert rate(naive, 200) > 0.15  # the same, taken for examples that have nothing to do with each other


def test_swaps_of_pairs_that_are_alike() -> None:
    def test(random: np.random.Generator) -> float | None:
        return p_of(counts(random, 60), counts(random, 60), "f1")

    assert 0.03 <= rate(test) <= 0.07


def test_swaps_of_documents_that_are_alike() -> None:
    def rows(random: np.random.Generator, units: Numbers) -> Numbers:
        found = counts(random, len(units))
        lucky = random.random(60)[units] < 0.5
        found[lucky, 1] = np.minimum(found[lucky, 2], found[lucky, 3])
        return found

    def test(random: np.random.Generator) -> float | None:
        units = np.repeat(np.arange(60), random.integers(1, 5, 60))
        return p_of(rows(random, units), rows(random, units), "f1", units)

    assert 0.03 <= rate(test) <= 0.07


def seeds_of(random: np.random.Generator, easy: Numbers, seeds: int, noise: float) -> list[Numbers]:
    """Return outcomes of one system's runs: training moves all examples of a run, and each by itself."""
    own = random.normal(0, 0.3, len(easy))
    runs = random.normal(0, noise, seeds)
    return [means((easy + own + run + random.normal(0, 0.1, len(easy)) > 0).astype(float)) for run in runs]


@pytest.mark.parametrize(("seeds", "pairs"), [(2, 300), (3, PAIRS), (5, 300)])
def test_seeds_of_systems_that_are_alike(seeds: int, pairs: int) -> None:
    def test(random: np.random.Generator) -> float | None:
        easy = random.normal(1.3, 1.2, 400)
        sides = [seeds_of(random, easy, seeds, 0.2) for _ in range(2)]
        return compare_rows(Toy(), *sides, "value", resamples=60).p

    assert 0.03 <= rate(test, pairs) <= 0.07


def test_the_noise_of_training_is_not_in_one_seed_each() -> None:
    def test(random: np.random.Generator) -> float | None:
        easy = random.normal(1.3, 1.2, 400)
        return p_of(*(seeds_of(random, easy, 1, 0.2)[0] for _ in range(2)))

    assert rate(test, 200) > 0.3  # so that the sentence in every report is needed


def test_folds_that_share_training_data() -> None:
    """Differences correlated as n_test / n: the corrected test holds its level, the plain t-test does not."""
    k = 5
    draws = [
        math.sqrt(1 / k) * random.normal() + math.sqrt(1 - 1 / k) * random.normal(0, 1, k)
        for random in map(np.random.default_rng, range(PAIRS))
    ]
    ps = [compare_folds(one.tolist(), 1 / (k - 1)).p for one in draws]
    assert 0.03 <= np.mean([p < 0.05 for p in ps if p is not None]) <= 0.07
    assert np.mean([stats.ttest_1samp(one, 0).pvalue < 0.05 for one in draws]) > 0.09


@pytest.mark.parametrize("metric", ["value", "f1"])
def test_power_rises_with_the_effect(metric: str) -> None:
    def found(effect: float) -> float:
        def test(random: np.random.Generator) -> float | None:
            if metric == "f1":
                return p_of(counts(random, 60), counts(random, 60, effect), "f1")
            first, second, units = clustered(random, effect * 2)
            return p_of(first, second, units=units)

        return rate(test, 100)

    powers = [found(effect) for effect in (0.0, 0.08, 0.16, 0.3)]
    assert powers == sorted(powers) and powers[-1] > 0.9, powers


# ---- against other ways to the same number --------------------------------------------------------------------------------


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_exact_p_is_that_of_all_ways_to_change_signs(sums: list[int]) -> None:
    signs = itertools.product((1, -1), repeat=len(sums))
    ways = [abs(sum(sign * one for sign, one in zip(way, sums, strict=True))) for way in signs]
    expected = sum(way >= abs(sum(sums)) for way in ways) / len(ways)
    assert sign_flip_test(np.array(sums, float)) == pytest.approx(expected, abs=1e-15)


def test_sums_that_are_equal_but_for_rounding_count_as_equal() -> None:
    sums = np.array([0.1, 0.2, 0.3, -0.6])
    assert sign_flip_test(sums) == 1.0
    assert sign_flip_test(np.array([0.1] * 10)) == pytest.approx(2 / 1024)
    assert sign_flip_test(np.array([0.1] * 10 + [0.0] * 500)) == pytest.approx(2 / 1024)  # zeros have no sign
    assert sign_flip_test(np.zeros(30)) == 1.0


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 9), (1, 12), (10, 10), (0, 20)])
def test_zeros_and_ones_give_mcnemars_exact_test(first: int, second: int) -> None:
    """`first` examples that only the first system has right, and `second` that only the second has."""
    one = means(np.array([1.0] * first + [0.0] * second + [1.0] * 30 + [0.0] * 5))
    two = means(np.array([0.0] * first + [1.0] * second + [1.0] * 30 + [0.0] * 5))
    found = compare_rows(Toy(), [one], [two], "value")
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert found.method == EXACT
    assert found.p == pytest.approx(expected, rel=1e-12)
    assert found.difference == pytest.approx((second - first) / len(one))


def test_many_draws_come_near_mcnemars_exact_test() -> None:
    one = means(np.array([1.0] * 25 + [0.0] * 41 + [1.0] * 500))
    two = means(np.array([0.0] * 25 + [1.0] * 41 + [1.0] * 500))
    found, expected = compare_rows(Toy(), [one], [two], "value"), stats.binomtest(25, 66).pvalue
    assert found.method == SIGN_FLIP and found.p is not None
    assert abs(found.p - expected) < 4 * math.sqrt(expected * (1 - expected) / 10_000)
    chi = (41 - 25) ** 2 / (41 + 25)  # McNemar (1947), without continuity correction
    assert stats.chi2.sf(chi, 1) < found.p < stats.chi2.sf((41 - 25 - 1) ** 2 / 66, 1) * 1.1


def test_p_is_never_zero() -> None:
    random = np.random.default_rng(0)
    sums = random.normal(5, 0.1, 60)
    assert sign_flip_test(sums, 999) == 1 / 1000


WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "over",
    "mat",
    "log",
    "quickly",
    "slowly",
    "and",
    "then",
    "it",
    "slept",
]


def sentences(seed: int, noise: float) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(0)
    right = [[WORDS[n] for n in random.integers(0, len(WORDS), 12)] for _ in range(80)]
    own = np.random.default_rng(seed)
    given = [[WORDS[own.integers(0, len(WORDS))] if own.random() < noise else word for word in one] for one in right]
    return [" ".join(one) for one in right], [" ".join(one) for one in given]


@pytest.mark.parametrize(("noise", "draws"), [(0.25, 999), (0.29, 1000), (0.4, 999)])
def test_p_of_bleu_is_sacrebleus_with_its_seed(noise: float, draws: int) -> None:
    right, base = sentences(1, 0.25)
    _, other = sentences(2, noise)
    _, scores = PairedTest([("base", base), ("other", other)], {"BLEU": BLEU()}, [right], "ar", draws)()
    scorer = make_scorer("text", main="bleu")
    rows = [np.array([scorer.row(r, a) for r, a in zip(right, given, strict=True)]) for given in (base, other)]
    count = len(right)
    weighted = Weighted(scorer, np.concatenate(rows), "bleu", np.arange(2 * count), 2 * count)
    p = swap_test(weighted, count, draws, np.random.default_rng(12345))
    assert p == pytest.approx(scores["BLEU"][1].p_value, rel=1e-12)
    found = compare_rows(scorer, [rows[0]], [rows[1]], "bleu", draws=draws, resamples=20)
    assert found.method == SWAP and found.p is not None
    assert abs(found.p - p) < 5 * math.sqrt(max(p * (1 - p), 0.01) / draws)


def test_metrics_that_are_not_sums_are_swapped_alike() -> None:
    random = np.random.default_rng(4)
    first, second, units = counts(random, 90), counts(random, 90, 0.1), np.repeat(np.arange(45), 2)
    fast = compare_rows(Toy(), [first], [second], "f1", units, draws=300, resamples=50)
    assert compare_rows(Toy(slow=True), [first], [second], "f1", units, draws=300, resamples=50) == fast


def test_swaps_are_those_of_all_ways_to_change_places() -> None:
    random = np.random.default_rng(1)
    first, second = counts(random, 8), counts(random, 8, 0.2)
    whole = Toy().measure
    ways = []
    for chosen in itertools.product((True, False), repeat=8):
        pick = np.array(chosen)[:, None]
        sides = np.where(pick, first, second), np.where(pick, second, first)
        ways.append(abs(np.subtract(*(whole(side)(np.ones(8))["f1"] for side in sides))))
    exact = np.mean(np.array(ways) >= ways[0] - 1e-12)
    found = p_of(first, second, "f1", draws=20_000)
    assert found == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 20_000))


def test_the_interval_of_a_difference_is_a_paired_bootstrap() -> None:
    """Equal to scipy's, but for its draws, and narrower than of systems that are not paired."""
    random = np.random.default_rng(0)
    easy = random.normal(0, 1, 300)
    one, two = easy + random.normal(0, 0.2, 300), easy + random.normal(0.05, 0.2, 300)
    found = compare_rows(Toy(), [means(one)], [means(two)], "value", resamples=4000)
    expected = stats.bootstrap(
        (two - one,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = expected.confidence_interval
    assert found.low == pytest.approx(low, abs=0.004) and found.high == pytest.approx(high, abs=0.004)
    alone = interval_of(Toy(), [means(one)], "value")
    assert alone.low is not None and alone.high is not None and found.low is not None and found.high is not None
    assert (found.high - found.low) < 0.4 * (alone.high - alone.low)


def test_few_units_have_a_p_and_no_interval() -> None:
    units = np.repeat(np.arange(5), 20)
    random = np.random.default_rng(0)
    one = random.normal(0, 1, 100)
    found = compare_rows(Toy(), [means(one)], [means(one + 1)], "value", units)
    assert (found.low, found.high) == (None, None) and "5 units" in found.reason
    assert found.p == pytest.approx(2 / 32)


def test_an_undefined_metric_has_no_test() -> None:
    found = compare_rows(Toy(), [means(np.ones(30))], [means(np.zeros(30))], "f1")
    assert math.isnan(found.difference) and found.p is None and "undefined" in found.reason
    assert found.to_dict()["difference"] is None


def test_systems_that_answer_alike() -> None:
    rows = means(np.random.default_rng(0).random(50))
    found = compare_rows(Toy(), [rows], [rows.copy()], "value")
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert compare_rows(Toy(), [rows, rows], [rows, rows], "value").p == 1


def test_the_order_of_examples_has_no_effect() -> None:
    random = np.random.default_rng(0)
    first, second, units = clustered(random)
    places, count = placed_units(units, len(units))
    assert count == 60 and places.max() == 59
    order = np.random.default_rng(1).permutation(len(units))
    a = compare_rows(Toy(), [first], [second], "value", units, resamples=100)
    b = compare_rows(Toy(), [first[order]], [second[order]], "value", units[order], resamples=100)
    assert b.p == a.p and b.low == pytest.approx(a.low, rel=1e-9)


def test_one_seed_beside_several_is_tested_with_what_is_known() -> None:
    random = np.random.default_rng(0)
    runs = [means(random.normal(value, 1, 200)) for value in (0, 0.1, -0.1, 0)]
    found = compare_rows(Toy(), runs[:1], runs[1:], "value", resamples=200)
    assert found.method == SEEDS and not found.trains
    assert compare_rows(Toy(), runs[:2], runs[2:], "value", resamples=200).trains


# ---- folds, Holm, t -------------------------------------------------------------------------------------------------------


def test_the_corrected_t_by_hand() -> None:
    """Five differences of mean 0.016 and variance 0.00013; 1/5 + 1/4 = 0.45; t = 0.016 / sqrt(0.0000585) = 2.0919."""
    found = compare_folds([0.02, 0.01, 0.03, 0.0, 0.02], 1 / 4)
    t = 0.016 / math.sqrt(0.00013 * 0.45)
    assert found.difference == pytest.approx(0.016) and found.method == FOLDS
    assert found.p == pytest.approx(2 * stats.t.sf(t, 4), rel=1e-10) == pytest.approx(0.10460, abs=1e-4)
    reach = 2.776445 * math.sqrt(0.0000585)
    assert (found.low, found.high) == (pytest.approx(0.016 - reach, rel=1e-6), pytest.approx(0.016 + reach, rel=1e-6))


def test_folds_that_cannot_be_tested() -> None:
    with pytest.raises(UsageError, match="1 fold"):
        compare_folds([0.1], 0.25)
    assert compare_folds([0.1, math.nan], 0.25).p is None
    assert compare_folds([0.0, 0.0], 0.25).p == 1 and compare_folds([0.1, 0.1], 0.25).p == 0


@given(st.lists(st.floats(0, 1), min_size=0, max_size=7), st.floats(0.001, 1))
def test_holm_rejects_what_the_steps_reject(ps: list[float], level: float) -> None:
    """By the steps of the paper: from the smallest on, while p <= level / (how many are left)."""
    level = min(level, 0.999)  # p is never more than 1, the paper's product is
    rejected: set[int] = set()
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        if ps[place] * (len(ps) - rank) > level:
            break
        rejected.add(place)
    assert {place for place, p in enumerate(holm(ps)) if p <= level} == rejected


def test_holm_of_an_example() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.9]) == [1.0, 1.0]


@settings(max_examples=300)
@given(st.floats(-60, 60), st.floats(0.3, 1e4))
def test_student_t_is_scipys(t: float, df: float) -> None:
    assert two_sided(t, df) == pytest.approx(2 * stats.t.sf(abs(t), df), rel=1e-8, abs=1e-280)


def test_critical_values_are_scipys() -> None:
    for df in (1, 1.7, 4, 30, 1e5):
        for level in (0.9, 0.95, 0.999):
            assert critical(level, df) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-8)
    assert incomplete_beta(2, 3, 0) == 0 and incomplete_beta(2, 3, 1) == 1
    assert math.isnan(two_sided(math.nan, 3)) and two_sided(math.inf, 3) == 0
