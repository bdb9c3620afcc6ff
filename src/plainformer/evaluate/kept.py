"""A kept evaluation: a folder with every answer, so that nothing runs twice, and nothing but numpy reads it.

    evaluation.json     what was evaluated on what: checkpoint, data, task, options, scorer, metrics with intervals, counts;
                        and a hash of each file, by which damage is seen
    predictions.jsonl   a line for each example, in the data's order: place, key, unit, input (short), reference, answer
    rows.npy            (N, M): what the metrics are made of; the scorer says what each number is
    units.npy           (N,): equal for examples of one unit (document, paragraph, speaker); numbered in the order of keys
    keys.npy            (N, 2): the survey's hashes of the inputs, by which the examples of two evaluations are matched

A folder is complete or absent: it is written under a name that begins with a dot, and renamed.

Shapes: N examples, M numbers of each.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from plainformer.errors import InputError, PlainformerError, UsageError
from plainformer.evaluate.base import Numbers, Scorer

INFO, PREDICTIONS, ROWS, UNITS, KEYS = "evaluation.json", "predictions.jsonl", "rows.npy", "units.npy", "keys.npy"
VERSION = 1
_TEMPORARY = ".tmp-evaluation-"
_STALE = 24 * 3600.0  # seconds after which an unfinished folder is a dead process's
_TRIES = 20  # to give a folder its name, while others do
_UNFINISHED: set[Path] = set()  # of this process


def is_kept(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder is that of a kept evaluation."""
    try:
        return (Path(folder) / INFO).is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


class Kept:
    """Reads a kept evaluation.

    Attributes:
        folder: where it is. info: what evaluation.json says.
    Raises:
        InputError: there is none in the folder, or it is of another version, or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.info: dict[str, Any] = json.loads((self.folder / INFO).read_text(encoding="utf-8"))
            version = self.info["version"]
        except FileNotFoundError:
            raise InputError(f"{self.folder} holds no evaluation", "`plainformer evaluate` makes one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(INFO, error) from None
        if version != VERSION:
            what = f"{self.folder} was written in version {version} of the format, and this is version {VERSION}"
            raise InputError(what, "evaluate again")
        files = self.info.get("files")
        if not isinstance(files, dict) or files.get(INFO) != _digest_of(self.info):
            raise self._damaged(INFO, "it was changed after it was written")

    @cached_property
    def scorer(self) -> Scorer:
        """Return what the metrics were made with."""
        from plainformer.evaluate.scorers import make_scorer

        asked = self.info["scorer"]
        found: Scorer = make_scorer(asked["name"], **asked["settings"])
        return found

    @cached_property
    def rows(self) -> Numbers:
        """Return the numbers of each example, (N, M), as they lie in the file."""
        return self._array(ROWS)

    @cached_property
    def units(self) -> npt.NDArray[np.int64]:
        """Return the unit of each example, (N,)."""
        return self._array(UNITS)

    @cached_property
    def keys(self) -> npt.NDArray[np.uint64]:
        """Return the hash of each example's input, (N, 2)."""
        return self._array(KEYS)

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Yield what is known of each example, in the data's order."""
        self._verify(PREDICTIONS)
        try:
            with (self.folder / PREDICTIONS).open(encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)
        except (OSError, ValueError) as error:
            raise self._damaged(PREDICTIONS, error) from None

    def __len__(self) -> int:
        return len(self.units)

    def _array(self, name: str) -> npt.NDArray[Any]:
        self._verify(name)
        try:
            # An array of no rows cannot be mapped.
            found: npt.NDArray[Any] = np.load(self.folder / name, mmap_mode="r" if self.info["n"] else None)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(name, error) from None
        return found

    def _verify(self, name: str) -> None:
        """See that a file is the one that was written."""
        try:
            if self.info["files"].get(name) != _digest(self.folder / name):
                raise self._damaged(name, "it was changed after it was written")
        except OSError as error:
            raise self._damaged(name, error.strerror or error) from None

    def _damaged(self, name: str, why: object) -> InputError:
        return InputError(f"{self.folder / name} is damaged: {why}", "evaluate again, with --again")


