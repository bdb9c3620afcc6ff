"""`plainformer run REF INPUT...`: a checkpoint does its task on texts, files or stdin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from cyclopts import Parameter

from plainformer.cli.generation import GenerationFlags
from plainformer.cli.options import STDIN, Json, LoadOptions, read_inputs, read_stdin, restored, write_json
from plainformer.cli.task_flags import TaskFlags
from plainformer.errors import UsageError

# Which tasks an option belongs to.
_BELONGS = {
    "chat": ("text-generation",),
    "system": ("text-generation",),
    "pair": ("text-classification",),
    "question": ("question-answering", "abstractive-question-answering"),
    "choice": ("multiple-choice",),
    "query": ("text-ranking",),
}
# What a text alone is not enough for, and the form of a line of JSON.
_NEEDED = {
    "question-answering": ("question", '{"question": ..., "context": ...}'),
    "abstractive-question-answering": ("question", '{"question": ..., "context": ...}'),
    "multiple-choice": ("choice", '{"prompt": ..., "choices": [...]}'),
    "text-ranking": ("query", '{"query": ..., "documents": [...]}'),
}


def run(
    ref: str,
    /,
    *inputs: str,
    chat: Annotated[bool, Parameter(negative="", help="Each input is a user's message in a chat.")] = False,
    system: Annotated[str | None, Parameter(help="System message of a chat.")] = None,
    pair: Annotated[str | None, Parameter(help="Second text of each pair, for text classification.")] = None,
    question: Annotated[str | None, Parameter(help="Question; each input is a context to find the answer in.")] = None,
    choice: Annotated[list[str] | None, Parameter(help="A choice of a multiple-choice question; repeat it.")] = None,
    query: Annotated[str | None, Parameter(help="Query; the inputs are the documents to rank.")] = None,
    whole: Annotated[bool, Parameter(negative="", help="A text file is one input, not one a line.")] = False,
    literal: Annotated[bool, Parameter(negative="", help="Every INPUT is text, even if a file has that name.")] = False,
    batch_size: Annotated[int, Parameter(help="Inputs that run at once; with 1, each is answered as it is read.")] = 8,
    load: LoadOptions = LoadOptions(),  # noqa: B008
    flags: TaskFlags = TaskFlags(),  # noqa: B008
    generation: GenerationFlags = GenerationFlags(),  # noqa: B008
    json: Json = False,
) -> None:
    """Run a checkpoint on inputs.

    REF is a local folder, a .gguf file, a bundled name or a Hub id. INPUT is text, "-" for stdin, or a file: text files
    give one input a line, .jsonl files one JSON value a line; for images and audio it is the file itself.
    """
    if not inputs:
        raise UsageError("run needs at least one INPUT", 'give text, a file, or "-" for stdin')
    task = load.load(ref)
    _check_options(task, {name: flags.option_of(name) for name in flags.given()})
    _check_options(task, {name: name for name in generation.given()})
    given = {**flags.options(), **generation.options()}
    items = _items(task, inputs, whole=whole, literal=literal)
    choices = [restored(one) for one in choice] if choice else None
    wrapped = _wrap(
        task.name,
        items,
        chat=chat or None,
        system=restored(system),
        pair=restored(pair),
        question=restored(question),
        choice=choices,
        query=restored(query),
    )
    results = task(wrapped, batch_size=batch_size, **given)
    if json:
        write_json(as_plain(result) for result in results)
        return
    for result in results:
        print(as_text(result), flush=True)


def _check_options(task: Any, given: Mapping[str, str]) -> None:
    """An error for a flag (→ the task's option) that the task does not take."""
    known = task.options()
    for flag, name in given.items():
        if name not in known:
            raise UsageError(f"--{flag.replace('_', '-')} has no effect in {task.name}", "leave it out")


def _items(task: Any, inputs: tuple[str, ...], *, whole: bool, literal: bool) -> Iterator[Any]:
    if task.name.startswith(("image", "audio", "automatic")):
        for flag, on in (("--whole", whole), ("--literal", literal)):
            if on:
                raise UsageError(f"{flag} has no effect in {task.name}: an INPUT is a file there", "leave it out")
        return (read_stdin() if value == STDIN else value for value in inputs)
    return read_inputs(inputs, whole=whole, literal=literal)


def _wrap(name: str, items: Iterator[Any], **flags: Any) -> Iterator[Any]:
    """Each input in the form that the task takes; a flag of another task is an error."""
    given = {flag: value for flag, value in flags.items() if value is not None}
    for flag in given:
        if name not in _BELONGS[flag]:
            raise UsageError(f"--{flag} has no effect in {name}", f"it belongs to {' and '.join(_BELONGS[flag])}")
    if "system" in given and "chat" not in given:
        raise UsageError("--system has no effect without --chat", "add --chat")
    if "chat" in given:
        first = [{"role": "system", "content": given["system"]}] if "system" in given else []
        return ([*first, {"role": "user", "content": text}] for text in _texts(items, "chat"))
    if "pair" in given:
        return ((text, given["pair"]) for text in _texts(items, "pair"))
    if "question" in given:
        return ((given["question"], text) for text in _texts(items, "question"))
    if "choice" in given:
        return ((text, given["choice"]) for text in _texts(items, "choice"))
    if "query" in given:
        return iter([(given["query"], list(_texts(items, "query")))])
    return _complete(items, name, *_NEEDED[name]) if name in _NEEDED else items


def _texts(items: Iterator[Any], flag: str) -> Iterator[str]:
    """Inputs that a flag completes: each must be a text alone."""
    for item in items:
        if not isinstance(item, str):
            raise UsageError(f"--{flag} has no effect on {str(item)[:60]!r}, which is more than a text", "leave it out")
        yield item


def _complete(items: Iterator[Any], name: str, needed: str, keys: str) -> Iterator[Any]:
    """Inputs of a task that takes more than a text, when no flag completes them."""
    for item in items:
        if isinstance(item, str):
            raise UsageError(f"{name} needs --{needed}", f"or a .jsonl file with {keys} a line")
        yield item


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


def _span(span: Any) -> str:
    return f"{span.text}  {span.score:.4f}  [{span.start}:{span.end}]"


def _answers(result: Any) -> str:
    """One answer as it is; of several, each behind its number."""
    if not result.alternatives:
        return str(result.text)
    answers = (result, *result.alternatives)
    scores = (f" ({answer.score:.4f})" if answer.score is not None else "" for answer in answers)
    return "\n".join(f"[{n}]{score} {a.text}" for n, (a, score) in enumerate(zip(answers, scores, strict=True), 1))


def _transcript(result: Any) -> str:
    if result.segments is None:
        return _answers(result)
    ends = ("" if part.end is None else f"{part.end:.2f}" for part in result.segments)
    return "\n".join(f"[{p.start:.2f} - {end}] {p.text}" for p, end in zip(result.segments, ends, strict=True))


# How results of each shape read, tried in order.
_SHAPES: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("candidates",), _candidates),
    (("label", "start", "end"), lambda r: f"{r.label}  {r.score:.4f}  {r.text!r} [{r.start}:{r.end}]"),
    (("alternatives", "start"), lambda r: "\n".join(_span(span) for span in (r, *r.alternatives))),
    (("query", "documents"), lambda r: "\n".join(f"{d.score:.4f}  [{d.index}]  {d.text}" for d in r.documents)),
    (("segments",), _transcript),
    (("stop_reason", "alternatives"), _answers),
    (("label", "scores"), lambda r: f"{r.label}  {r.score:.4f}"),
    (("index", "text", "scores"), lambda r: f"{r.text}  {r.score:.4f}"),
    (("vector",), lambda r: " ".join(f"{v:.5f}" for v in r.vector.tolist())),
    (("text",), lambda r: r.text),
)
