"""The threads that help kernels with their loops (`parts.py`): as many as torch would use, less the one that calls.

A helper that had to be waited for, because the machine gave its core to someone else, stays away for a while, twice as
long each time in a row: on a busy machine the caller then goes on alone, and does not wait.
"""

from __future__ import annotations

import atexit
import os
import threading
import time

from plainformer.model.fast.parts import HELPERS, SHARED, WORDS, serve

SHORTEST, LONGEST = 0.01, 1.0  # seconds that a helper stays away

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


def _help(number: int) -> None:
    away, needed, ending = SHORTEST, _needed[number], _ending
    while not ending.is_set():
        start = time.monotonic()
        if serve(number):
            if time.monotonic() - start > 10 * away:
                away = SHORTEST
            ending.wait(away)
            away = min(2 * away, LONGEST)
        else:
            needed.clear()
            needed.wait()


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
