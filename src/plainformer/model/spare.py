"""Memory for a few rows of a parameter: those that other processes keep (ZeRO-2, 3) are address space that nobody touches.

So loading, new heads and adapters see whole parameters, and a process has the memory of its own rows alone; `fully_shard`
takes them out.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import torch
from torch import Tensor

LITTLE = 1 << 16  # bytes of a parameter that is not worth it


def with_rows(whole: Tensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Return a tensor on the CPU, of the shape of `whole` and in order, that has the rows from `start` to `stop` of it.

    The other rows have no meaning: 0 until somebody writes to them, which costs the memory that this is to save.
    """
    found = _untouched(whole.shape, dtype)
    found[start:stop].copy_(whole[start:stop])
    return found


def _untouched(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return a tensor whose pages have no memory yet. What torch allocates may lie where something else was before."""
    size = math.prod(shape) * dtype.itemsize
    if size < LITTLE:
        return torch.zeros(shape, dtype=dtype)
    options: dict[str, Any] = {}
    if hasattr(mmap, "MAP_NORESERVE"):  # a system that counts what could be used need not count this
        options["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_NORESERVE
    pages = mmap.mmap(-1, size, **options)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a page of 2 MB would be more than the rows
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
