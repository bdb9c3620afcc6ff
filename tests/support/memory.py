"""What a piece of code allocates on a CPU, by the events of the allocator: every tensor, also those inside a kernel."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile


class Allocated(NamedTuple):
    """Bytes beyond those allocated before: the most at any time, and what is left at the end."""

    peak: int
    left: int


def allocated(run: Callable[[], object]) -> Allocated:
    """Run it, and return what it allocated. What it returns is dropped, and does not count as left."""
    gc.collect()  # what was allocated before must not be freed meanwhile
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as seen:
            run()
    finally:
        gc.enable()
    assert seen.profiler is not None
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return Allocated(peak, now)


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the most bytes that were allocated at any time while `run` ran, beyond those allocated before it."""
    return allocated(run).peak
