"""One process at a time works in the folder of a run."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plainformer.errors import UsageError, opt

_TAKEN = (errno.EAGAIN, errno.EACCES)


def _is_taken(folder: int) -> bool:
    """Return whether another process has the lock; take it if not."""
    import fcntl

    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _TAKEN
    return False


@contextmanager
def alone_in(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Within, no other run works in this folder; the system ends the claim with the process, however that ends.

    Nothing is written. File systems and systems without such locks (Windows) leave it to the user.

    Args:
        seconds: how long to wait for the end of another: of a run that is restarted, the last process may still be ending.

    Raises:
        UsageError: another run is at work there.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + seconds
        while _is_taken(opened):
            if time.monotonic() >= end:
                what = f"another process trains in {opt('folder', str(folder))}"
                raise UsageError(what, "wait for its end, or give a new folder")
            time.sleep(0.1)
        yield
    finally:
        os.close(opened)
