"""What tests of the engine need: tiny tasks, and requests of every kind with what the library itself answers to them."""

from __future__ import annotations

import time
from collections.abc import Callable
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
