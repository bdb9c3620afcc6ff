"""Rows that are nearly copies: at least 0.8 of their runs of five words are common (Broder 1997, MinHash).

Candidates come from 128 minima in 32 bands of 4: two texts of that likeness share a band with a probability of 1 - 6e-8.
What is reported was compared exactly. Texts of fewer than five words are one run.
"""

from __future__ import annotations

import re
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
    runs: list[Hashes] = []
    texts: list[bytes] = []
    known: dict[str, int] = {}
    total, first_other = 0, 0
    for part in (train, others):
        first_other = len(places)
        for place, text in part:
            text = normalised(text)
            found = _runs(text, known)
            total += len(found)
            if total > MAX_RUNS:
                return Near(0)
            places.append(place)
            runs.append(found)
            texts.append(hash_of(text))
    if not places:
        return Near(0)
    return _compared(places, runs, texts, first_other)


def _runs(text: str, known: dict[str, int]) -> Hashes:
    """Return the hashes of a normalised text's runs of five words, each once, sorted; none for a text without words."""
    words = re.findall(r"\w+", text)
    if not words:
        return np.empty(0, np.uint64)
    ids = mix(np.array([known.setdefault(word, len(known)) for word in words], np.uint64))
    length = min(WORDS, len(ids))
    count = len(ids) - length + 1
    hashed = np.zeros(count, np.uint64)
    for i in range(length):
        hashed = mix(hashed ^ ids[i : i + count])
    return np.unique(hashed)


def _minima(runs: list[Hashes]) -> npt.NDArray[np.uint32]:
    """Return 128 minima of each text's runs, (N, 128), under hashes (a x + b) mod 2^64, of which the upper half is kept."""
    rng = np.random.Generator(np.random.Philox(0))
    a = rng.integers(0, 2**63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    b = rng.integers(0, 2**63, HASHES, dtype=np.uint64)
    minima = np.empty((len(runs), HASHES), np.uint32)
    start = 0
    while start < len(runs):
        stop, size = start, 0
        while stop < len(runs) and (size == 0 or size + len(runs[stop]) <= _CHUNK):
            size += len(runs[stop])
            stop += 1
        flat = np.concatenate(runs[start:stop])
        begins = np.cumsum([0, *(len(one) for one in runs[start : stop - 1])])
        for i in range(HASHES):
            hashed = ((flat * a[i] + b[i]) >> np.uint64(32)).astype(np.uint32)
            minima[start:stop, i] = np.minimum.reduceat(hashed, begins)
        start = stop
    return minima


def _compared(places: list[str], runs: list[Hashes], texts: list[bytes], first_other: int) -> Near:
    worded = np.array([i for i, one in enumerate(runs) if len(one)], np.int64)
    if not len(worded):
        return Near(len(places))
    minima = _minima([runs[i] for i in worded])
    alike: dict[int, tuple[int, float]] = {}  # a text → an earlier one that it is like
    done: set[tuple[int, int]] = set()
    for pairs in _candidates(minima, worded, first_other):
        # The share of equal minima estimates likeness with a deviation of 0.035 at 0.8.
        likely = (minima[pairs[:, 0]] == minima[pairs[:, 1]]).mean(axis=1) >= LIKENESS - 0.15
        for later, earlier in worded[pairs[likely]].tolist():
            if later in alike or (later, earlier) in done or texts[later] == texts[earlier]:
                continue
            done.add((later, earlier))
            like = _likeness(runs[later], runs[earlier])
            if like >= LIKENESS:
                alike[later] = (earlier, like)
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


def _likeness(one: Hashes, other: Hashes) -> float:
    """Return Jaccard's index of two sorted sets."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
