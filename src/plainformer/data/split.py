"""Rows are divided by what they hold: sorted by key, so that the file's order changes nothing, then drawn with a seed.

    sides = divide(survey, SplitConfig(validation=0.1, by="stratified"))
    folds = fold(survey, 5, "grouped")

`duplicates: group` keeps rows of one key on one side; a group (`split.group`) and copies of its members then stay together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.config.training import SplitConfig
from plainformer.config.values import no_effect
from plainformer.data.folds import (
    Mask,
    Numbers,
    check_strata,
    grouped_folds,
    random_folds,
    random_share,
    share_of,
    stratified_folds,
    stratified_grouped_folds,
    stratified_share,
)
from plainformer.data.survey import Hashes, Survey, ids_of
from plainformer.errors import InputError, UsageError, opt, plural

SIDES = ("train", "validation", "test", "held_out")
UNSEEN = ("test", "held_out")  # a run only hashes their rows, to look for leaks


@dataclass(frozen=True)
class Split:
    """Which side each row is on, its place in `SIDES`, in the order of the rows that were surveyed."""

    sides: npt.NDArray[np.int8]
    config: SplitConfig
    keys: Hashes

    def rows(self, side: str) -> Numbers:
        """Return the numbers of a side's rows, in the file's order."""
        return np.flatnonzero(self.sides == SIDES.index(side))

    def record(self) -> dict[str, Any]:
        """Return what `splits.json` says: the configuration, and count and digest of each side's keys."""
        names = ("by", "group", "seed", "validation", "test")
        if self.config.folds is not None:
            names += ("folds", "fold", *(("outer", "outer_fold") if self.config.outer is not None else ()))
        config = {name: getattr(self.config, name) for name in names}
        sides = {
            name: {"rows": len(rows), "keys": digest(self.keys[rows])} for name in SIDES if len(rows := self.rows(name))
        }
        return {**config, "sides": sides}


def digest(keys: Hashes) -> str:
    """Return a hash of a set of keys, whatever their order: two files with the same rows have the same."""
    ordered = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
    return hashlib.blake2b(ordered.astype(">u8").tobytes(), digest_size=16).hexdigest()


def divide(survey: Survey, config: SplitConfig, duplicates: str = "refuse") -> Split:
    """Return the sides of rows: first the test set is drawn, then the fold that is held out, then the validation set.

    Shares are of all rows; with groups, of all groups; with folds, validation's is of what the fold leaves. Both draws use
    the seed, as two runs of scikit-learn's splitters on the rows sorted by key would (`ShuffleSplit`,
    `StratifiedShuffleSplit`, `GroupShuffleSplit`). Folds are those of `fold` on all rows but the test set; with `outer`, on
    those that the outer fold leaves, and both are held out.

    Raises:
        UsageError: `by` and `group` do not fit together. InputError: a side would be empty, or lack a label.
    """
    order, labels, units = _prepared(survey, config.by, config.group, duplicates)
    sides = np.zeros(len(order), np.int8)
    rest = np.arange(len(order))
    total = len(order) if units is None else int(units.max()) + 1

    def put(those: Mask, side: str) -> Numbers:
        sides[rest[those]] = SIDES.index(side)
        return rest[~those]

    if config.test:
        rest = put(_take(rest, labels, units, share_of(config.test, total), config.seed, survey), "test")
    for k, number in ((config.outer, config.outer_fold), (config.folds, config.fold)):
        if k is not None and number is not None:
            own = survey.taken(order[rest], survey.name)
            found = fold(own, k, config.by, seed=config.seed, group=config.group, duplicates=duplicates)
            rest = put(found == number - 1, "held_out")
            total = len(rest) if units is None else len(np.unique(units[rest]))
    rest = put(_take(rest, labels, units, share_of(config.validation, total), config.seed, survey), "validation")
    back = np.empty_like(sides)
    back[order] = sides
    return Split(back, config, survey.keys)


