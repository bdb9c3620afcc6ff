"""What a command line answers, and how it must: the fixture `cli` (tests/conftest.py) runs one in this process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
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
