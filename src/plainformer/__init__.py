"""Plainformer: the whole life of a transformer language model, plain to see.

`load` a checkpoint and call it. Nothing happens at import: torch is imported when something needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name → where it lives.
_NAMES = {
    "load": "plainformer.loading",
    "save": "plainformer.loading",
    "pipeline": "plainformer.loading",
    "load_model": "plainformer.loading",
    "load_tokenizer": "plainformer.loading",
    "ModelConfig": "plainformer.config",
    "StackConfig": "plainformer.config",
    "PlainformerError": "plainformer.errors",
    "UsageError": "plainformer.errors",
    "InputError": "plainformer.errors",
    "CheckpointError": "plainformer.errors",
    "HubError": "plainformer.errors",
    "Transformer": "plainformer.model.transformer",
    "Tokenizer": "plainformer.inputs.text.tokenizer",
    "KeyValueCache": "plainformer.generation.cache.cache",
    "generate": "plainformer.generation.search",
    "stream": "plainformer.generation.search",
    "GenerationOptions": "plainformer.generation.options",
    "ChatSession": "plainformer.tasks.writing.chat",
    "explain": "plainformer.explanation",
    "explain_steps": "plainformer.explanation",
    "replay_steps": "plainformer.explanation",
    "what_if": "plainformer.explanation",
    "record": "plainformer.explanation",
    "replay": "plainformer.explanation",
    "Request": "plainformer.explanation",
    "Trace": "plainformer.explanation",
    "ReplayError": "plainformer.explanation",
}
__all__ = ["__version__", *_NAMES]

if TYPE_CHECKING:
    from plainformer.config import ModelConfig, StackConfig
    from plainformer.errors import CheckpointError, HubError, InputError, PlainformerError, UsageError
    from plainformer.explanation import (
        ReplayError,
        Request,
        Trace,
        explain,
        explain_steps,
        record,
        replay,
        replay_steps,
        what_if,
    )
    from plainformer.generation.cache.cache import KeyValueCache
    from plainformer.generation.options import GenerationOptions
    from plainformer.generation.search import generate, stream
    from plainformer.inputs.text.tokenizer import Tokenizer
    from plainformer.loading import load, load_model, load_tokenizer, pipeline, save
    from plainformer.model.transformer import Transformer
    from plainformer.tasks.writing.chat import ChatSession


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    from plainformer.errors import did_you_mean

    raise AttributeError(f"module 'plainformer' has no attribute {name!r}; {did_you_mean(name, _NAMES)}")


def __dir__() -> list[str]:
    return sorted(__all__)
