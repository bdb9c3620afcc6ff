"""What a command line answers, and how it must: the fixture `cli` (tests/conftest.py) runs one in this process."""

from __future__ import annotations

import json
import os
import pty
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PROGRAM = [sys.executable, "-c", "from plainformer.cli.main import main; main()"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}


@dataclass
class Answer:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    def json(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]


Cli = Callable[..., Answer]


def refused(answer: Answer, *parts: str, code: int = 2) -> None:
    """An error on stderr that says all `parts`, nothing on stdout, and the exit code of wrong usage."""
    assert answer.code == code, answer
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    for part in parts:
        assert part in answer.err


def done(answer: Answer) -> Answer:
    assert answer.code == 0, answer
    assert answer.err == ""
    return answer


class Terminal:
    """A program in a terminal of its own, which is how it knows about Ctrl-C and about what is typed."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.process, self.end = pty.fork()
        if self.process == 0:
            try:
                os.execve(PROGRAM[0], [*PROGRAM, *arguments], environment)
            finally:
                os._exit(127)
        self.screen = b""  # what has been written, and not been waited for yet
        self.seen = b""

    def type(self, keys: bytes) -> None:
        """Press keys; Ctrl-C is \\x03, Ctrl-D \\x04."""
        os.write(self.end, keys)

    def wait_for(self, text: bytes, seconds: float = 90) -> bytes:
        """Return what is written up to a text, which must come."""
        until = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < until, (text, self.seen)
            assert self._read(), (text, self.seen)
        before, _, self.screen = self.screen.partition(text)
        return before

    def wait(self) -> int:
        """Return the exit code, after everything has been written."""
        while self._read():
            pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        self.process = 0
        return code

    def close(self) -> None:
        """End the program."""
        if self.process:
            os.kill(self.process, 9)
            os.waitpid(self.process, 0)
        os.close(self.end)

    def _read(self) -> bool:
        if not select.select([self.end], [], [], 1)[0]:
            return True
        try:
            part = os.read(self.end, 65536)
        except OSError:  # the other end is closed
            return False
        self.screen += part
        self.seen += part
        return bool(part)


@contextmanager
def terminal(*arguments: object, **environment: str) -> Iterator[Terminal]:
    """Run a command line in a terminal of 24 lines and 80 columns."""
    usual = {"TERM": "xterm", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    made = Terminal([str(argument) for argument in arguments], {**ENVIRONMENT, **usual, **environment})
    try:
        yield made
    finally:
        made.close()
