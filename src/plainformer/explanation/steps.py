"""Record, step by step, what a task generates for an input; and run a recording again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from plainformer.config.values import check_whole
from plainformer.errors import opt
from plainformer.explanation.request import Request, check_generates
from plainformer.explanation.trace import Replayed, record, replay
from plainformer.explanation.trace_format import Trace
from plainformer.generation.result import Generation
from plainformer.tasks.base import Task
from plainformer.tasks.writing.prepared import Prepared


@dataclass(frozen=True)
class ExplainedSteps:
    """`trace`: every step; `tokens`: the text of every token in it; `texts`: of the answers."""

    ref: str
    task: str
    trace: Trace
    tokens: dict[int, str]
    texts: tuple[str, ...]

    def __repr__(self) -> str:
        return f"ExplainedSteps({self.ref!r}, {self.trace!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return the trace, with the rest in its `about`."""
        about = {**self.trace.about, "ref": self.ref, "task": self.task, "texts": list(self.texts)}
        about["tokens"] = {str(token_id): text for token_id, text in self.tokens.items()}
        return replace(self.trace, about=about).to_dict()


@torch.inference_mode()
def explain_steps(
    task: Task, request: Request, *, steps: int, width: int = 5, about: Mapping[str, Any] | None = None
) -> ExplainedSteps:
    """Generate, and record every step.

    Args:
        steps: how many tokens are generated, unless an option says.
        width: how many tokens of each step are kept. about: plain values to keep with the trace.
    """
    check_generates(task, opt("steps"))
    check_whole("steps", steps, fix="give the number of tokens to generate, 1 or more")
    if not {"max_new_tokens", "max_length"} & set(request.options):
        request = request.with_options(max_new_tokens=steps)
    prepared = request.prepared(task)
    found = record(task.model, width=width, about=about, **prepared.inputs, options=prepared.options)
    texts = answer_texts(task, prepared, found.generation)
    return ExplainedSteps(task.ref, task.name, found.trace, _tokens(task, found.trace), texts)


def replay_steps(task: Task, trace: Trace, request: Request | None) -> Replayed:
    """Run a trace again.

    Args:
        request: what it was made from, where the trace needs more than it holds (a grammar, audio).
    Raises:
        ReplayError: the replay differs from the trace.
    """
    check_generates(task, "a replay")
    needed: dict[str, Any] = {}
    if trace.needs and request is not None:
        prepared = request.prepared(task)
        given = {**{name: getattr(prepared.options, name) for name in prepared.options.given}, **prepared.inputs}
        needed = {name: given[name] for name in trace.needs if name in given}
    return replay(task.model, trace, **needed)


def answer_texts(task: Task, prepared: Prepared, generation: Generation) -> tuple[str, ...]:
    """Return the answers' texts, forced beginnings included."""
    return tuple(prepared.text(task.tokenizer, ids[prepared.uncounted :]) for ids in generation.token_ids)


def token_text(task: Task, token_id: int) -> str:
    """Return the text of one token alone, or its name where it writes nothing."""
    text = task.tokenizer.decode(task.tokenizer.known([token_id]))
    if text and "\N{REPLACEMENT CHARACTER}" not in text:
        return text
    return str(task.tokenizer.id_to_token(token_id) or text or f"<{token_id}>")


def _tokens(task: Task, trace: Trace) -> dict[int, str]:
    ids = {*trace.prompt_ids, *(i for answer in trace.answers for i in answer.token_ids)}
    for step in trace.steps:
        ids.update(i for ladder in step.ladders for i in ladder.top_ids)
        ids.update(token.token_id for ladder in step.ladders for token in ladder.final)
        ids.update(pick.token_id for pick in step.picks)
        ids.update(branch.token_id for group in step.groups for branch in group.branches)
    return {i: token_text(task, i) for i in sorted(ids)}
