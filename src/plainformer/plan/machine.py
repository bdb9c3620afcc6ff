"""This machine: how much memory is available, and how fast it reads and multiplies. No torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from plainformer.errors import PlainformerError

_SECONDS = 0.1  # for each of the two rates
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Return the bytes that a program can still have: of the machine, or of the container that it is in."""
    return min(_available_bytes())


def _available_bytes() -> Iterator[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        try:
            yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError, AttributeError):
            raise PlainformerError("how much memory this machine has cannot be found out", "give the size") from None
    for limit, used in _LIMITS:
        try:
            yield max(int(Path(limit).read_text()) - int(Path(used).read_text()), 0)
        except (OSError, ValueError):  # no such file, or "max"
            continue


def measured_rates() -> tuple[float, float]:
    """Return the bytes a second of a matrix times a vector, and the operations a second of two matrices, both fp32."""
    import numpy as np

    matrix = np.ones((8192, 4096), np.float32)  # 128 MB: more than a cache holds
    vector = np.ones(4096, np.float32)
    square = np.ones((1024, 1024), np.float32)
    reading = _fastest(lambda: matrix @ vector)
    multiplying = _fastest(lambda: square @ square)
    return matrix.nbytes / reading, 2 * 1024**3 / multiplying


def _fastest(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest call among those that fit the time, at least two."""
    call()
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while True:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        best = min(best, end - start)
        if end > until:
            return best
