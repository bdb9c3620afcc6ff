"""The way to the compiled kernels: are they to be had here, and how torch's tensors get to them.

Numba is imported on first use: it takes 0.3 s. Where it is missing, or finds no way of running threads that two callers may use
at once (OpenMP or TBB; its own third way ends the process then), everything is computed by torch, more slowly.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Above so many rows, torch's products of matrices are faster.
FEW_ROWS = 24


@functools.cache
def kernels() -> ModuleType | None:
    """The module of kernels, tried out; None where it cannot work."""
    try:
        numba: Any = importlib.import_module("numba")
        if numba.config.THREADING_LAYER == "default":
            numba.config.THREADING_LAYER = "threadsafe"
        from plainformer.model import kernels as module

        # Numba starts as many threads as there are processors, and tells the OpenMP that torch may share with it.
        threads = torch.get_num_threads()
        numba.get_num_threads()
        torch.set_num_threads(threads)
        follow_torch_threads()
        x, y = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
        module.multiply(x, np.ones((2, 1), np.float32), x, y, 0, 0)
        works = y[0, 0] == 2 and numba.threading_layer() in ("omp", "tbb")
    except (
        ImportError,
        ValueError,
        RuntimeError,
        OSError,
    ):  # numba too old for this NumPy, no threads, no place for files
        return None
    return module if works else None


def follow_torch_threads() -> None:
    """Kernels run on as many threads as torch would."""
    numba: Any = importlib.import_module("numba")
    wanted = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if numba.get_num_threads() != wanted:
        numba.set_num_threads(wanted)


def as_array(x: Tensor) -> Any:
    """The same memory as NumPy sees it, or a copy where it has holes or odd addresses: kernels want neither."""
    array = x.detach().numpy()
    return array if array.flags.carray else np.require(array, requirements=["C", "A", "W"])


def affine(scale: Tensor | None, bias: Tensor | None, size: int) -> Any:
    """What each output is multiplied by, and what is added: (2, size)."""
    both = np.zeros((2, size), np.float32)
    both[0] = 1.0 if scale is None else scale.detach().numpy()
    if bias is not None:
        both[1] = bias.detach().numpy()
    return both
