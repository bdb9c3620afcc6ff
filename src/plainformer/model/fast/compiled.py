"""Access to the compiled kernels: are they available on this machine, and how torch's tensors get to them.

Numba is imported on first use: it takes 0.3 s. Where it is missing, torch computes everything, more slowly.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plainformer.model.fast.ahead import NotYet, ask
from plainformer.model.fast.records import MATRIX, NUMBERS

# With more rows than this, torch's matrix products are faster.
FEW_ROWS = 24
_progress = logging.getLogger("plainformer.progress")

_AGAIN = 0.2  # seconds between two looks for what is being compiled
_found: list[ModuleType | None] = []  # the module, or None for good
_look = [0.0]  # when to look again


def kernels() -> ModuleType | None:
    """Return the module of kernels, tried out; None where it cannot work, and as long as it is being compiled."""
    if not _found and time.monotonic() >= _look[0]:
        try:
            _found.append(_tried_out())
        except NotYet:
            _look[0] = time.monotonic() + _AGAIN
    return _found[0] if _found else None


def expected() -> bool:
    """Return whether there are kernels, or will be soon."""
    return kernels() is not None or not _found


def ready(kernel: Any, *arguments: Any) -> bool:
    """Return whether a kernel can be called with such arguments now; else it is compiled elsewhere from here on."""
    if not hasattr(kernel, "overloads"):
        return True  # someone's wrapper, of which nothing is known
    typeof: Any = importlib.import_module("numba").typeof
    signature = tuple(typeof(argument) for argument in arguments)
    try:
        kernel.compile(signature)
    except NotYet:
        return False
    return True


class Paths(threading.local):
    """Which way each sequence is computed, by its cache: the same from its beginning to its end.

    Kernels may be ready in the middle of a sequence. Their numbers differ in the last bits, so a new way is taken when the
    next sequence begins, or when more than one token is added at once: the answer does not depend on the moment.
    """

    def __init__(self) -> None:
        self.of: weakref.WeakKeyDictionary[Any, ModuleType | None] = weakref.WeakKeyDictionary()
        self.last: Any = None  # the cache that this thread was last asked about

    def take(self, cache: Any, module: ModuleType | None) -> None:
        """Compute a sequence with these kernels, or without, from here on."""
        self.of[cache] = module
        self.last = weakref.ref(cache)

    def current(self) -> ModuleType | None:
        """Return the kernels of the sequence that this thread works on, else those that are ready."""
        cache = self.last() if self.last is not None else None
        return self.of[cache] if cache is not None and cache in self.of else kernels()


paths = Paths()


def _tried_out() -> ModuleType | None:
    # Where colorama is installed, numba makes its errors in colour, and colorama writes to the terminal when the program ends.
    os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    try:
        numba: Any = importlib.import_module("numba")
        if numba.config.DISABLE_JIT:  # loops in Python would take minutes for a token
            return None
        from plainformer.model.fast import attending, basics, lanes, parts, products
        from plainformer.model.fast import kernels as module
        from plainformer.model.fast import quantised as of_blocks

        _watch(lanes, parts, basics, of_blocks, products, attending, module)
        x, y = np.ones(1, np.float32), np.zeros(1, np.float32)
        matrix = Matrix(NUMBERS, (1, 1), x, None, np.full(1, 2, np.float32))
        product = matrix.address, 1, address(x), address(y), 0, 0
        if False in (ready(parts.serve, 0), ready(module.multiply, *product)):  # both are asked for at once
            raise NotYet
        module.multiply(*product)
        works = y[0] == 3
    # Numba is missing or too old for this NumPy, or has no place for files.
    except (ImportError, ValueError, RuntimeError, OSError):
        return None
    return module if works else None


def quantised() -> ModuleType | None:
    """Return the module of kernels for blocks of few bits; None where, or as long as, there are none."""
    if kernels() is None:
        return None
    from plainformer.model.fast import quantised as module

    return module


def _watch(*modules: ModuleType) -> None:
    """Say when Numba compiles; where it cannot keep on disk what it has compiled it raises: then it is only not kept."""
    from plainformer.model.fast.jit import say_not_kept

    for name, kernel in ((module.__name__, kernel) for module in modules for kernel in vars(module).values()):
        cache: Any = getattr(kernel, "_cache", None)
        if hasattr(cache, "save_overload") and kernel.__module__ == name:
            cache.load_overload = functools.partial(_loaded, kernel, cache.load_overload)
            cache.save_overload = functools.partial(_saved, cache.save_overload, say_not_kept)


def _loaded(kernel: Any, load: Callable[..., Any], signature: Any, context: Any) -> Any:
    """Return what an earlier process has compiled; None, after which Numba compiles. Raises `NotYet` if another process does."""
    compiled = load(signature, context)
    if compiled is None and not kernel.targetoptions.get(
        "no_cpython_wrapper"
    ):  # what only kernels call comes with them
        if ask(kernel, signature):
            raise NotYet
        _progress.info("compiling kernels for this processor, once")
    return compiled


def _saved(save: Callable[..., None], say_not_kept: Callable[[str], None], *compiled: Any) -> None:
    try:
        save(*compiled)
    except OSError as error:
        say_not_kept(error.strerror or str(error))


def follow_torch_threads() -> None:
    """Let kernels run on as many threads as torch would, from here on."""
    from plainformer.model.fast import helpers

    helpers.want(torch.get_num_threads() - 1)


def loops_follow(at_once: bool) -> None:
    """Say whether kernel after kernel is called from here on, without torch's threads in between."""
    from plainformer.model.fast import helpers

    helpers.stay(at_once)


def address(array: Any) -> int:
    """Return where an array begins; 0 for None."""
    at: int = 0 if array is None else array.ctypes.data
    return at


class Matrix:
    """A `records.MATRIX` of arrays that it keeps; `sizes`: inputs and outputs."""

    def __init__(self, kind: int, sizes: tuple[int, int], weight: Any, scales: Any, bias: Any) -> None:
        self.kept = weight, scales, bias
        self.record = np.array([(kind, *sizes, *map(address, self.kept))], MATRIX)
        self.address = address(self.record)


def as_array(x: Tensor) -> Any:
    """Return the same memory as NumPy sees it, or a copy where it has holes or odd addresses: kernels want neither."""
    array = x.detach().numpy()
    return array if array.flags.carray else np.require(array, requirements=["C", "A", "W"])


def state(x: Tensor | None) -> tuple[int, int]:
    """Return where a tensor's memory is, and how often it was changed in place, where torch counts that: what arrays go by."""
    return (0, 0) if x is None else (x.data_ptr(), 0 if x.is_inference() else x._version)
