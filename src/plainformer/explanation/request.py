"""Requests for an explanation: an input of a task, and the options of its call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from plainformer.config.values import check_flag, no_effect
from plainformer.errors import UsageError, did_you_mean
from plainformer.tasks.base import Task
from plainformer.tasks.writing.base import GeneratingTask
from plainformer.tasks.writing.options import READ
from plainformer.tasks.writing.prepared import Prepared

GENERATING = ("causal_lm", "seq2seq_lm")


@dataclass(frozen=True)
class Request:
    """An input and options, as a task takes them.

    Attributes:
        item: the input. chat: whether it is a user's message, to be put into the model's chat format.
        truncate: cut an over-long input instead of refusing it. options: of the call, by name.
    """

    item: Any
    chat: bool = False
    truncate: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_flag("chat", self.chat)
        check_flag("truncate", self.truncate)

    def with_options(self, **changes: Any) -> Request:
        """Return the same with some options changed; None removes one."""
        options = {name: value for name, value in {**self.options, **changes}.items() if value is not None}
        return replace(self, options=options)

    @property
    def call(self) -> dict[str, Any]:
        """The options of a call of the task, `truncate` among them."""
        return {**self.options, **({"truncate": True} if self.truncate else {})}

    def prepared(self, task: Task) -> Prepared:
        """Return what the task's own call would give to `generate`.

        Raises:
            UsageError: the task does not generate, or an option is not one of its own.
        """
        generating = check_generates(task, "an option of generation")
        no_effect(self.chat and task.config.head.kind != "causal_lm", "chat", f"in {task.name}")
        item = [{"role": "user", "content": self.item}] if self.chat else self.item
        return generating.prepare(item, **self.call)


def check_read(task: Task, options: Mapping[str, Any]) -> None:
    """Refuse options of a call that do not change what the model reads."""
    known = task.options()
    for name in options:
        if name not in known:
            raise UsageError(
                f"{task.name} has no option {name!r}", did_you_mean(name, [one for one in READ if one in known])
            )
        idle = name not in READ or task.config.head.kind not in GENERATING
        no_effect(idle, name, "in one pass", "explain_steps shows what it does")


def plain_answer(result: Any) -> Any:
    """Return a task's result as plain values: a dict, or a list of dicts."""
    return [part.to_dict() for part in result] if isinstance(result, tuple | list) else result.to_dict()


def check_generates(task: Task, what: str) -> GeneratingTask:
    """Return the task if it generates; otherwise raise an error that says `what` has no effect."""
    if task.config.head.kind not in GENERATING or not isinstance(task, GeneratingTask):
        raise UsageError(
            f"{what} has no effect in {task.name}: this model answers in one pass, and generates no tokens step by step",
            "leave it out, or take a model that generates text",
        )
    return task
