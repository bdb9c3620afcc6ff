"""The engine that serves models, without HTTP: many callers, one thread that computes. Read `engine`, then `scheduler`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plainformer.serve.engine.answers import Event, Outcome, Seconds, TokenScore, Usage
    from plainformer.serve.engine.capabilities import Capabilities
    from plainformer.serve.engine.counters import Observation
    from plainformer.serve.engine.engine import Engine
    from plainformer.serve.engine.errors import (
        ContextTooLong,
        Draining,
        EngineDied,
        EngineError,
        QueueFull,
        QueueTimeout,
        RequestCancelled,
        RowFailed,
    )
    from plainformer.serve.engine.options import EngineOptions
    from plainformer.serve.engine.request import Request

# Name → where it lives: the command line reads options without torch, which the engine itself needs.
_HOMES = {
    "Capabilities": "capabilities",
    "ContextTooLong": "errors",
    "Draining": "errors",
    "Engine": "engine",
    "EngineDied": "errors",
    "EngineError": "errors",
    "EngineOptions": "options",
    "Event": "answers",
    "Observation": "counters",
    "Outcome": "answers",
    "QueueFull": "errors",
    "QueueTimeout": "errors",
    "Request": "request",
    "RequestCancelled": "errors",
    "RowFailed": "errors",
    "Seconds": "answers",
    "TokenScore": "answers",
    "Usage": "answers",
}
__all__ = [
    "Capabilities",
    "ContextTooLong",
    "Draining",
    "Engine",
    "EngineDied",
    "EngineError",
    "EngineOptions",
    "Event",
    "Observation",
    "Outcome",
    "QueueFull",
    "QueueTimeout",
    "Request",
    "RequestCancelled",
    "RowFailed",
    "Seconds",
    "TokenScore",
    "Usage",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
