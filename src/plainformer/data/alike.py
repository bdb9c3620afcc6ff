"""Rows that are nearly copies: at least 0.8 of their runs of five words are common (Broder 1997, MinHash).

Candidates come from 128 minima in 32 bands of 4: two texts of that likeness share a band with a probability of 1 - 6e-8.
What is reported was compared exactly. Texts of fewer than five words are one run.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.data.columns import Columns
from plainformer.data.duplicates import SHOWN, mix
from plainformer.data.rows import DataRow, MediaPath
from plainformer.data.survey import hash_of, ids_of, normalised
from plainformer.errors import plural

WORDS, HASHES, BANDS = 5, 128, 32
LIKENESS = 0.8
MAX_RUNS = 40_000_000  # 320 MB of hashes; a larger corpus is compared by windows of tokens
_COMPARED = 24  # earlier members of a bucket that a text is compared with: boilerplate fills buckets with thousands
_CHUNK = 200_000  # runs that are hashed at a time

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Near:
    """What is nearly a copy.

    Attributes:
        compared: texts; 0 where there were too many words. inside: rows of train that are like an earlier one.
        across: rows of other parts that are like one of train. Exact copies are not counted.
        examples: places of rows across and their likeness.
    """

    compared: int
    inside: int = 0
    across: int = 0
    examples: tuple[tuple[str, str, float], ...] = ()

    def lines(self) -> list[str]:
        """Return it for people."""
        if not self.compared:
            return ["near copies were not looked for: the text is too long for it"]
        shown = "; ".join(
            f"{one} and {other} ({'the same words' if like == 1 else f'{100 * like:.0f} % alike'})"
            for one, other, like in self.examples
        )
        across = f"{plural(self.across, 'row')} of other parts nearly equal one of train" + (
            f": {shown}" if shown else ""
        )
        return [across] * bool(self.across) + [
            f"{plural(self.inside, 'row')} of train nearly equal an earlier one"
        ] * bool(self.inside)


def texts_of(rows: Iterable[DataRow], columns: Columns, targets: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield the place and the input text of each row; columns without text have none."""
    inputs = [name for name in columns.names if name not in set(targets)]
    for row in rows:
        mapped = columns.row(row)
        if not columns.missing(mapped):
            yield row.place, " ".join(_text(mapped.get(name)) for name in inputs)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return value if isinstance(value, str) and not isinstance(value, MediaPath) else ""


def near_copies(train: Iterable[tuple[str, str]], others: Iterable[tuple[str, str]] = ()) -> Near:
    """Return what is nearly a copy among texts, given with their places; see `texts_of`."""
    places: list[str] = []
    texts: list[bytes] = []
    runs = _Runs()
    first_other = 0
    for part in (train, others):
        first_other = len(places)
        for place, text in part:
            text = normalised(text)
            places.append(place)
            texts.append(hash_of(text))
            if runs.add(text) > MAX_RUNS:
                return Near(0)
    if not places:
        return Near(0)
    runs.finish()
    return _compared(places, runs, texts, first_other)


