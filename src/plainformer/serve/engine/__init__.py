"""The engine that serves models, without HTTP: many callers, one thread that computes. Read `engine`, then `scheduler`."""

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
