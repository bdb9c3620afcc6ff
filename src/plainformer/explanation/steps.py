"""How a text is generated, step by step: what a task would generate for an input, recorded; and its recording run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from plainformer.errors import InputError, UsageError
from plainformer.explanation.one_pass import signal_inputs
from plainformer.explanation.trace import Replayed, Trace, record, replay
from plainformer.generation.result import Generation
from plainformer.tasks.base import Task
from plainformer.tasks.speech.whisper import SpeechRecognition
from plainformer.tasks.writing.base import GeneratingTask
from plainformer.tasks.writing.detokenize import continuation
from plainformer.tasks.writing.text2text import Text2TextGeneration
from plainformer.tasks.writing.text_generation import TextGeneration


@dataclass(frozen=True)
class Request:
    """An input and options, as a task takes them; `options` are those in words, as a call or the command line gives them."""

    item: Any
    chat: bool = False
    truncate: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, **changes: Any) -> Request:
        """The same with some options changed; None takes one away."""
        options = {name: value for name, value in {**self.options, **changes}.items() if value is not None}
        return replace(self, options=options)


@dataclass(frozen=True)
class Prepared:
    """The arguments of `generate`, and what the answer begins with.

    Attributes:
        before: ids in front of the answer. begun: ids that the answer is made to begin with; `lead`: text in front of it
            that has no tokens of its own.
    """

    arguments: dict[str, Any]
    before: tuple[int, ...]
    begun: tuple[int, ...] = ()
    lead: str = ""


@dataclass(frozen=True)
class ExplainedSteps:
    """`trace` as of `generate.trace`; `tokens`: the text of every token in it; `texts`: of the answers."""

    ref: str
    task: str
    trace: Trace
    tokens: dict[int, str]
    texts: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The trace, with the rest in its `about`."""
        about = {**self.trace.about, "ref": self.ref, "task": self.task, "texts": list(self.texts)}
        about["tokens"] = {str(token_id): text for token_id, text in self.tokens.items()}
        return replace(self.trace, about=about).to_dict()


def check_generates(task: Task, what: str) -> GeneratingTask:
    """The task, if it generates."""
    kind = task.config.head.kind
    if kind not in ("causal_lm", "seq2seq_lm") or not isinstance(task, GeneratingTask):
        raise UsageError(
            f"{what} has no effect in {task.name}: this model answers in one pass, and generates no tokens step by step",
            "leave it out, or take a model that generates text",
        )
    return task


@torch.inference_mode()
def prepare(task: Task, request: Request) -> Prepared:
    """What the task's own call would give to `generate`.

    Raises:
        UsageError: the task does not generate, or an option is not one of its own.
    """
    generating = check_generates(task, "a generation's option")
    generating._check(dict(request.options))
    given = dict(request.options)
    if isinstance(generating, SpeechRecognition):
        return _speech(generating, request, given)
    if not isinstance(request.item, str):
        raise InputError(f"a {type(request.item).__name__} is not a text", "give a str")
    if isinstance(generating, TextGeneration):
        item = [{"role": "user", "content": request.item}] if request.chat else request.item
        prefix = given.pop("answer_prefix", "")
        batch = generating.encode([item], truncate=request.truncate, answer_prefix=prefix)
        arguments = generating._inputs(batch, given)
        before = tuple(arguments["input_ids"][0].tolist())
        prompt = tuple(generating.encode([item], truncate=request.truncate).encodings[0].input_ids)
        if not prefix or before[: len(prompt)] != prompt:  # the prompt's last token and the prefix's first may be one
            return Prepared(arguments, before, (), prefix)
        return Prepared(arguments, prompt, before[len(prompt) :])
    if not isinstance(generating, Text2TextGeneration):
        raise UsageError(
            f"{task.name} cannot be shown step by step: another task writes its answer",
            "leave out task=..., and give the prompt itself",
        )
    if request.chat:
        raise UsageError(f"chat has no effect in {task.name}", "leave it out")
    prefix = given.pop("decoder_prefix", "")
    batch = generating.encode([request.item], truncate=request.truncate)
    arguments, _ = generating._inputs(batch, prefix, given)
    first = tuple(arguments["decoder_input_ids"][0].tolist())
    start = len(generating.start_of(prefix)[0])
    return Prepared(arguments, first[:start], first[start:])


def _speech(task: SpeechRecognition, request: Request, given: dict[str, Any]) -> Prepared:
    if request.chat or request.truncate:
        raise UsageError("chat and truncate have no effect on audio", "leave them out")
    for name in ("timestamps", "language", "task"):
        if name in given:
            raise UsageError(f"{name} has no effect here", "leave it out: the steps are of the plain transcription")
    inputs = signal_inputs(task, request.item)
    heard = task._hear(task.model.encode(**inputs))[0] if task.prompt.must_listen(None) else None
    first = task.prompt.ids(None, None, heard)
    start = torch.tensor([first], device=task.model.device)
    arguments = {**inputs, "decoder_input_ids": start, **task.engine_options(given, bare=True)}
    return Prepared(arguments, tuple(first))


def explain_steps(
    task: Task, request: Request, *, steps: int, width: int = 5, about: Mapping[str, Any] | None = None
) -> ExplainedSteps:
    """Generate, and record every step.

    Args:
        steps: how many tokens are generated, where no option says.
        width: how many tokens of each step are kept. about: plain values to keep with the trace.
    """
    check_generates(task, "steps")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UsageError(f"steps={steps!r} is not a count of at least 1", "so many tokens are generated")
    if not {"max_new_tokens", "max_length"} & set(request.options):
        request = request.with_options(max_new_tokens=steps)
    prepared = prepare(task, request)
    found = record(task.model, width=width, about=about, **prepared.arguments)
    texts = answer_texts(task, prepared, found.generation)
    return ExplainedSteps(task.ref, task.name, found.trace, _tokens(task, found.trace), texts)


def replay_steps(task: Task, trace: Trace, request: Request | None) -> Replayed:
    """Run a trace again.

    Args:
        request: what it was made from, where the trace needs more than it holds (a grammar, audio).
    Raises:
        ReplayError: it goes another way.
    """
    check_generates(task, "a replay")
    needed: dict[str, Any] = {}
    if trace.needs and request is not None:
        arguments = prepare(task, request).arguments
        needed = {name: arguments[name] for name in trace.needs if name in arguments}
    return replay(task.model, trace, **needed)


def answer_texts(task: Task, prepared: Prepared, generation: Generation) -> tuple[str, ...]:
    """The answers, with what they were made to begin with."""
    before, begun = prepared.before, prepared.begun
    return tuple(prepared.lead + continuation(task.tokenizer, before, [*begun, *ids]) for ids in generation.token_ids)


def token_text(task: Task, token_id: int) -> str:
    """One token alone: its text, or its name where it writes nothing."""
    text = task.tokenizer.decode(task.tokenizer.known([token_id]))
    if text and "\N{REPLACEMENT CHARACTER}" not in text:
        return text
    return str(task.tokenizer.id_to_token(token_id) or text or f"<{token_id}>")


def _tokens(task: Task, trace: Trace) -> dict[int, str]:
    ids = {*trace.prompt_ids, *(i for answer in trace.answers for i in answer.token_ids)}
    for step in trace.steps:
        ids.update(i for ladder in step.ladders for i in ladder.top_ids)
        ids.update(c.token_id for ladder in step.ladders for c in ladder.final)
        ids.update(pick.token_id for pick in step.picks)
        ids.update(branch.token_id for group in step.groups for branch in group.branches)
    return {i: token_text(task, i) for i in sorted(ids)}
