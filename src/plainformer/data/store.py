"""Examples on disk: for each of their arrays one flat file, read through a memory map; complete, or not there at all.

A folder `KEY/` holds

    store.json          version, number of examples, fields, sizes of files, counters, and of each row that was dropped or
                        cut what became of it, where that was asked for
    FIELD.bin           all examples' entries, one after the other, in the smallest type of integer that holds them
    FIELD.offsets.bin   int64, (N + 1,): where each example begins in it
    FIELD.shapes.bin    int32, (N, dimensions), for arrays of two dimensions and more
    _lengths.bin        int32, (N,); _rows.bin, int64, (N,): the row that each example was made of

What is put in comes out: an array of int64 is kept as uint16 where its values allow, and is int64 again when it is read.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plainformer.data.counts import Counts

VERSION = 3
DESCRIBED = "store.json"
LENGTHS_FILE, ROWS_FILE = "_lengths.bin", "_rows.bin"  # no field begins like this: multiple choice has "lengths"
Array = npt.NDArray[Any]
_WIDTHS = [np.dtype(name) for name in ("uint8", "uint16", "int16", "int32", "int64")]
_CHUNK = 2**20  # entries that are held while a file is rewritten in a wider type


class BrokenStore(Exception):
    """The folder is not a whole store of this version: it is to be made anew."""


@dataclass
class Field:
    """How one array of every example is kept. `given` is its type outside, `stored` that of the file."""

    given: str
    stored: str
    dimensions: int
    entries: int = 0


class Fate(NamedTuple):
    """What became of a row: the reason why it was dropped, or the tokens that it lost."""

    row: int
    place: str
    dropped: str = ""
    cut: int = 0


class Store:
    """Examples that were written before: `store[i]` reads one from the memory map.

    Attributes:
        counts: what became of the rows. lengths: positions of each example, (N,).
        rows: the row that each example was made of, counted from 0, (N,).
        fates: of rows that were dropped or cut, where the writer was told. folder: where it is.
        temporary: whether it is gone after this process, since no cache could be written.
    """

    def __init__(self, folder: Path, *, temporary: bool = False) -> None:
        self.folder, self.temporary = folder, temporary
        self._held: Any = None  # keeps a temporary folder
        described = _described(folder)
        self._size: int = described["examples"]
        self.fields = {name: Field(**field) for name, field in described["fields"].items()}
        self.counts = Counts.from_dict(described["counts"])
        self.fates = [Fate(*fate) for fate in described["fates"]]
        self._chosen: Array | None = None
        self.lengths = np.asarray(_mapped(folder / LENGTHS_FILE, "int32"))
        self.rows = np.asarray(_mapped(folder / ROWS_FILE, "int64"))
        self._data = {name: _mapped(folder / f"{name}.bin", field.stored) for name, field in self.fields.items()}
        self._offsets = {name: _mapped(folder / f"{name}.offsets.bin", "int64") for name in self.fields}
        self._shapes = {
            name: _mapped(folder / f"{name}.shapes.bin", "int32").reshape(-1, field.dimensions)
            for name, field in self.fields.items()
            if field.dimensions > 1
        }

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, i: int) -> dict[str, Array]:
        """Return example i: its arrays, in memory of their own."""
        if not -self._size <= i < self._size:
            raise IndexError(f"example {i} of {self._size}")
        i %= self._size
        if self._chosen is not None:
            i = int(self._chosen[i])
        example = {}
        for name, field in self.fields.items():
            offsets = self._offsets[name]
            flat = self._data[name][offsets[i] : offsets[i + 1]]
            values = np.array(flat, dtype=field.given)
            if field.dimensions != 1:
                values = values.reshape(self._shapes[name][i] if field.dimensions else ())
            example[name] = values
        return example

    def of_rows(self, wanted: npt.NDArray[np.bool_]) -> Store:
        """Return the examples of some rows, and what became of these; `wanted`, (R,), says of each row whether it is one."""
        found = copy(self)
        numbers = np.flatnonzero(wanted[self.rows])
        found._chosen, found._size = numbers if self._chosen is None else self._chosen[numbers], len(numbers)
        found.lengths, found.rows = self.lengths[numbers], self.rows[numbers]
        found.fates = [fate for fate in self.fates if wanted[fate.row]]
        found.counts = Counts(rows=int(wanted.sum()))
        for fate in found.fates:
            if fate.dropped:
                found.counts.drop(fate.dropped, fate.place)
            found.counts.shorten(fate.cut, fate.place)
        return found

    @property
    def nbytes(self) -> int:
        """How much disk it takes."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def _described(folder: Path) -> dict[str, Any]:
    """Return store.json, after a look at the sizes of all files."""
    try:
        described = json.loads((folder / DESCRIBED).read_text(encoding="utf-8"))
        if described["version"] != VERSION:
            raise BrokenStore(f"it is of version {described['version']}, not {VERSION}")
        for name, size in described["files"].items():
            there = (folder / name).stat().st_size
            if there != size:
                raise BrokenStore(f"{name} has {there:,} bytes, not {size:,}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenStore(str(error)) from None
    return dict(described)


def _mapped(path: Path, dtype: str) -> Array:
    if path.stat().st_size == 0:  # nothing cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r")


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


class _FieldFile:
    """Writes one field, in a type that widens when a value does not fit."""

    def __init__(self, folder: Path, name: str, array: Array) -> None:
        self._path = folder / f"{name}.bin"
        self.name = name
        # Integers of 8 and 16 bits are pixels and samples: whoever made them chose the type.
        self._narrow = array.dtype.kind in "iu" and array.dtype.itemsize > 2
        stored = _WIDTHS[0] if self._narrow else array.dtype
        self.field = Field(array.dtype.name, stored.name, array.ndim)
        self._least, self._most = _bounds(stored) if self._narrow else (0, 0)
        self._file: IO[bytes] = self._path.open("wb")
        self._offsets: IO[bytes] = (folder / f"{name}.offsets.bin").open("wb")
        self._offsets.write(bytes(8))
        self._shapes: IO[bytes] | None = (folder / f"{name}.shapes.bin").open("wb") if array.ndim > 1 else None

    def add(self, array: Array) -> None:
        field = self.field
        if array.ndim != field.dimensions or array.dtype.name != field.given:
            raise ValueError(
                f"{self.name}: {array.dtype} of {array.ndim} dimensions after {field.given} of {field.dimensions}"
            )
        if self._narrow and array.size:
            low, high = int(array.min()), int(array.max())
            if low < self._least or high > self._most:
                self._widen(low, high)
        self._file.write(array.astype(field.stored, copy=False).tobytes())
        field.entries += array.size
        self._offsets.write(field.entries.to_bytes(8, sys.byteorder))
        if self._shapes is not None:
            self._shapes.write(np.asarray(array.shape, np.int32).tobytes())

    def _widen(self, low: int, high: int) -> None:
        """Rewrite what is there in the first type that holds it and these values too."""
        stored = np.dtype(self.field.stored)
        # What is there may be narrower than its type, whose lowest value is 0 as long as nothing is negative.
        least, most = min(low, self._least), max(high, self._highest())
        wider = next(one for one in _WIDTHS if _bounds(one)[0] <= least and most <= _bounds(one)[1])
        self._file.close()
        narrow = self._path.rename(self._path.with_suffix(".narrow"))
        self._file = self._path.open("wb")
        with narrow.open("rb") as before:
            while data := before.read(_CHUNK * stored.itemsize):
                self._file.write(np.frombuffer(data, stored).astype(wider).tobytes())
        narrow.unlink()
        self.field.stored = wider.name
        self._least, self._most = _bounds(wider)

    def _highest(self) -> int:
        self._file.flush()
        there = _mapped(self._path, self.field.stored)
        return int(there.max()) if there.size else 0

    def close(self) -> None:
        for file in (self._file, self._offsets, self._shapes):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
                file.close()


class StoreWriter:
    """Writes examples one at a time into an empty folder; memory does not grow with their number.

    Attributes:
        counts: what became of the rows; whoever fills the store counts there. fates: the same of single rows, so that
            some of them can be taken later; [] where nobody will.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts = Counts()
        self.fates: list[Fate] = []
        self.examples = 0
        self._files: dict[str, _FieldFile] = {}
        self._lengths: IO[bytes] = (folder / LENGTHS_FILE).open("wb")
        self._rows: IO[bytes] = (folder / ROWS_FILE).open("wb")

    def add(self, example: Mapping[str, Array], length: int, row: int) -> None:
        """Write an example of `length` positions, made of row `row`. All examples have the same names and types."""
        if not self._files:
            self._files = {name: _FieldFile(self.folder, name, np.asarray(value)) for name, value in example.items()}
        if example.keys() != self._files.keys():
            raise ValueError(f"an example of {sorted(example)} after others of {sorted(self._files)}")
        for name, file in self._files.items():
            file.add(np.asarray(example[name]))
        self._lengths.write(int(length).to_bytes(4, sys.byteorder))
        self._rows.write(int(row).to_bytes(8, sys.byteorder))
        self.examples += 1

    def finish(self) -> None:
        """Write store.json, last: without it a folder is not a store."""
        self.close()
        sizes = {path.name: path.stat().st_size for path in sorted(self.folder.iterdir())}
        described = {
            "version": VERSION,
            "examples": self.examples,
            "fields": {name: vars(file.field) for name, file in self._files.items()},
            "files": sizes,
            "counts": self.counts.to_dict(),
            "fates": self.fates,
        }
        with (self.folder / DESCRIBED).open("w", encoding="utf-8") as file:
            json.dump(described, file, indent=1)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        for plain in (self._lengths, self._rows):
            plain.close()