def _take(rest: Numbers, labels: Numbers | None, units: Numbers | None, count: int, seed: int, survey: Survey) -> Mask:
    """Return which of the rows `rest` are drawn: `count` of them, or all rows of `count` units."""
    # Numbered anew, in the same order, since some are on the test side already.
    own = np.arange(len(rest)) if units is None else np.unique(units[rest], return_inverse=True)[1]
    n = int(own.max()) + 1 if len(own) else 0
    if count >= n:
        what = "row" if units is None else "group"
        raise InputError(
            f"{plural(n, what)} cannot give {count:,} and keep one",
            "give smaller shares or more data; format: paragraphs or lines makes more rows of one text",
        )
    if labels is None:
        return random_share(n, count, seed)[own]
    first = np.unique(own, return_index=True)[1]
    values, strata = np.unique(labels[rest[first]], return_inverse=True)
    check_strata(strata, [_label_names(survey)[i] for i in values], count)
    return stratified_share(strata, count, seed)[own]


def fold(
    survey: Survey,
    k: int,
    by: str = "random",
    *,
    seed: int = 0,
    group: str | None = None,
    duplicates: str = "refuse",
) -> Numbers:
    """Return the fold, 0 to k - 1, of each row; arguments as those of `SplitConfig`.

    Equal to scikit-learn's `KFold`, `StratifiedKFold`, `GroupKFold` and, for labels with groups, `StratifiedGroupKFold`,
    all with shuffle=True, on the rows sorted by key.
    """
    order, labels, units = _prepared(survey, by, group, duplicates)
    n = len(order) if units is None else int(units.max()) + 1
    if not 2 <= k <= n:
        raise UsageError(f"{opt('folds', k)} of {plural(n, 'row' if units is None else 'group')}", f"give 2 to {n:,}")
    if labels is not None:
        smallest = np.bincount(labels).min()
        if smallest < k:
            name = _label_names(survey)[int(np.bincount(labels).argmin())]
            raise InputError(
                f"the label {name!r} has {plural(int(smallest), 'row')}, fewer than {k} folds",
                f"give fewer folds, or {opt('data.split.by', 'random')}",
            )
        folds = stratified_folds(labels, k, seed) if units is None else stratified_grouped_folds(labels, units, k, seed)
    else:
        folds = random_folds(n, k, seed) if units is None else grouped_folds(units, k, seed)
    back = np.empty(len(order), np.int64)
    back[order] = folds
    return back


def _prepared(
    survey: Survey, by: str, group: str | None, duplicates: str
) -> tuple[Numbers, Numbers | None, Numbers | None]:
    """Return the order of rows by key, and in that order their labels' numbers and what stays together."""
    named, asked = opt("data.split.group"), opt("data.split.by", by)
    if by == "grouped" and survey.groups is None:
        raise UsageError(f"{asked} without {named}", "name the column whose values stay together")
    grouped = opt("data.split.by", "grouped")
    no_effect(group is not None and by != "grouped", "data.split.group", f"with {asked}", f"give {grouped}")
    if by == "stratified" and survey.labels is None:
        raise UsageError(
            f"{opt('data.split.by', 'stratified')} where rows have no label", f"give {opt('data.split.by', 'random')}"
        )
    if not len(survey):
        raise InputError("there are no rows to divide", "check the data")
    # Rows that differ in their targets alone are told apart by all they hold.
    order = np.lexsort((survey.whole[:, 1], survey.whole[:, 0], survey.keys[:, 1], survey.keys[:, 0]))
    labels = _label_numbers(survey)[order] if by == "stratified" else None
    groups = ids_of(survey.groups) if by == "grouped" and survey.groups is not None else None
    if duplicates == "group":
        keys = ids_of(survey.keys)
        groups = keys if groups is None else _joined(groups, keys)
    return order, labels, None if groups is None else groups[order]


def _label_names(survey: Survey) -> list[str]:
    return sorted(set(survey.label_texts))


def _label_numbers(survey: Survey) -> Numbers:
    numbers = {name: i for i, name in enumerate(_label_names(survey))}
    return np.array([numbers[label] for label in survey.label_texts], np.int64)


def _joined(groups: Numbers, keys: Numbers) -> Numbers:
    """Return what stays together where rows of one group must, and rows of one key must: connected components.

    Each takes the lowest number that reaches it, again and again until nothing changes; then they are numbered 0 ....
    """
    found = groups.copy()
    while True:
        before = found
        for same in (keys, groups):
            lowest = np.full(int(same.max()) + 1, len(found), np.int64)
            np.minimum.at(lowest, same, found)
            found = lowest[same]
        if np.array_equal(found, before):
            return np.unique(found, return_inverse=True)[1]
