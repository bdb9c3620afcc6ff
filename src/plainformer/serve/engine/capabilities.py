"""What an engine's models can do, for lists of models and for messages."""

from __future__ import annotations

from dataclasses import dataclass

from plainformer.generation.ragged import unfit
from plainformer.serve.engine.writing import context_of
from plainformer.tasks import BUILT_ON
from plainformer.tasks.base import Task
from plainformer.tasks.writing.writer import WritingTask


@dataclass(frozen=True)
class Capabilities:
    """A served model.

    Attributes:
        name: as it is asked for. task: what it is loaded for. tasks: all that it can be asked for.
        kind: "decoder", "encoder" or "encoder-decoder". context: tokens that it reads at once; None: no limit.
        writes: whether `Engine.generate` takes it. batched: whether its answers are written together with other requests'.
        batch_invariant: whether that leaves their bits alone. prefix_cache: "exact", "fast" or "off". chat: whether it has
        a chat template. kv_tokens: tokens whose keys and values its share of the memory holds; 0 where it needs none.
    """

    name: str
    task: str
    tasks: tuple[str, ...]
    family: str
    kind: str
    parameters: int
    context: int | None
    writes: bool
    batched: bool
    batch_invariant: bool
    prefix_cache: str
    chat: bool
    dtype: str
    device: str
    kv_tokens: int


def capabilities(name: str, task: Task, prefix_cache: str, kv_tokens: int) -> Capabilities:
    """Return what a task can do."""
    config, model = task.config, task.model
    writes = isinstance(task, WritingTask)
    batched = writes and unfit(model) is None
    exact = batched and model.device.type == "cpu" and str(model.dtype) == "torch.float32"
    others = tuple(other for other, built in BUILT_ON.items() if task.name in built)
    return Capabilities(
        name,
        task.name,
        (task.name, *others),
        config.family,
        config.kind,
        model.num_parameters,
        context_of(task),
        writes,
        batched,
        exact,
        prefix_cache if batched else "off",
        task.needs_tokenizer and task.tokenizer.has_chat_template,
        str(model.dtype).removeprefix("torch."),
        str(model.device),
        kv_tokens,
    )
