"""One pass over rows: what each holds as a hash, its label, its group, its place. Splits, duplicates and reports need no more.

A row's key is BLAKE2b-128 of its input columns after NFKC, casefold and white space collapsed to single spaces: copies that
differ in case, spaces or the width of letters have the same key. Clips and images are hashed as the bytes of their files.
"""

from __future__ import annotations

import hashlib
import json
import sys
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.data.columns import Columns, value_of
from plainformer.data.counts import Counts
from plainformer.data.rows import DataRow, MediaPath
from plainformer.errors import InputError, UsageError, did_you_mean, opt

Hashes = npt.NDArray[np.uint64]  # (N, 2): 128 bits of each row
_BETWEEN = "\x1e"  # white space to str.split, so no normalised text holds it


def normalised(text: str) -> str:
    """Return a text without what makes no difference: NFKC, casefold, white space collapsed."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def plain(value: Any) -> str:
    """Return any value of a row as one normalised text; words of a list are joined by spaces, media are hashed."""
    if isinstance(value, MediaPath):
        return _file_hash(Path(value))
    if isinstance(value, str):
        return normalised(value)
    if isinstance(value, list | tuple):
        if all(isinstance(one, str) for one in value):
            return normalised(" ".join(value))
        return " ".join(map(plain, value))
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):  # a clip or image inside a parquet file
            return plain(value["bytes"])
        return normalised(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.blake2b(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, bytes):
        return hashlib.blake2b(value).hexdigest()
    return "" if value is None else repr(value)


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path and permissions") from None


def hash_of(*texts: str) -> bytes:
    """Return 16 bytes of BLAKE2b of normalised texts."""
    return hashlib.blake2b(_BETWEEN.join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


# What may follow the colon in `split.group`: a part of a column's value.
PARTS: dict[str, Callable[[str], str]] = {
    "first_paragraph": lambda text: text.strip().replace("\r\n", "\n").split("\n\n", 1)[0],
    "first_line": lambda text: text.strip().split("\n", 1)[0],
    "folder": lambda text: PurePosixPath(text).parent.as_posix(),
}


@dataclass(frozen=True)
class Group:
    """`split.group`: a column of the data, perhaps with a part of it: "description:first_paragraph", "file:folder"."""

    column: str
    part: str = ""

    @classmethod
    def parse(cls, text: str) -> Group:
        """Return the group of a configuration. Raises UsageError for an unknown part."""
        column, _, part = text.rpartition(":") if ":" in text else (text, "", "")
        if part and part not in PARTS:
            raise UsageError(
                f"{opt('data.split.group', text)} asks for the part {part!r} of a column",
                did_you_mean(part, PARTS) or f"known: {', '.join(PARTS)}",
            )
        return cls(column, part)

    def of(self, row: DataRow) -> str:
        """Return a row's group."""
        value = value_of(row, self.column)
        if value is None:
            raise InputError(
                f"{row.place} has no {self.column!r}, which {opt('data.split.group')} names",
                did_you_mean(self.column, row) or f"its columns are {', '.join(row)}",
            )
        return plain(PARTS[self.part](value) if self.part and isinstance(value, str) else value)


@dataclass
class Survey:
    """What one pass over rows leaves of the N that can be used.

    Attributes:
        name: "train", "validation" or "test". places: where each row is. numbers: its number among the rows as read, (N,).
        keys: hashes of the inputs, (N, 2). whole: of inputs and targets.
        labels: what each row's target holds, as texts: one label, or those of a list; None where nothing is learnt.
        groups: hashes of the groups, (N, 2), where one is asked for.
        counts: rows that were dropped, for want of a value.
    """

    name: str
    places: list[str]
    numbers: npt.NDArray[np.int64]
    keys: Hashes
    whole: Hashes
    labels: list[tuple[str, ...]] | None = None
    groups: Hashes | None = None
    counts: Counts = field(default_factory=Counts)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def label_texts(self) -> list[str]:
        """Each row's target as one text; none where nothing is learnt."""
        return [", ".join(label) for label in self.labels or ()]

    def label_counts(self) -> Counter[str]:
        """Return how often each label is there."""
        return Counter(chain.from_iterable(self.labels or ()))

    def taken(self, indices: npt.NDArray[Any], name: str) -> Survey:
        """Return the survey of some of the rows."""
        labels = None if self.labels is None else [self.labels[i] for i in indices]
        groups = None if self.groups is None else self.groups[indices]
        places = [self.places[i] for i in indices]
        return Survey(name, places, self.numbers[indices], self.keys[indices], self.whole[indices], labels, groups)


def survey(
    name: str, rows: Iterable[DataRow], columns: Columns, targets: Sequence[str] = (), group: str | None = None
) -> Survey:
    """Return what one pass over rows leaves; those without a required value are dropped, and counted.

    Args:
        name: of the part. rows: unmapped. columns: which columns are the objective's.
        targets: the objective's columns that are learnt and not read; the first is the label of tables and strata.
        group: `data.split.group`.
    """
    wanted = Group.parse(group) if group is not None else None
    inputs = [column for column in columns.names if column not in targets]
    learnt = [column for column in targets if column in columns.names]
    places: list[str] = []
    labels: list[tuple[str, ...]] = []
    numbers, keys, whole, groups = array("q"), bytearray(), bytearray(), bytearray()
    counts = Counts()
    for number, row in enumerate(rows):
        counts.rows += 1
        mapped = columns.row(row)
        missing = columns.missing(mapped)
        if missing:
            counts.drop(missing, row.place)
            continue
        read = [plain(mapped.get(column)) for column in inputs]
        numbers.append(number)
        places.append(row.place)
        key = hash_of(*read)
        keys += key
        whole += hash_of(key.hex(), *(plain(mapped.get(column)) for column in learnt)) if learnt else key
        if learnt:
            labels.append(_labels(mapped.get(learnt[0])))
        if wanted is not None:
            groups += hash_of(wanted.of(row))
    found = Survey(name, places, np.array(numbers, np.int64), _hashes(keys), _hashes(whole), counts=counts)
    found.labels = labels if learnt else None
    found.groups = _hashes(groups) if wanted is not None else None
    return found


def _labels(target: Any) -> tuple[str, ...]:
    """Return the labels of a target as people write them."""
    if isinstance(target, list | tuple):
        return tuple(map(_written, target))
    return () if target is None else (_written(target),)


def _written(label: Any) -> str:
    # Interned: thousands of rows share a few labels.
    text = label if isinstance(label, str) else json.dumps(label, ensure_ascii=False, sort_keys=True, default=str)
    return sys.intern(text)


def _hashes(data: bytearray) -> Hashes:
    # Big-endian words, so that the order of numbers is the order of bytes.
    return np.frombuffer(bytes(data), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def ids_of(hashes: Hashes) -> npt.NDArray[np.int64]:
    """Return a number for each hash, equal for equal ones and in the order of hashes: 0, 1, 2 ..."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    ids = np.empty(len(hashes), np.int64)
    ids[order] = np.cumsum(new) - 1
    return ids
