"""Folds and shares, index for index those of scikit-learn 1.9 with the same seed, so that others can make the same split.

Each function draws from `numpy.random.RandomState(seed)`, a generator that numpy has frozen, in scikit-learn's order.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.errors import InputError, opt, plural

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def share_of(share: float, n: int) -> int:
    """Return how many of n a share is: rounded up, as scikit-learn does."""
    return ceil(share * n)


def random_share(n: int, count: int, seed: int) -> Mask:
    """Return which `count` of n are taken: `ShuffleSplit`."""
    taken = np.zeros(n, bool)
    taken[np.random.RandomState(seed).permutation(n)[:count]] = True
    return taken


def grouped_share(groups: Numbers, share: float, seed: int) -> Mask:
    """Return the members of a share of the groups, which are numbered 0 ...: `GroupShuffleSplit`."""
    n = int(groups.max()) + 1
    return random_share(n, share_of(share, n), seed)[groups]


def stratified_share(labels: Numbers, count: int, seed: int) -> Mask:
    """Return which `count` are taken so that each label has its share: `StratifiedShuffleSplit`.

    Labels are numbered 0 ..., each with two members at least, and both sides have room for one of each.
    """
    rng = np.random.RandomState(seed)
    sizes = np.bincount(labels)
    kept = _by_label(sizes, len(labels) - count, rng)
    wanted = _by_label(sizes - kept, count, rng)
    taken = np.zeros(len(labels), bool)
    for label, size in enumerate(sizes):
        members = np.flatnonzero(labels == label)[rng.permutation(size)]
        taken[members[kept[label] : kept[label] + wanted[label]]] = True
    return taken


def _by_label(sizes: Numbers, draws: int, rng: np.random.RandomState) -> Numbers:
    """Return how many of each label are drawn: in proportion, and what rounding leaves to the largest remainders.

    Among equal remainders chance decides.
    """
    exact = sizes / sizes.sum() * draws
    numbers = np.floor(exact)
    rest, left = exact - numbers, int(draws - numbers.sum())
    for remainder in np.unique(rest)[::-1] if left > 0 else ():
        tied = np.flatnonzero(rest == remainder)
        chosen = rng.choice(tied, size=min(len(tied), left), replace=False)
        numbers[chosen] += 1
        left -= len(chosen)
        if left == 0:
            break
    return numbers.astype(np.int64)


def random_folds(n: int, k: int, seed: int) -> Numbers:
    """Return each one's fold, 0 to k - 1: `KFold(k, shuffle=True)`."""
    order = np.arange(n)
    np.random.RandomState(seed).shuffle(order)
    return _dealt(order, k)


def grouped_folds(groups: Numbers, k: int, seed: int) -> Numbers:
    """Return each one's fold; groups, numbered 0 ..., stay together: `GroupKFold(k, shuffle=True)`."""
    return _dealt(np.random.RandomState(seed).permutation(int(groups.max()) + 1), k)[groups]


def _dealt(order: npt.NDArray[Any], k: int) -> Numbers:
    """Return the fold of each member of a permutation that is cut into k runs of nearly equal length."""
    folds = np.empty(len(order), np.int64)
    for fold, members in enumerate(np.array_split(order, k)):
        folds[members] = fold
    return folds


def stratified_folds(labels: Numbers, k: int, seed: int) -> Numbers:
    """Return each one's fold, with each label's share in every fold: `StratifiedKFold(k, shuffle=True)`."""
    rng = np.random.RandomState(seed)
    values, first = np.unique(labels, return_index=True)
    by_appearance = values[np.argsort(first)]
    rank = np.empty(int(values.max()) + 1, np.int64)
    rank[by_appearance] = np.arange(len(values))
    ordered = np.sort(rank[labels])
    sizes = np.stack([np.bincount(ordered[fold::k], minlength=len(values)) for fold in range(k)])
    folds = np.empty(len(labels), np.int64)
    for place, label in enumerate(by_appearance):
        dealt = np.repeat(np.arange(k), sizes[:, place])
        rng.shuffle(dealt)
        folds[labels == label] = dealt
    return folds


def stratified_grouped_folds(labels: Numbers, groups: Numbers, k: int, seed: int) -> Numbers:
    """Return each one's fold; groups stay together, labels are even: `StratifiedGroupKFold(k, shuffle=True)`.

    Groups whose labels are most uneven come first; each goes where the folds' shares of the labels stay most alike.
    """
    n = int(groups.max()) + 1
    totals = np.bincount(labels)
    per_group = np.zeros((n, len(totals)))
    np.add.at(per_group, (groups, labels), 1)
    order = np.arange(n)
    np.random.RandomState(seed).shuffle(order)
    held = np.zeros((k, len(totals)))
    fold_of = np.empty(n, np.int64)
    for group in order[np.argsort(-np.std(per_group[order], axis=1), kind="stable")]:
        fold = _most_even(held, per_group[group], totals)
        held[fold] += per_group[group]
        fold_of[group] = fold
    return fold_of[groups]


def _most_even(held: npt.NDArray[np.float64], group: npt.NDArray[np.float64], totals: Numbers) -> int:
    """Return the fold that a group goes to: the least spread of shares between folds; among equals the emptiest."""
    k = len(held)
    tried = np.repeat(held[None], k, axis=0)
    tried[np.arange(k), np.arange(k)] += group
    spread = np.std(tried / totals, axis=1).mean(axis=1)
    sizes = held.sum(axis=1)
    best = 0
    for fold in range(1, k):
        equal = bool(np.isclose(spread[fold], spread[best])) and sizes[fold] < sizes[best]
        if spread[fold] < spread[best] or equal:
            best = fold
    return best


def check_strata(labels: Numbers, names: list[str], taken: int) -> None:
    """Refuse a stratified share that some label cannot have a part of."""
    sizes = np.bincount(labels)
    if sizes.min() < 2:
        few = ", ".join(repr(names[i]) for i in np.flatnonzero(sizes < 2)[:5])
        lonely = plural(int((sizes < 2).sum()), "label has", "labels have")
        raise InputError(
            f"{lonely} one row alone, such as {few}: a stratified split needs two of each",
            f"give {opt('data.split.by', 'random')}, or leave these labels out",
        )
    if min(taken, len(labels) - taken) < len(sizes):
        raise InputError(
            f"a side of {min(taken, len(labels) - taken):,} rows has no room for {len(sizes)} labels",
            f"give a larger share, or {opt('data.split.by', 'random')}",
        )
