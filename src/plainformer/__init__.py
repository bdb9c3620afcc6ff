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
    "HeadConfig": "plainformer.config",
    "TokenFrontend": "plainformer.config",
    "PatchFrontend": "plainformer.config",
    "config_from_dict": "plainformer.families",
    "PlainformerError": "plainformer.errors",
    "UsageError": "plainformer.errors",
    "InputError": "plainformer.errors",
    "CheckpointError": "plainformer.errors",
    "HubError": "plainformer.errors",
    "MissingDependencyError": "plainformer.errors",
    "Transformer": "plainformer.model.transformer",
    "initialise": "plainformer.model.initial",
    "set_ffn_chunk_size": "plainformer.model.block",
    "join_outputs": "plainformer.model.stack",
    "Tokenizer": "plainformer.inputs.text.tokenizer",
    "KeyValueCache": "plainformer.generation.cache.cache",
    "generate": "plainformer.generation.search",
    "stream": "plainformer.generation.search",
    "GenerationOptions": "plainformer.generation.options",
    "ChatSession": "plainformer.tasks.writing.chat",
    "explain": "plainformer.explain",
    "explain_steps": "plainformer.explain",
    "what_if": "plainformer.explain",
    "Request": "plainformer.explain",
    "Trace": "plainformer.explain",
    "replay": "plainformer.explain",
    "ReplayError": "plainformer.explain",
    "TASKS": "plainformer.tasks",
    "read_tags": "plainformer.tasks.text.tag_schemes",
}
__all__ = ["__version__", *_NAMES]

if TYPE_CHECKING:
    from plainformer.config import HeadConfig, ModelConfig, PatchFrontend, StackConfig, TokenFrontend
    from plainformer.errors import (
        CheckpointError,
        HubError,
        InputError,
        MissingDependencyError,
        PlainformerError,
        UsageError,
    )
    from plainformer.explain import ReplayError, Request, Trace, explain, explain_steps, replay, what_if
    from plainformer.families import config_from_dict
    from plainformer.generation.cache.cache import KeyValueCache
    from plainformer.generation.options import GenerationOptions
    from plainformer.generation.search import generate, stream
    from plainformer.inputs.text.tokenizer import Tokenizer
    from plainformer.loading import load, load_model, load_tokenizer, pipeline, save
    from plainformer.model.block import set_ffn_chunk_size
    from plainformer.model.initial import initialise
    from plainformer.model.stack import join_outputs
    from plainformer.model.transformer import Transformer
    from plainformer.tasks import TASKS
    from plainformer.tasks.text.tag_schemes import read_tags
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
