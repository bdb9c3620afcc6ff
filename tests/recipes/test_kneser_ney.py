"""Modified Kneser-Ney: by the formula word by word on a small corpus, sums of one, and what it makes of text that it knows."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from kneser_ney import KneserNey, discounts_of

WORDS = 6
TEXT = [0, 1, 2, 0, 1, 2, 0, 1, 3, 4, 0, 1, 2, 3, 3, 4, 1, 2, 0, 2, 1, 0, 1, 2, 0, 1, 2, 0]  # 5 is never seen


def by_hand(text: list[int], order: int, context: tuple[int, ...], word: int) -> float:
    """The formula of Chen & Goodman (1999), with dictionaries: counts at the highest order, different words before it below."""
    grams = {n: [tuple(text[i : i + n]) for i in range(len(text) - n + 1)] for n in range(1, order + 1)}
    counts = {order: Counter(grams[order])}
    for n in range(1, order):
        counts[n] = Counter(dict.fromkeys(grams[n], 0))
        for longer in set(grams[n + 1]):
            counts[n][longer[1:]] += 1

    def chance(n: int) -> float:
        if n == 0:
            return 1 / WORDS
        history = context[len(context) - n + 1 :] if n > 1 else ()
        mine = {gram[-1]: count for gram, count in counts[n].items() if gram[:-1] == history}
        total = sum(mine.values())
        if not total:
            return chance(n - 1)
        discounts = (0.0, *discounts_of(np.array(list(counts[n].values()))))
        taken = {other: min(discounts[min(count, 3)], count) for other, count in mine.items()}
        own = mine.get(word, 0) - taken.get(word, 0.0)
        return (own + sum(taken.values()) * chance(n - 1)) / total

    return chance(order)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_of_the_formula(order: int) -> None:
    model = KneserNey(TEXT, WORDS, order)
    for context in [(0, 1, 2, 0), (2, 0, 1, 3), (4, 4, 4, 4), (3, 3, 5, 1), (1, 2, 3, 3)]:
        found = model.distribution(context)
        expected = [by_hand(TEXT, order, context, word) for word in range(WORDS)]
        assert np.allclose(found, expected, rtol=1e-12), context


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one(order: int) -> None:
    rng = np.random.default_rng(0)
    text = rng.choice(WORDS, 400, p=[0.4, 0.3, 0.1, 0.1, 0.1, 0.0])
    model = KneserNey(text, WORDS, order)
    for length in range(order + 2):
        for _ in range(5):
            context = rng.integers(0, WORDS, length)
            assert math.isclose(model.distribution(context).sum(), 1, rel_tol=1e-12)


def test_a_text_is_scored_as_its_words_are() -> None:
    model = KneserNey(TEXT, WORDS, 3)
    found = model.log_probabilities([2, 0, 1, 5, 1])
    assert math.isclose(found[2], math.log(model.distribution((2, 0))[1]), rel_tol=1e-12)
    assert math.isclose(found[3], math.log(model.distribution((0, 1))[5]), rel_tol=1e-12)


def test_discounts_are_those_of_the_paper() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [40, 20, 10, 5, 3])
    y = 40 / (40 + 2 * 20)
    assert np.allclose(discounts_of(counts), (1 - 2 * y * 20 / 40, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10))


def test_longer_contexts_predict_repetition_better() -> None:
    text = np.tile([0, 1, 2, 3, 4, 2, 1], 40)
    losses = [-KneserNey(text, WORDS, order).log_probabilities(text[:70]).mean() for order in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.2
