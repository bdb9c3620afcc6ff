"""The threads that help kernels with their loops (`parts.py`): as many as torch would use, less the one that calls.

A helper whose core the machine gives to someone else - it had to be waited for as long as it helps, or was interrupted - stays
away for a while, twice as long each time in a row. On a busy machine the caller then goes on alone: it waits for nobody, and has
the processor time that this program is due for itself.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from importlib import import_module
from typing import Any

from plainformer.model.fast.parts import HELPED, HELPERS, IDLE, LATE, NAPS, SHARED, STAY, WORDS, serve

SHORTEST, LONGEST = 0.02, 1.0  # seconds that a helper stays away
UNDISTURBED = 0.1  # seconds of help after which being late was chance: a busy machine interrupts sooner
# A helper that was late stays all the same if it had worked this many times as long as the caller then waited: one that shares
# its core with a server's other thread is interrupted at each token, for a moment.
WORTH = 4
LOST, NAPPED = 0.001, 0.0001  # seconds that the caller waits before its first nap, and for each
LEAST_SHARE = 0.6  # of a core's time: what a helper that was interrupted must have had, or the core is someone else's

try:
    resource: Any = import_module("resource")
except ImportError:  # Windows
    resource = None
_threads: list[threading.Thread] = []
_needed: list[threading.Event] = []  # of each helper
_ending = threading.Event()


def want(count: int) -> None:
    """Let `count` threads help from here on, and wake those that sleep."""
    if SHARED[HELPERS] != count:
        while len(_threads) < count:
            _needed.append(threading.Event())
            _threads.append(threading.Thread(target=_help, args=(len(_threads),), name="kernels", daemon=True))
            _threads[-1].start()
        SHARED[HELPERS] = count
    for needed in _needed[:count]:
        if not needed.is_set():
            needed.set()


def stay(loops_follow: bool) -> None:
    """Say whether more loops follow at once: helpers then wait actively; else torch's threads may want their cores."""
    SHARED[STAY] = int(loops_follow)


def _help(number: int) -> None:
    away, needed, ending = SHORTEST, _needed[number], _ending
    came = time.monotonic()
    while not ending.is_set():
        start, worked, interruptions, naps = time.monotonic(), time.thread_time(), _interruptions(), SHARED[NAPS]
        outcome = serve(number)
        end, worked = time.monotonic(), time.thread_time() - worked
        interrupted = _interruptions() > interruptions and worked < LEAST_SHARE * (end - start)
        late = outcome == LATE and worked < WORTH * (LOST + NAPPED * (SHARED[NAPS] - naps))
        if late or (outcome == HELPED and interrupted):  # one that has slept has worked little anyway
            if end - came > UNDISTURBED:
                away = SHORTEST
            ending.wait(away)
            away, came = min(2 * away, LONGEST), time.monotonic()
        elif outcome == IDLE:
            needed.clear()
            needed.wait()
            came = time.monotonic()


def _interruptions() -> int:
    """Return how often this thread had to make room for another; 0 where the system does not say."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw if hasattr(resource, "RUSAGE_THREAD") else 0


def _end() -> None:
    """End all helpers before Python takes its modules apart."""
    _ending.set()
    SHARED[HELPERS] = 0
    for needed in _needed:
        needed.set()
    for thread in _threads:
        thread.join(1)


def _forget() -> None:
    """Start from nothing: a forked process has no threads but the one that forked."""
    global _ending
    _ending = threading.Event()
    _threads.clear()
    _needed.clear()
    for word in range(WORDS):
        SHARED[word] = 0


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
