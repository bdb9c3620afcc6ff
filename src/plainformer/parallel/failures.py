"""What a process does when others fail: it ends, soon, and says so in one line; what has caused it is said once."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import suppress
from datetime import timedelta

from plainformer.config.parallel import is_several
from plainformer.errors import PlainformerError, TrainingError, opt

# What gloo and NCCL say when another process has ended. They raise RuntimeError, and no kind of it.
_GONE = (
    *("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "remote process exited", "Socket closed"),
    *("failed to recv", "failed to send", "Connection was likely closed", "unhandled system error"),
)
_LATE = ("Timed out", "timed out", "timeout", "Timeout")
_GOES_ON = "the same command goes on from the last checkpoint, and `torchrun --max-restarts 3` gives it by itself"
_ANEW = "the same command begins anew, and `torchrun --max-restarts 3` gives it by itself"


def failure_of_another(error: BaseException, timeout: float, *, goes_on: bool = True) -> PlainformerError | None:
    """Return what to say of an error that another process has caused; None of any other error.

    Args:
        timeout: seconds that an answer might take. goes_on: whether the same command goes on, as training does from its
            last checkpoint.
    """
    if not is_several() or not isinstance(error, RuntimeError | TimeoutError) or isinstance(error, MemoryError):
        return None
    text = str(error)
    import torch.distributed as dist

    known, again = isinstance(error, dist.DistError | TimeoutError), _GOES_ON if goes_on else _ANEW
    if any(said in text for said in _GONE):
        return TrainingError(
            "another process of this run has ended", f"its message says why, and without one it was killed; {again}"
        )
    if isinstance(error, TimeoutError) or any(said in text for said in _LATE):
        what = f"another process of this run has not answered for {timeout:g} seconds"
        longer = f" then give a longer {opt('parallel.timeout')};" if goes_on else ""
        fix = f"is a machine down, or slow?{longer} {again}"
        return TrainingError(what, fix)
    return TrainingError(f"the processes of this run cannot talk: {text.splitlines()[0]}", again) if known else None


def speaks(message: str) -> bool:
    """Return whether this process is the first of those started together to say a message, as far as it can find out."""
    if not is_several():
        return True
    attempt = f"{os.environ.get('TORCHELASTIC_RUN_ID')} {os.environ.get('TORCHELASTIC_RESTART_COUNT')} {message}"
    key = f"plainformer/said/{hashlib.sha256(attempt.encode()).hexdigest()}"
    with suppress(Exception):  # the store may have gone with the process that had it: then everybody speaks
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*where, is_master=False, timeout=timedelta(seconds=5))
        return bool(store.add(key, 1) == 1)
    return True


def end_with_parent() -> None:
    """End this process when the one that started it has ended: nobody else would, and it would hold the run's folder.

    The workers of a torchrun that is killed live on (pytorch issue 147064).
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
