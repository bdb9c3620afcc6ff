"""What tests of the engine need: tiny tasks, and requests of every kind with what the library itself answers to them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plainformer
from plainformer.serve.engine import Engine, EngineOptions, Event, Outcome, Request
from tests.support import models as make

LONG = "who is in france? not the dog; the cat sat on the mat and looked at it. "  # of the byte vocabulary


class Models:
    """Tasks by name, loaded when they are first asked for."""

    def __init__(self, folder: Callable[[str], Path]) -> None:
        self._folder = folder
        self._tasks: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._tasks:
            changes: dict[str, Any] = {"chat": {"max_position_embeddings": 4096}}.get(name, {})
            self._tasks[name] = plainformer.load(str(make.save(name, self._folder(name), **changes)))
        return self._tasks[name]


def engine_of(*tasks: Any, **options: Any) -> Engine:
    """An engine of tasks, named "a", "b", ..."""
    options = {"kv_memory_bytes": 1 << 24, **options}
    return Engine(dict(zip("abcdef", tasks, strict=False)), EngineOptions(**options))


def read(request: Request) -> tuple[list[Event], Outcome]:
    """All events of a request, and its outcome."""
    events = list(request)
    return events, request.result(30)


def until(ready: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.002)


@dataclass(frozen=True)
class Asked:
    """A request for written answers."""

    prompt: Any
    options: dict[str, Any]
    n: int = 1
    logprobs: int | None = None

    def of(self, engine: Engine, model: str = "a", **more: Any) -> Request:
        """Ask an engine."""
        return engine.generate(model, self.prompt, self.options, n=self.n, logprobs=self.logprobs, **more)

    def expected(self, task: Any) -> Any:
        """What the library's own call gives."""
        many = {"num_return_sequences": self.n} if self.n > 1 and self.options.get("do_sample") else {}
        return task(self.prompt, **self.options, **many)


KINDS: list[dict[str, Any]] = [
    {},
    {"top_p": 0.8},
    {"regex": "[a-z ]{3,9}"},
    {},
    {"stop": ["e", "zz"]},
    {"top_k": 5},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5},
]


def mixed(count: int, seed: int, most: int = 10) -> list[Asked]:
    """Requests of every kind that is written in a batch, with prompts of one to five blocks."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        start = chance.randrange(len(LONG))
        prompt = (LONG * 6)[start : start + chance.choice([3, 20, 63, 64, 65, 130, 300])]
        options: dict[str, Any] = {"max_new_tokens": chance.randint(1, most), "output_scores": chance.random() < 0.5}
        kind = number % len(KINDS)
        if kind in (1, 3, 5):
            options |= {"do_sample": True, "seed": chance.randrange(100), "temperature": chance.choice([0.7, 1.0, 2.0])}
        options |= KINDS[kind]
        found.append(Asked(prompt, options, n=3 if kind == 3 else 1, logprobs=chance.choice([None, 0, 3])))
    return found


BUSY = ("requests_running", "requests_waiting", "requests_paused", "rows_running", "kv_blocks_used")


def is_free(engine: Engine) -> bool:
    """Whether nothing is going on, and nobody holds memory."""
    gauges = engine.gauges()
    return not any(gauges[name] for name in BUSY)


@contextmanager
def held_up(engine: Engine) -> Iterator[None]:
    """Within, the thread that computes waits."""
    go, there = threading.Event(), threading.Event()

    def wait() -> None:
        there.set()
        go.wait(20)

    engine.exclusive(wait)
    assert there.wait(10)
    try:
        yield
    finally:
        go.set()
