"""Which task a checkpoint does, and which head it needs for one that is asked for."""

from __future__ import annotations

from plainformer.checkpoint.opened import Checkpoint
from plainformer.config import ModelConfig
from plainformer.errors import UsageError, opt
from plainformer.families import head_of, heads_of
from plainformer.tasks import BUILT_ON, TaskInfo, default_task, head_for_task, tasks_of
from plainformer.tasks.base import Task


def head_for(checkpoint: Checkpoint, info: TaskInfo | None) -> str | None:
    """Return the head that a task needs, None for the checkpoint's own.

    A checkpoint with another task's head cannot do this one, even where its tensors happen to have fitting names. Every
    checkpoint gives features; one without a head is left to its weights (GPT2Model's are all that GPT-2 needs).
    """
    if info is None:
        return None
    head = head_for_task(info.name, heads_of(checkpoint.model_type))
    if head == "none":
        return head
    stated = head_of(checkpoint.architecture, checkpoint.model_type) if checkpoint.architecture else "none"
    if stated in ("none", head):
        return head
    config = checkpoint.config(stated)
    if default_task(config).name in BUILT_ON.get(info.name, ()):
        return head
    raise _cannot(checkpoint, info, f"its architecture {checkpoint.architecture} does", config)


def task_of(checkpoint: Checkpoint, config: ModelConfig, info: TaskInfo | None) -> TaskInfo:
    """Return the task that was asked for, if the model as loaded can do it; by default the one that it implies."""
    implied = default_task(config)
    chosen = info or implied
    if implied.name in (chosen.name, *BUILT_ON.get(chosen.name, ())):
        return chosen
    raise _cannot(checkpoint, chosen, "as loaded, it does", config)


def _cannot(checkpoint: Checkpoint, info: TaskInfo, does: str, config: ModelConfig) -> UsageError:
    *first, last = map(repr, tasks_of(config))
    tasks = f"{', '.join(first)} or {last}" if first else last
    fix = f"leave out {opt('task', ...)}, or choose one of these"
    return UsageError(f"{checkpoint.ref} cannot do {info.name!r}: {does} {tasks}", fix)


def as_class(checkpoint: Checkpoint, asked: type[Task], made: type[Task]) -> type[Task]:
    """Return the class that was asked for: the one that the checkpoint's head needs, or its subclass."""
    if issubclass(asked, made):
        return asked
    raise UsageError(
        f"{checkpoint.ref} gives a {made.__name__}, not a {asked.__name__}", "pass that class, or the task's name"
    )
