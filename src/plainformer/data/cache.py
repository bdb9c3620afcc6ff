"""Data is tokenised once: a store is found by the hash of all that it was made of, or is made."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plainformer.data.store import DESCRIBED, VERSION, BrokenStore, Store, StoreWriter
from plainformer.errors import InputError, PlainformerError, opt

log = logging.getLogger(__name__)
Fill = Callable[[StoreWriter], None]
_DAY = 24 * 3600.0
_STALE = _DAY  # seconds after which an unfinished folder is a dead process's
MOST_BYTES, MOST_DAYS = 10 * 2**30, 30  # of the user's cache: its size, and how long what nobody reads is kept
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_key(**parts: Any) -> str:
    """Return the name of a store: a hash of the version and of these parts, which JSON must be able to write.

    Parts are whatever decides what the examples are: digests of the data and of the tokenizer's files, the objective and
    its options, the columns, the longest example.
    """
    written = json.dumps({"version": VERSION, **parts}, sort_keys=True, ensure_ascii=True, default=_plain)
    return hashlib.blake2b(written.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | set | frozenset):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    if hasattr(value, "items"):
        return dict(value.items())
    raise TypeError(f"a part of a cache key is {type(value).__name__}, which JSON cannot write")


def file_digest(*paths: Path) -> str:
    """Return a hash of the names and bytes of files, as a part of a key: those of a tokenizer."""
    state = hashlib.blake2b(digest_size=16)
    for path in sorted(paths, key=lambda path: path.name):
        state.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "blake2b").digest())
    return state.hexdigest()


def default_folder() -> Path:
    """Return the user's folder of tokenised data: $XDG_CACHE_HOME/plainformer/data, else below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "plainformer" / "data"


def cached(key: str, fill: Fill, folder: str | Path | None = None, *, expected_bytes: int = 0) -> Store:
    """Return the store of a key; if it is not there or not whole, `fill` writes its examples.

    A store appears complete, by a rename, or not at all; processes that make the same one at the same time do not
    disturb each other. Where the folder cannot be written, a temporary one serves, and the log says so.
    The user's cache is bounded, by `MOST_BYTES` and `MOST_DAYS`; a folder that was asked for is not.

    Args:
        key: from `cache_key`. fill: adds examples and counts to the writer that it is given.
        folder: `data.cache`; default: `default_folder()`.
        expected_bytes: disk that the store will take, roughly: refused before the work where there is less.
    Raises:
        InputError: the folder is a file, or the disk is full.
    """
    root = Path(folder).expanduser() if folder is not None else default_folder()
    target = root / key
    if target.is_dir():
        try:
            store = Store(target)
        except BrokenStore as error:
            log.warning("the tokenised data in %s is not whole (%s): it is made again", target, error)
        else:
            with contextlib.suppress(OSError):  # a cache that is only read
                os.utime(target)
            return store
    try:
        root.mkdir(parents=True, exist_ok=True)
        made = root / f".tmp-{key}-{uuid.uuid4().hex[:8]}"
        made.mkdir()
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"the cache {str(root)!r} is not a folder", f"give {opt('data.cache')} a folder") from None
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise _refused(root, error) from None
        log.warning(
            "the cache %s cannot be written (%s): tokenised data is kept for this run alone", root, error.strerror
        )
        return _temporary(fill, expected_bytes)
    _remove_stale(root)
    _make(made, fill, expected_bytes)
    store = _moved(made, target)
    if folder is None:
        remove_oldest(root)
    return store


def _make(folder: Path, fill: Fill, expected_bytes: int) -> None:
    """Fill a new folder; if that fails, nothing of it stays."""
    free = shutil.disk_usage(folder).free
    writer: StoreWriter | None = None
    try:
        if free < expected_bytes:
            raise InputError(
                f"tokenised data will take about {expected_bytes / 2**20:,.0f} MiB, and {folder.parent} has "
                f"{free / 2**20:,.0f} MiB left",
                f"free some, or give {opt('data.cache')} another folder",
            )
        writer = StoreWriter(folder)
        fill(writer)
        writer.finish()
    except BaseException as error:
        if writer is not None:
            _close(writer)
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise _refused(folder.parent, error) from None
        raise


def _close(writer: StoreWriter) -> None:
    with contextlib.suppress(OSError, ValueError):  # what could not be flushed is removed anyway
        writer.close()


def _refused(root: Path, error: OSError) -> PlainformerError:
    return InputError(
        f"tokenised data cannot be written to {root}: {error.strerror}",
        f"free some space, or give {opt('data.cache')} a folder",
    )


def _moved(made: Path, target: Path) -> Store:
    """Give a finished folder its name, unless another process was first with a whole one."""
    for _ in range(3):
        try:
            made.rename(target)
            return Store(target)
        except OSError:
            try:
                store = Store(target)
            except BrokenStore:
                shutil.rmtree(target, ignore_errors=True)
            else:
                shutil.rmtree(made, ignore_errors=True)
                return store
    raise InputError(
        f"tokenised data cannot be moved to {target}", f"remove it, or give {opt('data.cache')} another folder"
    )


def _temporary(fill: Fill, expected_bytes: int) -> Store:
    made = tempfile.TemporaryDirectory(prefix="plainformer-", ignore_cleanup_errors=True)
    _make(Path(made.name), fill, expected_bytes)
    store = Store(Path(made.name), temporary=True)
    store._held = made  # removed with the store, or when Python ends
    return store


def _remove_stale(root: Path) -> None:
    """Remove what killed processes left unfinished."""
    for path in root.glob(".tmp-*"):
        with contextlib.suppress(OSError):  # another process was first
            written = max(one.stat().st_mtime for one in (path, *path.iterdir()))
            if time.time() - written > _STALE:
                shutil.rmtree(path, ignore_errors=True)


def remove_oldest(root: Path, most_bytes: int = MOST_BYTES, most_days: float = MOST_DAYS) -> None:
    """Remove stores that were not read for `most_days`, and the longest unread ones while all take more than `most_bytes`.

    One that was read in the last 24 hours stays: a run may be at work with it.
    """
    found = []
    for path in root.iterdir():
        with contextlib.suppress(OSError):  # another process was first
            if (path / DESCRIBED).is_file():
                found.append((path.stat().st_mtime, sum(one.stat().st_size for one in path.iterdir()), path))
    size, now = sum(of for _, of, _ in found), time.time()
    for used, of, path in sorted(found):
        if now - used > _DAY and (size > most_bytes or now - used > most_days * _DAY):
            shutil.rmtree(path, ignore_errors=True)
            log.info("%s is removed: tokenised data that was not read for %.0f days", path, (now - used) / _DAY)
            size -= of
