"""`plainformer run REF INPUT...`: a checkpoint does its task on texts, files or stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter

from plainformer.cli.options import STDIN, Json, LoadOptions, read_inputs, write_json
from plainformer.errors import UsageError


def run(
    ref: str,
    /,
    *inputs: str,
    chat: Annotated[bool, Parameter(negative="", help="Each input is a user's message in the model's chat format.")] = False,
    system: Annotated[str | None, Parameter(help="System message of a chat.")] = None,
    pair: Annotated[str | None, Parameter(help="Second text of each pair, for text classification.")] = None,
    question: Annotated[str | None, Parameter(help="Question; each input is a context to find the answer in.")] = None,
    choice: Annotated[list[str] | None, Parameter(help="A choice of a multiple-choice question; repeat it.")] = None,
    max_new_tokens: Annotated[int | None, Parameter(help="At most so many new tokens.")] = None,
    top_k: Annotated[int | None, Parameter(help="So many candidates or answers.")] = None,
    pooling: Annotated[str | None, Parameter(help="Pooling of a text's vector: mean, cls or last.")] = None,
    truncate: Annotated[bool, Parameter(negative="", help="Cut over-long inputs instead of refusing them.")] = False,
    whole: Annotated[bool, Parameter(negative="", help="A text file is one input, not one a line.")] = False,
    literal: Annotated[bool, Parameter(negative="", help="Take every INPUT as text, even if a file has that name.")] = False,
    load: LoadOptions = LoadOptions(),  # noqa: B008
    json: Json = False,
) -> None:
    """Run a checkpoint on inputs.

    REF is a local folder, a .gguf file, a bundled name or a Hub id. INPUT is text, "-" for stdin, or a file: text files
    give one input a line, .jsonl files one JSON value a line; for images and audio it is the file itself.
    """
    if not inputs:
        raise UsageError("run needs at least one INPUT", 'give text, a file, or "-" for stdin')
    task = load.load(ref)
    options = {"max_new_tokens": max_new_tokens, "top_k": top_k, "pooling": pooling, "truncate": truncate or None}
    given = {name: value for name, value in options.items() if value is not None}
    items = _items(task, inputs, whole=whole, literal=literal)
    wrapped = _wrap(task.name, items, chat=chat, system=system, pair=pair, question=question, choice=choice)
    results = task(wrapped, **given)
    if json:
        write_json(as_plain(result) for result in results)
        return
    for result in results:
        print(as_text(result), flush=True)


def _items(task: Any, inputs: tuple[str, ...], *, whole: bool, literal: bool) -> Iterator[Any]:
    if task.name.startswith(("image", "audio", "automatic")):
        for flag, on in (("--whole", whole), ("--literal", literal)):
            if on:
                raise UsageError(f"{flag} has no effect in {task.name}: an INPUT is a file there", "leave it out")
        return (sys.stdin.buffer.read() if value == STDIN else value for value in inputs)
    return read_inputs(inputs, whole=whole, literal=literal)


def _wrap(name: str, items: Iterator[Any], **flags: Any) -> Iterator[Any]:
    """Each input in the form that the task takes; a flag of another task is an error."""
    belongs = {
        "chat": "text-generation",
        "system": "text-generation",
        "pair": "text-classification",
        "question": "question-answering",
        "choice": "multiple-choice",
    }
    for flag, value in flags.items():
        if value and belongs[flag] != name:
            raise UsageError(f"--{flag} has no effect in {name}", f"it belongs to {belongs[flag]}")
    if flags["system"] and not flags["chat"]:
        raise UsageError("--system has no effect without --chat", "add --chat")
    if name == "question-answering" and not flags["question"]:
        raise UsageError("question-answering needs --question", "each INPUT is a context")
    if flags["chat"]:
        first = [{"role": "system", "content": flags["system"]}] if flags["system"] else []
        return ([*first, {"role": "user", "content": item}] for item in items)
    if flags["pair"] is not None:
        return ((item, flags["pair"]) for item in items)
    if flags["question"]:
        return ((flags["question"], item) for item in items)
    if flags["choice"]:
        return ((item, flags["choice"]) for item in items)
    return items


def as_plain(result: Any) -> Any:
    """A result for JSON."""
    if isinstance(result, tuple | list):
        return [as_plain(part) for part in result]
    return result.to_dict() if hasattr(result, "to_dict") else result


def as_text(result: Any) -> str:
    """A result for people: the answer first."""
    if isinstance(result, tuple | list):
        return "\n".join(as_text(part) for part in result)
    for shape in _SHAPES:
        if all(hasattr(result, name) for name in shape[0]):
            return shape[1](result)
    return str(as_plain(result))


def _candidates(result: Any) -> str:
    return "\n".join(f"{c.score:.4f}  {c.token}  {c.text}" for c in result.candidates)


# How results of each shape read, tried in order.
_SHAPES: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("candidates",), _candidates),
    (("label", "start", "end"), lambda r: f"{r.label}  {r.score:.4f}  {r.text!r} [{r.start}:{r.end}]"),
    (("text", "score", "start", "end"), lambda r: f"{r.text}  {r.score:.4f}  [{r.start}:{r.end}]"),
    (("label", "scores"), lambda r: f"{r.label}  {r.score:.4f}"),
    (("index", "text", "scores"), lambda r: f"{r.text}  {r.score:.4f}"),
    (("vector",), lambda r: " ".join(f"{v:.5f}" for v in r.vector.tolist())),
    (("text",), lambda r: r.text),
)
