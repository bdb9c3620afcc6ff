"""How many threads this process computes with: the one place that decides, for torch and for the kernels, which follow torch.

What was asked for (`threads=`) wins, then OMP_NUM_THREADS; else it is the cores that are really there, which may be fewer than
the machine has: a process may be bound to some (`taskset`, `docker --cpuset-cpus`), or be given a share of their time
(`docker --cpus`, a cgroup's quota), and a thread too many then makes all of them wait.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

OF_ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def settle(asked: int | None) -> None:
    """Let torch and the kernels use as many threads as were asked for, from here on; None: at most one for each core.

    None changes something once in a process: a later choice of the program's own stays.
    """
    if asked is not None:
        torch.set_num_threads(asked)
    else:
        _fit()


@functools.cache
def _fit() -> None:
    most = cores()
    if torch.get_num_threads() > most and not any(os.environ.get(name) for name in OF_ENVIRONMENT):
        torch.set_num_threads(most)


def cores(root: Path = Path("/")) -> int:
    """Return how many whole cores this process may use at once, 1 at least; `root`: where proc and sys are."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(int(min([bound, *_quotas(root)])), 1)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores' worth of time of each control group that this process is in, where that is limited."""
    try:
        groups = (root / "proc/self/cgroup").read_text()
    except OSError:  # not Linux
        return
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mounts, read = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), _of_version_2
        elif "cpu" in controllers.split(","):
            mounts, read = ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"), _of_version_1
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's, and the group itself is what is mounted: the last place, always looked at.
        for place in (inner, *inner.parents):
            for mount in mounts:
                if (quota := read(root / mount / place)) is not None:
                    yield quota


def _of_version_2(folder: Path) -> float | None:
    found = _numbers(folder / "cpu.max")
    return found[0] / found[1] if len(found) == 2 else None  # "max 100000": no limit


def _of_version_1(folder: Path) -> float | None:
    quota, period = _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us")
    return quota[0] / period[0] if quota and period and quota[0] > 0 else None  # -1: no limit


def _numbers(file: Path) -> list[int]:
    """Return the numbers in a file: words that are none are left out."""
    try:
        words = file.read_text().split()
    except OSError:
        return []
    return [int(word) for word in words if word.lstrip("-").isdigit()]
