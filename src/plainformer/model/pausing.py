"""Places where a long computation may be held up, so that something else computes meanwhile in another thread.

Between two runs of a model - steps of a generation, groups of rows - and within one, between two layers, a computation calls
`pause`. By itself that does nothing. Who runs computations in turns (`serve.engine.turns`) sets what it does in their threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_here = threading.local()


def pause(*, within: bool = False) -> None:
    """Let something else compute, where someone has asked for that in this thread. `within`: in the middle of a model's run."""
    waits: Callable[[bool], None] | None = getattr(_here, "waits", None)
    if waits is not None:
        waits(within)


def pauses_with(waits: Callable[[bool], None] | None) -> None:
    """Have `pause` call this in this thread from now on; None: do nothing."""
    _here.waits = waits
