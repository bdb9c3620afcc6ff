"""One process at a time works in the folder of a run."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plainformer.errors import UsageError, opt

_TAKEN = (errno.EAGAIN, errno.EACCES)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within, no other run works in this folder; the system ends the claim with the process, however that ends.

    Nothing is written. File systems and systems without such locks (Windows) leave it to the user.

    Raises:
        UsageError: another run is at work there.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                what = f"another process trains in {opt('folder', str(folder))}"
                raise UsageError(what, "wait for its end, or give a new folder") from None
        yield
    finally:
        os.close(opened)
