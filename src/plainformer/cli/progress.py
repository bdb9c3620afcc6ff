"""What a terminal shows while something is going on: the last line of stderr, rewritten in place, gone when there is an answer.

Nothing is shown where stderr is not a terminal, or where NO_PROGRESS is set. What the library says of its work - it compiles
kernels, it reads a long prompt - comes from the logger `plainformer.progress`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from plainformer.cli.screen import width

if TYPE_CHECKING:
    import logging

_TICK = 0.5  # seconds between two looks at the clock
_PATIENCE = 2.0  # seconds after which the time so far is shown
_ERASE = "\r\x1b[K"


class Count:
    """How many inputs are answered, of how many where that is known, how fast, and how long the others will take."""

    def __init__(self, total: int | None, what: str = "inputs") -> None:
        self.total, self.what, self.done = total, what, 0
        self.began = self.last = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count inputs that have been answered."""
        self.done, self.last = self.done + count, time.monotonic()
        screen.note("")

    def __str__(self) -> str:
        now, seconds = time.monotonic(), self.last - self.began
        of = f" of {self.total:,}" if self.total is not None else ""
        parts = [f"{self.done:,}{of} {self.what.removesuffix('s') if self.total == 1 else self.what}"]
        if self.done and seconds > 0:
            rate = self.done / seconds
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
            if self.total is not None and self.total > self.done:
                parts.append(f"{duration(max(0, (self.total - self.done) / rate - (now - self.last)))} left")
        elif now - self.began >= _PATIENCE:
            parts.append(duration(now - self.began))
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a time as people say it: "12 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Screen:
    """The terminal: what is being done, and how what is written passes it.

    Attributes:
        partial: whether a line of the answer is on the screen that has not ended yet; nothing else may be written then.
        silent: whether another of several processes speaks for this one.
    """

    def __init__(self) -> None:
        self.partial = self.silent = False
        self._text: str | Count | None = None
        self._note, self._share, self._ticks = "", 0.0, False
        self._began = self._noted = 0.0
        self._drawn = self._listens = False
        self._ticker: threading.Thread | None = None
        self._lock = threading.RLock()

    @property
    def shows(self) -> bool:
        """Whether there is a terminal that wants to know."""
        quiet = os.environ.get("NO_PROGRESS") or os.environ.get("TERM") == "dumb"
        return sys.stderr is not None and sys.stderr.isatty() and not quiet and not self.silent

    @contextlib.contextmanager
    def during(self, what: str | Count, *, ticks: bool = True) -> Iterator[None]:
        """Say what is being done as long as it is; with `ticks`, for how long it has been."""
        if not self.shows:
            yield
            return
        self._listen()
        before = self._text, self._ticks, self._began
        self._text, self._ticks, self._began, self._note = what, ticks, time.monotonic(), ""
        self.refresh()
        if self._ticker is None:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()
        try:
            yield
        finally:
            self.clear()
            self._text, self._ticks, self._began = before
            self._note = ""

    def note(self, text: str, share: float = 0.0) -> None:
        """Say more closely what is being done; `share` of it is done already."""
        if text != self._note:
            self._noted = time.monotonic()
        self._note, self._share = text, share
        self.refresh()

    def refresh(self) -> None:
        """Draw the line anew."""
        with self._lock:
            if self._text is None or self.partial or not self.shows:
                return
            sys.stderr.write(_ERASE + self._line()[: (width(sys.stderr) or 80) - 1])
            sys.stderr.flush()
            self._drawn = True

    def clear(self) -> None:
        """Take the line away."""
        with self._lock:
            if self._drawn:
                self._drawn = False
                sys.stderr.write(_ERASE)
                sys.stderr.flush()

    def write(self, text: str, end: str = "\n") -> None:
        """Write a part of the answer to stdout, at once."""
        with self._lock:
            if sys.stdout.isatty():
                self.clear()
                self.partial = bool(text + end) and not (text + end).endswith("\n")
            print(text, end=end, flush=True)

    def say(self, text: str) -> None:
        """Write a line to stderr that stays there."""
        if self.silent:
            return
        with self._lock:
            self.clear()
            print(text, file=sys.stderr, flush=True)
        self.refresh()

    def interrupted(self) -> None:
        """Leave the terminal as it should be, and say why the program ends; called by a signal handler."""
        show_typing()
        if self._drawn:
            os.write(2, _ERASE.encode())
        if self.partial:
            with contextlib.suppress(OSError):
                os.write(1, b"\n")
        os.write(2, b"(interrupted)\n" if self.partial else b"interrupted\n")

    def _line(self) -> str:
        text = str(self._text)
        if not self._note:
            return f"{text} ...{_since(self._began) if self._ticks and not isinstance(self._text, Count) else ''}"
        left = ""
        seconds = time.monotonic() - self._noted
        if self._share > 0:
            left = f" {self._share:.0%}, {duration(seconds * (1 - self._share) / self._share)} left"
        note = f"{self._note} ...{left or _since(self._noted)}"
        return f"{text}; {note}" if isinstance(self._text, Count) else note

    def _tick(self) -> None:
        while True:
            time.sleep(_TICK)
            if self._text is not None and (self._ticks or self._note):
                self.refresh()

    def _listen(self) -> None:
        if self._listens:
            return
        self._listens = True
        import logging  # takes a hundredth of a second, which --help has no use for

        listener = logging.Handler()
        listener.emit = self._heard  # type: ignore[method-assign]
        logging.getLogger("plainformer").addHandler(listener)
        logging.getLogger("plainformer.progress").setLevel(logging.INFO)

    def _heard(self, record: logging.LogRecord) -> None:
        """Show what the library says of its progress, and its warnings."""
        if record.name == "plainformer.progress":
            self.note(record.getMessage(), getattr(record, "share", 0.0))
        elif record.levelname in ("WARNING", "ERROR", "CRITICAL"):
            self.say(f"warning: {record.getMessage()}")


def _since(began: float) -> str:
    seconds = time.monotonic() - began
    return f" {duration(seconds)}" if seconds >= _PATIENCE else ""


screen = Screen()

# ---- the keyboard -------------------------------------------------------------------------------------------------------

_keyboard: tuple[int, list[Any]] | None = None  # the terminal whose typing is hidden, and how it was before


@contextlib.contextmanager
def typing_hidden() -> Iterator[None]:
    """Keep what is typed, "^C" among it, off the screen while something is written there; it is read afterwards."""
    global _keyboard
    fd = _own_terminal()
    if fd is None:
        yield
        return
    import termios

    before = termios.tcgetattr(fd)
    hidden = list(before)
    hidden[3] &= ~termios.ECHO
    _keyboard = fd, before
    termios.tcsetattr(fd, termios.TCSANOW, hidden)
    try:
        yield
    finally:
        show_typing()


def _own_terminal() -> int | None:
    """Return the file number of stdin if it is a terminal that is ours: of another job it would stop this one."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import termios  # noqa: F401  # not on Windows

        fd = sys.stdin.fileno()
        if os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp():
            return fd
    return None


def show_typing() -> None:
    """Undo `typing_hidden`."""
    global _keyboard
    if _keyboard is not None:
        import termios

        (fd, before), _keyboard = _keyboard, None
        termios.tcsetattr(fd, termios.TCSANOW, before)
