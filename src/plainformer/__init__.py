"""Plainformer: load a transformer, run it, train it, measure it, and see every step.

`load` a checkpoint and call it. Nothing is computed at import: torch is imported when something needs it.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# GNU's OpenMP, which torch brings, reads this when it is loaded: how often a thread that waits looks, some 0.1 ms, before it
# sleeps. By itself it looks for 10 ms, and on a busy machine the thread that it waits for has no core meanwhile.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# Public name → where it lives.
_NAMES = {
    "load": "plainformer.loading",
    "save": "plainformer.saving",
    "pipeline": "plainformer.loading",
    "plan": "plainformer.planning",
    "Plan": "plainformer.plan.planned",
    "Fitted": "plainformer.plan.fitted",
    "Workload": "plainformer.plan.workload",
    "train": "plainformer.training",
    "cross_validate": "plainformer.folds",
    "FoldsResult": "plainformer.folds",
    "evaluate": "plainformer.evaluation",
    "Evaluation": "plainformer.evaluation",
    "TrainConfig": "plainformer.config.training",
    "TrainResult": "plainformer.training",
    "verdict": "plainformer.train.verdict",
    "Verdict": "plainformer.train.verdict",
    "load_model": "plainformer.loading",
    "load_tokenizer": "plainformer.loading",
    "with_head": "plainformer.starting",
    "from_fragment": "plainformer.starting",
    "NewHead": "plainformer.starting",
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
    "train_tokenizer": "plainformer.inputs.text.tokenizer_training",
    "KeyValueCache": "plainformer.generation.cache.cache",
    "generate": "plainformer.generation.search",
    "stream": "plainformer.generation.search",
    "GenerationOptions": "plainformer.generation.options",
    "ChatSession": "plainformer.tasks.writing.chat",
    "Engine": "plainformer.serve.engine",
    "EngineOptions": "plainformer.serve.engine",
    "explain": "plainformer.explanation",
    "explain_steps": "plainformer.explanation",
    "replay_steps": "plainformer.explanation",
    "what_if": "plainformer.explanation",
    "nearest_tokens": "plainformer.explanation",
    "plot_attention": "plainformer.explanation",
    "plot_lens": "plainformer.explanation",
    "plot_embeddings": "plainformer.explanation",
    "plot_step": "plainformer.explanation",
    "plot_beams": "plainformer.explanation",
    "record": "plainformer.explanation",
    "replay": "plainformer.explanation",
    "Request": "plainformer.explanation",
    "Trace": "plainformer.explanation",
    "ReplayError": "plainformer.explanation",
    "compare": "plainformer.evaluate.comparison",
    "Comparison": "plainformer.evaluate.comparison",
    "TASKS": "plainformer.tasks",
    "Skipped": "plainformer.tasks.results",
    "read_tags": "plainformer.config.tag_schemes",
}
__all__ = ["__version__", *_NAMES]

# isort: off
if TYPE_CHECKING:  # "as" tells type checkers that the name is public
    from plainformer.config import HeadConfig as HeadConfig, ModelConfig as ModelConfig, StackConfig as StackConfig
    from plainformer.config import PatchFrontend as PatchFrontend, TokenFrontend as TokenFrontend
    from plainformer.config.training import TrainConfig as TrainConfig
    from plainformer.errors import CheckpointError as CheckpointError, HubError as HubError, InputError as InputError
    from plainformer.errors import MissingDependencyError as MissingDependencyError
    from plainformer.errors import PlainformerError as PlainformerError, UsageError as UsageError
    from plainformer.evaluation import Evaluation as Evaluation, evaluate as evaluate
    from plainformer.plan.fitted import Fitted as Fitted
    from plainformer.plan.planned import Plan as Plan
    from plainformer.plan.workload import Workload as Workload
    from plainformer.planning import plan as plan
    from plainformer.evaluate.comparison import Comparison as Comparison, compare as compare
    from plainformer.explanation import ReplayError as ReplayError, Request as Request, Trace as Trace
    from plainformer.explanation import explain as explain, explain_steps as explain_steps, record as record
    from plainformer.explanation import replay as replay, replay_steps as replay_steps, what_if as what_if
    from plainformer.explanation import nearest_tokens as nearest_tokens, plot_attention as plot_attention
    from plainformer.explanation import plot_beams as plot_beams, plot_embeddings as plot_embeddings
    from plainformer.explanation import plot_lens as plot_lens, plot_step as plot_step
    from plainformer.families import config_from_dict as config_from_dict
    from plainformer.generation.cache.cache import KeyValueCache as KeyValueCache
    from plainformer.generation.options import GenerationOptions as GenerationOptions
    from plainformer.generation.search import generate as generate, stream as stream
    from plainformer.inputs.text.tokenizer import Tokenizer as Tokenizer
    from plainformer.inputs.text.tokenizer_training import train_tokenizer as train_tokenizer
    from plainformer.loading import load as load, load_model as load_model, load_tokenizer as load_tokenizer
    from plainformer.loading import pipeline as pipeline
    from plainformer.saving import save as save
    from plainformer.model.block import set_ffn_chunk_size as set_ffn_chunk_size
    from plainformer.model.initial import initialise as initialise
    from plainformer.model.stack import join_outputs as join_outputs
    from plainformer.model.transformer import Transformer as Transformer
    from plainformer.serve.engine import Engine as Engine, EngineOptions as EngineOptions
    from plainformer.starting import NewHead as NewHead, from_fragment as from_fragment, with_head as with_head
    from plainformer.tasks import TASKS as TASKS
    from plainformer.tasks.results import Skipped as Skipped
    from plainformer.config.tag_schemes import read_tags as read_tags
    from plainformer.tasks.writing.chat import ChatSession as ChatSession
    from plainformer.train.verdict import Verdict as Verdict, verdict as verdict
    from plainformer.training import TrainResult as TrainResult, train as train
# isort: on


if not TYPE_CHECKING:  # which would take any name for one that there is

    def __getattr__(name: str) -> Any:
        if name in ("train", "evaluate", "plan"):
            # Packages that are called: importing a part of one names it so, too.
            return import_module(f"plainformer.{name}")
        if name in _NAMES:
            value = getattr(import_module(_NAMES[name]), name)
            globals()[name] = value
            return value
        from plainformer.errors import did_you_mean

        raise AttributeError(f"module 'plainformer' has no attribute {name!r}; {did_you_mean(name, _NAMES)}")


def __dir__() -> list[str]:
    return sorted(__all__)
