"""What a piece of code allocates on a CPU, by the events of the allocator: every tensor, also those inside a kernel."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function


class Allocated(NamedTuple):
    """Bytes beyond those allocated before: the most at any time, and what is left at the end."""

    peak: int
    left: int


def _events(run: Callable[[], object]) -> list[Any]:
    """Run it, and return what torch's profiler saw. What it returns is dropped."""
    gc.collect()  # what was allocated before must not be freed meanwhile
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as seen:
            run()
    finally:
        gc.enable()
        gc.collect()
    assert seen.profiler is not None
    return list(seen.profiler.kineto_results.events())


def allocated(run: Callable[[], object]) -> Allocated:
    """Run it, and return what it allocated. What it returns is dropped, and does not count as left."""
    changes = [event for event in _events(run) if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return Allocated(peak, now)


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the most bytes that were allocated at any time while `run` ran, beyond those allocated before it."""
    return allocated(run).peak


def peaks_by_phase(run: Callable[[], object]) -> dict[str, int]:
    """Return the most bytes beyond those at the start, for each part of `run` that `phase(name)` surrounds."""
    events = _events(run)
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    spans = {
        event.name().removeprefix(PHASE): (event.start_ns(), event.end_ns())
        for event in events
        if event.name().startswith(PHASE)
    }
    return {name: _peak_within(changes, *span) for name, span in spans.items()}


PHASE = "phase:"


def phase(name: str) -> AbstractContextManager[object]:
    """Give a part of the code a name for `peaks_by_phase`."""
    return record_function(PHASE + name)


def _peak_within(changes: list[tuple[int, int]], start: int, stop: int) -> int:
    now = sum(size for at, size in changes if at < start)
    return max([now, *(now + total for total in accumulate(size for at, size in changes if start <= at <= stop))])


def saved_for_backward(run: Callable[[], object], model: torch.nn.Module) -> Counter[int]:
    """Return how many storages of which size autograd keeps of what `run` computes, those of parameters not counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}
    kept = []  # so that no address is given out twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return Counter(found.values())
