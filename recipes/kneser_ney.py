"""An n-gram model with modified Kneser-Ney smoothing, interpolated (Chen & Goodman 1999): what a small neural model must beat.

    model = KneserNey(train_ids, vocabulary=8192, order=5)
    nats = -model.log_probabilities(ids).sum()

The n-grams of each order are numbered in the order of (number of the n-gram without its last word, last word), so that
looking one up is a search in a sorted array. Shapes: T tokens, N different n-grams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Order:
    """The n-grams of one order.

    Attributes:
        keys: (N,) number of the first n - 1 words times the vocabulary, plus the last word; sorted.
        discounted: (N,) count less discount. total, backoff: by context: sum of counts, and the mass that discounts free.
    """

    keys: Ids
    discounted: Floats
    total: Floats
    backoff: Floats


class KneserNey:
    """Probabilities of the next of `vocabulary` words after `order` - 1 words."""

    def __init__(self, ids: npt.ArrayLike, vocabulary: int, order: int = 5) -> None:
        ids_T = np.asarray(ids, np.int64)
        self.vocabulary = vocabulary
        self.orders: list[Order] = []
        numbers_T = np.zeros(
            len(ids_T) + 1, np.int64
        )  # of the n-gram that ends at each place; place 0 is before the first
        found = []
        for n in range(1, order + 1):
            # The first n-gram ends at place n; its first n - 1 words end one place before.
            keys = numbers_T[n - 1 : -1] * vocabulary + ids_T[n - 1 :]
            unique, first, own, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
            numbers_T = np.concatenate([np.full(n, -1), own])
            found.append((unique, first + n, counts, numbers_T))
        for n, (unique, _, counts, numbers_T) in enumerate(found):
            if n + 1 < order:
                # Below the highest order a count is of the different words before the n-gram: n-grams one longer that end in it.
                _, ends, _, _ = found[n + 1]
                counts = np.bincount(numbers_T[ends], minlength=len(unique))
            contexts = 1 if n == 0 else len(found[n - 1][0])
            self.orders.append(_order(unique, counts, contexts, vocabulary))

    def log_probabilities(self, ids: npt.ArrayLike) -> Floats:
        """Return (T,) natural logarithms of each word's probability after those before it in `ids`."""
        ids_T = np.asarray(ids, np.int64)
        chance_T = np.full(len(ids_T), 1 / self.vocabulary)
        context_T = np.zeros(len(ids_T), np.int64)  # number of the context at this order; -1 where it was never seen
        for order in self.orders:
            chance_T, number_T = self._mixed(order, context_T, ids_T, chance_T)
            context_T = np.concatenate([[-1], number_T[:-1]])  # the n-gram that ends before a word is its next context
        return np.log(chance_T)

    def distribution(self, context: npt.ArrayLike) -> Floats:
        """Return (V,) the probability of each word after a context of any length."""
        before = np.asarray(context, np.int64)
        keep = len(self.orders) - 1
        before = before[-keep:] if keep else before[:0]
        rows = [self.log_probabilities([*before, word])[-1] for word in range(self.vocabulary)]
        return np.exp(rows)

    def _mixed(self, order: Order, context_T: Ids, ids_T: Ids, lower_T: Floats) -> tuple[Floats, Ids]:
        """Return the probabilities of this order from those of the one below, and the number of each n-gram."""
        known_T = context_T >= 0
        keys_T = np.where(known_T, context_T * self.vocabulary + ids_T, -1)
        place_T = np.minimum(np.searchsorted(order.keys, keys_T), len(order.keys) - 1)
        seen_T = known_T & (order.keys[place_T] == keys_T)
        context_T = np.maximum(context_T, 0)
        total_T = np.where(known_T, order.total[context_T], 0)
        own_T = np.where(seen_T, order.discounted[place_T], 0)
        mixed_T = (own_T + order.backoff[context_T] * lower_T) / np.maximum(total_T, 1)
        return np.where(total_T > 0, mixed_T, lower_T), np.where(seen_T, place_T, -1)


def _order(keys: Ids, counts: Ids, contexts: int, vocabulary: int) -> Order:
    context_N = keys // vocabulary
    discounts = np.array([0.0, *discounts_of(counts)])
    taken_N = np.minimum(discounts[np.minimum(counts, 3)], counts)
    total = np.bincount(context_N, counts, contexts)
    backoff = np.bincount(context_N, taken_N, contexts)
    return Order(keys, counts - taken_N, total, backoff)


def discounts_of(counts: Ids) -> tuple[float, float, float]:
    """Return what is taken from counts of 1, 2, and 3 or more (Chen & Goodman 1999, equation 26); 0 to 1, 2 and 3."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 else 0.0
    raw = (1 - 2 * y * n2 / max(n1, 1), 2 - 3 * y * n3 / max(n2, 1), 3 - 4 * y * n4 / max(n3, 1))
    return tuple(float(np.clip(value, 0.0, most)) for value, most in zip(raw, (1, 2, 3), strict=True))  # type: ignore[return-value]
