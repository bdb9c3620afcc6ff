"""Kernels that are not on disk yet are compiled by another process, and the program goes on without them meanwhile.

Compiling takes some 8 s, once on a machine, and holds Python's lock: a thread of this process would let nothing else run. The
other process is sent what to compile, and keeps it on disk; when this one finds it there, it uses it. It ends with this one,
however that ends. Where there can be no such process, or it fails, or an earlier program ended before its kernels were there,
the program compiles by itself and waits: short programs would never get theirs. It also waits where the environment has
PLAINFORMER_KERNELS=wait, for measurements and tests.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

# The path comes first: the other process finds the same packages, wherever this one has them from.
_PROGRAM = (
    "import sys, pickle; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from plainformer.model.fast.ahead import serve; serve()"
)


class NotYet(Exception):
    """A kernel is being compiled."""


class _Other:
    """The other process, and what it was asked for."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.asked: dict[Any, Any] = {}  # what was asked for, and its kernel
        self.mark: Path | None = None  # a file that is there until this process has its kernels
        self.failed = False

    def ask(self, kernel: Any, signature: Any) -> bool:
        """Have a kernel compiled for a signature; return False where this process has to do it."""
        wait = os.environ.get("PLAINFORMER_KERNELS") == "wait" or not sys.executable or getattr(sys, "frozen", False)
        if self.failed or wait or not hasattr(kernel._cache, "_cache_file"):
            return False
        key = kernel.__module__, kernel.__name__, signature
        try:
            if self.process is None:
                self._leave_mark(Path(kernel._cache.cache_path) / "unfinished")
                self.process = _start()
                self._send(sys.path)
            if self.process.poll() is not None:
                raise OSError("it ended")
            if key not in self.asked:
                self._send(key)
                self.asked[key] = kernel
        except (OSError, pickle.PicklingError):
            self.failed = True
            self.end()
        return not self.failed

    def _leave_mark(self, mark: Path) -> None:
        """Raise OSError if an earlier process left one, and is gone."""
        if mark.exists() and not _is_alive(mark.read_text()):
            mark.unlink()
            raise OSError("an earlier process did not get its kernels")
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(str(os.getpid()))
        self.mark = mark

    def _send(self, what: object) -> None:
        assert self.process is not None and self.process.stdin is not None
        pickle.dump(what, self.process.stdin)
        self.process.stdin.flush()

    def end(self) -> None:
        """Stop the process; what it has not kept by now is lost."""
        if self.mark is not None and all(key[2] in kernel.overloads for key, kernel in self.asked.items()):
            with suppress(OSError):
                self.mark.unlink()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _is_alive(pid: str) -> bool:
    if sys.platform == "win32":  # where `os.kill` ends the process that it asks about
        return True
    try:
        os.kill(int(pid), 0)
    except PermissionError:  # someone else's
        return True
    except (OSError, ValueError):
        return False
    return True


def _start() -> subprocess.Popen[bytes]:
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # A session of its own: Ctrl-C is for the program, which ends this one.
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, start_new_session=True, env=_environment(), **quiet
    )


def _environment() -> dict[str, str]:
    """Return this process's environment, with the folder that Numba keeps things in, wherever that was decided."""
    config: Any = import_module("numba").config
    folder = str(config.CACHE_DIR or "")
    return {**os.environ, **({"NUMBA_CACHE_DIR": folder} if folder else {})}


def serve() -> None:
    """Compile what comes on standard input, until it ends: the program is gone, or has all that it wants."""
    if hasattr(os, "nice"):
        os.nice(5)
    # It tells Numba how blocks are multiplied; and what comes is unpickled by another thread, which must not import as well.
    import_module("plainformer.model.fast.quantised")
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(asked,), daemon=True).start()
    while True:
        module, name, signature = asked.get()
        try:
            getattr(import_module(module), name).compile(signature)
        except BaseException:  # a full disk, for one: the program sees that this process is gone
            os._exit(1)


def _read(asked: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            asked.put(pickle.load(sys.stdin.buffer))
    except BaseException:
        os._exit(0)


def _forget() -> None:
    """In a process that was forked: the other process is its parent's."""
    global _other
    _other = _Other()


def ask(kernel: Any, signature: Any) -> bool:
    """Have a kernel compiled elsewhere; see `_Other.ask`."""
    return _other.ask(kernel, signature)


def end() -> None:
    """Stop compiling elsewhere."""
    _other.end()


_other = _Other()
atexit.register(end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