class _Runs:
    """The runs of five words of all texts, as hashes in one flat array; text i has those from `begins[i]`."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._words = array("q")
        self._counts: list[int] = []  # words of each text that waits
        self._flat: list[Hashes] = []
        self._sizes: list[npt.NDArray[np.int64]] = []
        self._sets: dict[int, Hashes] = {}
        self._total = 0

    def add(self, text: str) -> int:
        """Take a normalised text; return how many words there are by now."""
        words = re.findall(r"\w+", text)
        known = self._known
        self._words.extend([known.setdefault(word, len(known)) for word in words])
        if words:
            self._words.extend([-1] * (WORDS - len(words)))  # a short text is one run
        self._counts.append(max(len(words), WORDS) if words else 0)
        self._total += len(words)
        if len(self._words) > _CHUNK:
            self._hash()
        return self._total

    def _hash(self) -> None:
        counts = np.array(self._counts, np.int64)
        ids = mix(np.frombuffer(self._words, np.int64).astype(np.uint64))
        hashed = np.zeros(max(len(ids) - WORDS + 1, 0), np.uint64)
        for i in range(WORDS if len(hashed) else 0):
            hashed = mix(hashed ^ ids[i : i + len(hashed)])
        inside = np.ones(len(ids), bool)  # runs that do not reach into the next text
        for i in range(1, WORDS):
            inside[np.cumsum(counts)[counts > 0] - i] = False
        self._flat.append(hashed[inside[: len(hashed)]])
        self._sizes.append(np.maximum(counts - WORDS + 1, 0))
        self._words, self._counts = array("q"), []

    def finish(self) -> None:
        """Put the parts together."""
        self._hash()
        self.flat = np.concatenate(self._flat)
        self.begins = np.cumsum(np.concatenate([[0], *self._sizes]))
        self._flat = []

    def likeness(self, one: int, other: int) -> float:
        """Return Jaccard's index of two texts' sets of runs."""
        mine, theirs = self._set(one), self._set(other)
        common = len(np.intersect1d(mine, theirs, assume_unique=True))
        return common / (len(mine) + len(theirs) - common)

    def _set(self, i: int) -> Hashes:
        if i not in self._sets:
            self._sets[i] = np.unique(self.flat[self.begins[i] : self.begins[i + 1]])
        return self._sets[i]


def _minima(runs: _Runs, worded: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Return 128 minima of each text with words, (N, 128), under hashes (a x + b) mod 2^64, of which the upper half is kept."""
    rng = np.random.Generator(np.random.Philox(0))
    a = rng.integers(0, 2**63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    b = rng.integers(0, 2**63, HASHES, dtype=np.uint64)
    minima = np.empty((len(worded), HASHES), np.uint32)
    begins = np.append(runs.begins[worded], len(runs.flat))
    start = 0
    while start < len(worded):
        stop = max(start + 1, int(np.searchsorted(begins, begins[start] + _CHUNK, "right")) - 1)
        flat = runs.flat[begins[start] : begins[stop]]
        for i in range(HASHES):
            hashed = ((flat * a[i] + b[i]) >> np.uint64(32)).astype(np.uint32)
            minima[start:stop, i] = np.minimum.reduceat(hashed, begins[start:stop] - begins[start])
        start = stop
    return minima


def _compared(places: list[str], runs: _Runs, texts: list[bytes], first_other: int) -> Near:
    worded = np.flatnonzero(np.diff(runs.begins))
    if not len(worded):
        return Near(len(places))
    minima = _minima(runs, worded)
    alike: dict[int, tuple[int, float]] = {}  # a text → an earlier one that it is like
    known = np.zeros(len(places), bool)  # those in `alike`
    done: set[tuple[int, int]] = set()
    for pairs in _candidates(minima, worded, first_other):
        pairs = pairs[~known[worded[pairs[:, 0]]]]
        # The share of equal minima estimates likeness with a deviation of 0.035 at 0.8.
        likely = (minima[pairs[:, 0]] == minima[pairs[:, 1]]).mean(axis=1) >= LIKENESS - 0.15
        for later, earlier in worded[pairs[likely]].tolist():
            if known[later] or (later, earlier) in done or texts[later] == texts[earlier]:
                continue
            done.add((later, earlier))
            like = runs.likeness(later, earlier)
            if like >= LIKENESS:
                alike[later] = (earlier, like)
                known[later] = True
    across = [later for later in sorted(alike) if later >= first_other]
    shown = tuple((places[i], places[alike[i][0]], alike[i][1]) for i in across[:SHOWN])
    return Near(len(places), len(alike) - len(across), len(across), shown)


def _candidates(
    minima: npt.NDArray[np.uint32], worded: npt.NDArray[np.int64], first_other: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield pairs (later, earlier) of equal bands; texts of other parts are paired with texts of train alone."""
    others_from = int(np.searchsorted(worded, first_other))
    width = HASHES // BANDS
    for band in range(BANDS):
        part = np.ascontiguousarray(minima[:, band * width : (band + 1) * width])
        bucket = ids_of(part.view(np.uint64))
        order = np.argsort(bucket, kind="stable")
        grouped = bucket[order]
        for step in range(1, _COMPARED + 1):
            same = np.flatnonzero(grouped[step:] == grouped[:-step])
            if not len(same):
                break
            pairs = np.stack([order[same + step], order[same]], 1)
            yield pairs[pairs[:, 1] < others_from]
        yield _with_train(order, grouped, others_from)


def _with_train(order: Any, grouped: Any, others_from: int) -> npt.NDArray[np.int64]:
    """Return each text of another part with the last and the first texts of train in its bucket."""
    starts = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]])
    sizes = np.diff(np.r_[starts, len(grouped)])
    start = np.repeat(starts, sizes)
    in_train = np.add.reduceat((order < others_from).astype(np.int64), starts)
    trained = np.repeat(in_train, sizes)
    later = np.flatnonzero((order >= others_from) & (trained > 0))
    pairs = [
        np.stack([order[later], order[start[later] + at]], 1)
        for i in range(_COMPARED // 2)
        for at in (np.minimum(i, trained[later] - 1), np.maximum(trained[later] - 1 - i, 0))
    ]
    return np.unique(np.concatenate(pairs), axis=0)
