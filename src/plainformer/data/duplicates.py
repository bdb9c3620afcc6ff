"""The same row on two sides: what a model is measured by, it may have learnt by heart.

Copies are rows of equal key (`survey`). A policy says what becomes of those on both sides: refuse (the default), drop_train,
group (they stay on one side, where we divide the rows ourselves), allow. What is alike but not equal is told, never dropped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.data.survey import Hashes, Survey, ids_of
from plainformer.errors import InputError, UsageError, opt, plural

SHOWN = 3


@dataclass(frozen=True)
class Overlap:
    """Copies of one part's rows in another.

    Attributes:
        part, of: names: rows of `part` ("validation") that are in `of` ("train") too.
        rows: how many of `part`. share: of all its rows. originals: how many rows of `of`.
        examples: places in `part` and in `of`.
    """

    part: str
    of: str
    rows: int
    share: float
    originals: int
    examples: tuple[tuple[str, str], ...] = ()

    def line(self) -> str:
        """Return it as a sentence."""
        shown = "; ".join(f"{one} is {other}" for one, other in self.examples)
        return (
            f"{plural(self.rows, f'row of {self.part} is', f'rows of {self.part} are')} in {self.of} too "
            f"({100 * self.share:.1f} %)" + (f": {shown}" if shown else "")
        )


@dataclass(frozen=True)
class Conflicts:
    """Rows with the same input and different labels: how many inputs, how many rows, and a few of them."""

    inputs: int = 0
    rows: int = 0
    examples: tuple[str, ...] = ()


def inside(survey: Survey) -> int:
    """Return how many rows repeat an earlier row of the same part."""
    return len(survey) - len(np.unique(ids_of(survey.keys))) if len(survey) else 0


def overlap(part: Survey, of: Survey) -> Overlap:
    """Return how many rows of a part are in another."""
    mine, theirs = _common_ids(part.keys, of.keys)
    here, there = np.isin(mine, theirs), np.isin(theirs, mine)
    first = {int(key): at for at, key in reversed(list(enumerate(theirs.tolist())))} if here.any() else {}
    shown = tuple((part.places[i], of.places[first[int(mine[i])]]) for i in np.flatnonzero(here)[:SHOWN])
    return Overlap(
        part.name, of.name, int(here.sum()), float(here.mean()) if len(part) else 0.0, int(there.sum()), shown
    )


def _common_ids(one: Hashes, other: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    ids = ids_of(np.concatenate([one, other]))
    return ids[: len(one)], ids[len(one) :]


def overlaps(parts: list[Survey]) -> list[Overlap]:
    """Return the overlaps of each later part with each earlier one, without those of no rows."""
    found = [overlap(part, of) for i, part in enumerate(parts) for of in parts[:i]]
    return [one for one in found if one.rows]


def kept_rows(train: Survey, others: list[Survey], policy: str, *, divided: bool) -> npt.NDArray[np.bool_]:
    """Return which rows of train are learnt from, (N,): all but those that `drop_train` drops.

    Args:
        train: its rows. others: validation and test rows, as far as there are any.
        policy: `data.duplicates`. divided: whether the parts were divided here, so that `group` has been obeyed.
    Raises:
        InputError: `refuse`, and there are copies. UsageError: `group`, and the parts came as they are.
    """
    if policy == "group" and not divided:
        raise UsageError(
            f"{opt('data.duplicates', 'group')} has no effect on parts that are given",
            f"give {opt('data.duplicates', 'drop_train')}, or {opt('data.split')} rows of one source",
        )
    found = [one for other in others if (one := overlap(other, train)).rows]
    kept = np.ones(len(train), bool)
    if policy == "refuse" and found:
        fix = ["drop_train (leave them out of train)", "allow"]
        if divided:
            fix.insert(1, "group (keep copies on one side)")
        raise InputError("; ".join(one.line() for one in found), f"give {opt('data.duplicates')}: {', '.join(fix)}")
    if policy == "drop_train":
        for other in others:
            mine, theirs = _common_ids(train.keys, other.keys)
            kept &= ~np.isin(mine, theirs)
    return kept


def conflicts(parts: list[Survey]) -> Conflicts:
    """Return the inputs that have different targets, within parts or across them."""
    surveys = [part for part in parts if part.labels is not None and len(part)]
    if not surveys:
        return Conflicts()
    keys = ids_of(np.concatenate([part.keys for part in surveys]))
    whole = ids_of(np.concatenate([part.whole for part in surveys]))
    kinds = np.zeros(int(keys.max()) + 1, np.int64)
    np.add.at(kinds, np.unique(np.stack([keys, whole], 1), axis=0)[:, 0], 1)
    twofold = np.flatnonzero(kinds > 1)
    places = [place for part in surveys for place in part.places]
    labels = [label for part in surveys for label in part.label_texts]
    shown = []
    for key in twofold[:SHOWN]:
        rows = np.flatnonzero(keys == key)
        said = {_short(labels[i]): places[i] for i in rows[::-1]}
        shown.append(", ".join(f"{label} ({place})" for label, place in sorted(said.items())))
    return Conflicts(len(twofold), int(np.isin(keys, twofold).sum()), tuple(shown))


def _short(label: str) -> str:
    return label if len(label) <= 40 else label[:39] + "…"


@dataclass
class WindowShare:
    """How much of a validation corpus is in the training corpus, word for word: windows of `size` tokens."""

    size: int
    windows: int = 0
    found: int = 0
    examples: Counter[int] = field(default_factory=Counter)  # validation example → its windows that were found

    @property
    def share(self) -> float:
        """Found windows among all; 0 where there are none."""
        return self.found / self.windows if self.windows else 0.0


_BASE = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_BASE, -1, 2**64)


def window_share(train: Any, validation: Any, *, size: int = 50, field_name: str = "input_ids") -> WindowShare:
    """Return the share of validation's windows of `size` tokens, end to end, that are anywhere in train.

    Args:
        train, validation: stores. size: tokens of a window. field_name: the array that holds tokens.
    A window is known by a 64-bit polynomial hash; memory is that of validation's windows.
    """
    result = WindowShare(size)
    hashes: list[npt.NDArray[np.uint64]] = []
    owners: list[npt.NDArray[np.int64]] = []
    for i in range(len(validation)):
        found = _windows(validation[i][field_name], size)[::size]
        hashes.append(found)
        owners.append(np.full(len(found), i))
    wanted = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    result.windows = len(wanted)
    if not len(wanted):
        return result
    known = np.unique(wanted)
    seen = np.zeros(len(known), bool)
    for i in range(len(train)):
        windows = _windows(train[i][field_name], size)
        at = np.searchsorted(known, windows)
        at[at == len(known)] = 0
        seen[at[known[at] == windows]] = True
    there = seen[np.searchsorted(known, wanted)]
    result.found = int(there.sum())
    result.examples = Counter(np.concatenate(owners)[there].tolist())
    return result


def _windows(ids: npt.NDArray[Any], size: int) -> npt.NDArray[np.uint64]:
    """Return a hash for each window of `size` tokens, (T - size + 1,): polynomials modulo 2^64, from prefix sums."""
    count = len(ids) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    mixed = mix(ids.astype(np.uint64))
    prefix = np.zeros(len(ids) + 1, np.uint64)
    np.cumsum(mixed * _powers(_BASE, len(ids)), out=prefix[1:])
    return mix((prefix[size:] - prefix[:-size]) * _powers(_INVERSE, count))


def _powers(base: int, count: int) -> npt.NDArray[np.uint64]:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return numbers well spread over 64 bits: the finisher of SplitMix64 (Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
