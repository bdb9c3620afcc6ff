"""Access to the compiled kernels: are they available on this machine, and how torch's tensors get to them.

Numba is imported on first use: it takes 0.3 s. Where it is missing, or finds no way of running threads that two callers may use
at once (OpenMP or TBB; its own third way ends the process then), torch computes everything, more slowly. The same holds in a
process that was forked from one with kernels: GNU's OpenMP does not survive the fork, and Numba would end the process.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

Matrix = tuple[Any, Any]  # see kernels.py
# With more rows than this, torch's matrix products are faster.
FEW_ROWS = 24
_progress = logging.getLogger("plainformer.progress")

_left_behind = False  # in the process that this one was forked from


def kernels() -> ModuleType | None:
    """Return the module of kernels, tried out; None where it cannot work."""
    return None if _left_behind else _tried_out()


def _after_fork() -> None:
    global _left_behind
    _left_behind = _tried_out.cache_info().currsize > 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _tried_out() -> ModuleType | None:
    # Where colorama is installed, numba makes its errors in colour, and colorama writes to the terminal when the program ends.
    os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    try:
        numba: Any = importlib.import_module("numba")
        if numba.config.DISABLE_JIT:  # loops in Python would take minutes for a token
            return None
        if numba.config.THREADING_LAYER == "default":
            numba.config.THREADING_LAYER = "threadsafe"
        from plainformer.model.fast import kernels as module

        _watch(module)
        # Numba starts as many threads as there are processors, and tells the OpenMP that torch may share with it.
        threads = torch.get_num_threads()
        numba.get_num_threads()
        torch.set_num_threads(threads)
        follow_torch_threads()
        x, y = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
        module.multiply(x, np.ones((2, 1), np.float32), x, y, 0, 0)
        works = y[0, 0] == 2 and numba.threading_layer() in ("omp", "tbb")
    # Numba is missing or too old for this NumPy, has no threads, or no place for files.
    except (ImportError, ValueError, RuntimeError, OSError):
        return None
    return module if works else None


def quantised() -> ModuleType | None:
    """Return the module of kernels for blocks of few bits; None where kernels cannot work."""
    return None if kernels() is None else _of_blocks()


@functools.cache
def _of_blocks() -> ModuleType:
    from plainformer.model.fast import quantised as module

    _watch(module)
    return module


def _watch(module: ModuleType) -> None:
    """Say when Numba compiles; where it cannot keep on disk what it has compiled it raises: then it is only not kept."""
    say_not_kept = importlib.import_module("plainformer.model.fast.kernels").say_not_kept
    for kernel in vars(module).values():
        cache: Any = getattr(kernel, "_cache", None)
        if hasattr(cache, "save_overload") and kernel.__module__ == module.__name__:
            cache.load_overload = functools.partial(_found, cache.load_overload)
            cache.save_overload = functools.partial(_saved, cache.save_overload, say_not_kept)


def _found(load: Callable[..., Any], *wanted: Any) -> Any:
    """Return what an earlier process has compiled; None, after which Numba compiles."""
    compiled = load(*wanted)
    if compiled is None:
        _progress.info("compiling kernels for this processor, once")
    return compiled


def _saved(save: Callable[..., None], say_not_kept: Callable[[str], None], *compiled: Any) -> None:
    try:
        save(*compiled)
    except OSError as error:
        say_not_kept(error.strerror or str(error))


def follow_torch_threads() -> None:
    """Let kernels run on as many threads as torch would."""
    numba: Any = importlib.import_module("numba")
    wanted = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if numba.get_num_threads() != wanted:
        numba.set_num_threads(wanted)


def as_array(x: Tensor) -> Any:
    """Return the same memory as NumPy sees it, or a copy where it has holes or odd addresses: kernels want neither."""
    array = x.detach().numpy()
    return array if array.flags.carray else np.require(array, requirements=["C", "A", "W"])


def state(x: Tensor | None) -> tuple[int, int]:
    """Return where a tensor's memory is, and how often it was changed in place, where torch counts that: what arrays go by."""
    return (0, 0) if x is None else (x.data_ptr(), 0 if x.is_inference() else x._version)


def affine(scale: Tensor | None, bias: Tensor | None, size: int) -> Any:
    """Return what each output is multiplied by, 1 for None, and what is added: (2, size)."""
    both = np.zeros((2, size), np.float32)
    both[0] = 1.0 if scale is None else scale.detach().numpy()
    if bias is not None:
        both[1] = bias.detach().numpy()
    return both
