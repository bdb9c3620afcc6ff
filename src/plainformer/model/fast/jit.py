"""How kernels are compiled: Numba's options, in one place, and what is said where nothing can be kept on disk."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

log = logging.getLogger(__name__)


@functools.cache
def say_not_kept(cause: str) -> None:
    """Warn, once a process, that what Numba compiles is lost at its end."""
    log.warning(
        "compiled kernels cannot be kept on disk (%s), so each process spends about 10 s compiling them again; "
        "set NUMBA_CACHE_DIR to a folder that can be written to",
        cause,
    )


def compiled(inner: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Return `numba.njit`, keeping what it compiled on disk wherever it finds a place for that."""
    options: dict[str, Any] = {
        "fastmath": {"reassoc", "contract", "arcp", "nsz"},
        "error_model": "numpy",
        "nogil": True,
        # What is called by kernels alone needs no wrapper that Python could call it through.
        "no_cpython_wrapper": inner,
        "no_cfunc_wrapper": True,
    }

    def decorate(function: Callable[..., Any]) -> Any:
        for place in (None, _temporary):
            try:
                if place is not None:
                    say_not_kept("neither the package's folder nor the user's cache folder can be written to")
                    config: Any = numba.config
                    config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = (
                        place()
                    )  # Numba reads its variables anew at times
                return _stamped(numba.njit(cache=True, **options)(function))
            except (RuntimeError, OSError):
                continue
        return numba.njit(**options)(function)

    return decorate


@functools.cache
def _temporary() -> str:
    """Return a folder that lasts as long as this process: another one may compile for it."""
    folder = tempfile.mkdtemp(prefix="plainformer")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _stamped(kernel: Any) -> Any:
    """Let what is kept on disk be good for these very files: Numba looks at the one that a function is in, and no further."""
    file: Any = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    if hasattr(file, "_source_stamp"):
        file._source_stamp = _stamp()
    return kernel


@functools.cache
def _stamp() -> tuple[float, int]:
    found = [file.stat() for file in Path(__file__).parent.glob("*.py")]
    return max(file.st_mtime for file in found), sum(file.st_size for file in found)