class Keeper:
    """Writes a kept evaluation, example by example, in memory that does not grow with them (but for 32 bytes of each).

        with Keeper(folder, columns=3) as keeper:
            keeper.add(prediction, row, key, unit)
            keeper.finish(info)

    Without `finish`, nothing is left.

    Args:
        folder: where it will be; another kept evaluation there is replaced. columns: M.
    Raises:
        UsageError: the folder is there and holds something else. PlainformerError: it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], columns: int) -> None:
        self.folder, self.columns = Path(folder), columns
        if (
            self.folder.exists()
            and not is_kept(self.folder)
            and (not self.folder.is_dir() or any(self.folder.iterdir()))
        ):
            raise UsageError(f"{self.folder} is there, and is not an evaluation", "give another folder")
        self.count = 0
        self._keys, self._units = array("Q"), array("Q")

    def __enter__(self) -> Keeper:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(self.folder.parent)
            self._made = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder.parent))
            _UNFINISHED.add(self._made)
            self._made.chmod(0o777 & ~_umask())
            self._lines = (self._made / PREDICTIONS).open("w", encoding="utf-8", newline="\n")
            self._rows: BinaryIO = (self._made / ROWS).open("wb")
            self._head()
        except OSError as error:
            raise self._cannot(error) from None
        return self

    def add(self, prediction: Mapping[str, Any], row: Sequence[float], key: bytes, unit: bytes | None = None) -> None:
        """Keep an example.

        Args:
            prediction: of plain values: place, input, reference, answer ...; key and unit are added.
            row: of the scorer, (M,). key: 16 bytes. unit: the hash of its unit; None: the example is one.
        """
        named = {"key": key.hex()} if unit is None else {"key": key.hex(), "unit": unit.hex()}
        line = json.dumps({**prediction, **named}, ensure_ascii=False, default=str)
        try:
            # Half a character of a broken text is kept as JSON writes it.
            self._lines.write(line.encode("utf-8", "backslashreplace").decode() + "\n")
            self._rows.write(np.asarray(row, np.float64).reshape(self.columns).tobytes())
        except OSError as error:
            raise self._cannot(error) from None
        self._keys.extend(np.frombuffer(key, ">u8").tolist())
        if unit is not None:
            self._units.extend(np.frombuffer(unit, ">u8").tolist())
        self.count += 1

    @property
    def keys(self) -> npt.NDArray[np.uint64]:
        """Return the keys so far, (N, 2)."""
        return np.frombuffer(self._keys, np.uint64).reshape(-1, 2)

    def units(self, own: bool) -> npt.NDArray[np.int64]:
        """Return the unit of each example so far, (N,), numbered by their hashes, so that the order of rows is not in it.

        `own`: each example is a unit, copies too.
        """
        hashes = self.keys if own else np.frombuffer(self._units, np.uint64).reshape(-1, 2)
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))
        found = np.empty(len(hashes), np.int64)
        if own:
            found[order] = np.arange(len(hashes))
            return found
        new = np.ones(len(hashes), bool)
        new[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
        found[order] = np.cumsum(new) - 1
        return found

    def numbers(self) -> Numbers:
        """Return the rows so far, (N, M), as they lie in the file."""
        self._rows.flush()
        if not self.count:
            return np.empty((0, self.columns))
        return np.memmap(self._made / ROWS, np.float64, "r", self._start, (self.count, self.columns))

    def finish(self, info: Mapping[str, Any], units: npt.NDArray[np.int64]) -> Kept:
        """Write what the evaluation is, and give the folder its name.

        Args:
            info: evaluation.json without version and n. units: `units(...)`, (N,).
        """
        try:
            self._head()
            for file in (self._lines, self._rows):
                file.flush()
                os.fsync(file.fileno())
                file.close()
            np.save(self._made / UNITS, units)
            np.save(self._made / KEYS, self.keys)
            about = {"version": VERSION, "n": self.count, **info}
            files = {name: _digest(self._made / name) for name in (PREDICTIONS, ROWS, UNITS, KEYS)}
            files[INFO] = _digest_of(json.loads(json.dumps(about)))
            text = json.dumps({**about, "files": files}, indent=1, ensure_ascii=False)
            # Half a character, of a file's name, is kept as JSON writes it.
            (self._made / INFO).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
            self._rename()
        except OSError as error:
            raise self._cannot(error) from None
        return Kept(self.folder)

    def _head(self) -> None:
        """Write the head of the array of rows; it takes as many bytes whatever their number."""
        self._rows.seek(0)
        shape = (self.count, self.columns)
        np.lib.format.write_array_header_1_0(self._rows, {"descr": "<f8", "fortran_order": False, "shape": shape})
        self._start = self._rows.tell()

    def _rename(self) -> None:
        """Give the folder its name; of several processes that write to one place, the last one's stays."""
        for number in range(_TRIES):
            old = self._made.with_name(f"{self._made.name}-old-{number}")
            with suppress(FileNotFoundError):  # there is none, or another process was first
                os.rename(self.folder, old)
            try:
                os.rename(self._made, self.folder)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or number == _TRIES - 1:
                    raise
            finally:
                shutil.rmtree(old, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._rows.close()
        shutil.rmtree(self._made, ignore_errors=True)
        _UNFINISHED.discard(self._made)

    def _cannot(self, error: OSError) -> PlainformerError:
        what = f"the evaluation cannot be written to {self.folder}: {error.strerror or error}"
        return PlainformerError(what, "make room, or give another folder: --output")


class NoKeeper(Keeper):
    """Counts examples, and keeps none: another process does."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> NoKeeper:
        return self

    def add(self, prediction: Mapping[str, Any], row: Sequence[float], key: bytes, unit: bytes | None = None) -> None:
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def remove_unfinished() -> None:
    """Remove what this process has not finished: for a handler of signals that ends it."""
    for folder in _UNFINISHED:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    """Remove what killed processes left."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # another process was first
            if time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _digest_of(info: Mapping[str, Any]) -> str:
    """Return a hash of what evaluation.json says, but for the hashes of files."""
    text = json.dumps({name: value for name, value in info.items() if name != "files"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
