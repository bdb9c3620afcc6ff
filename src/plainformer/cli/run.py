"""`plainformer run REF INPUT...`: a checkpoint does its task on texts, files or stdin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter

from plainformer.cli import STDIN
from plainformer.cli.flags import Flags, LoadFlags
from plainformer.cli.options import Json, Ref, read_inputs, read_stdin, restored, write_json
from plainformer.config.values import no_effect
from plainformer.errors import UsageError, opt
from plainformer.tasks import TASKS, option_classes


class TaskFlags(Flags, kinds=option_classes(), group="What a task does"):
    """The options of every task."""


def run(
    ref: Ref,
    /,
    *inputs: Annotated[str, Parameter(help="Texts, files, or - for stdin.")],
    chat: Annotated[bool, Parameter(negative="", help="Each input is a user's message in a chat.")] = False,
    system: Annotated[str | None, Parameter(help="System message of a chat.")] = None,
    pair: Annotated[str | None, Parameter(help="Second text of each pair, for text classification.")] = None,
    question: Annotated[str | None, Parameter(help="Question; each input is a context to find the answer in.")] = None,
    choice: Annotated[list[str] | None, Parameter(help="A choice of a multiple-choice question; repeat it.")] = None,
    query: Annotated[str | None, Parameter(help="Query; the inputs are the documents to rank.")] = None,
    whole: Annotated[bool, Parameter(negative="", help="A text file is one input, not one per line.")] = False,
    literal: Annotated[bool, Parameter(negative="", help="Every INPUT is text, even if a file has that name.")] = False,
    load: LoadFlags = LoadFlags(),  # noqa: B008
    flags: TaskFlags = TaskFlags(),  # noqa: B008
    json: Json = False,
) -> None:
    """Run a checkpoint on inputs.

    An input is a text, "-" for stdin, or a file: text files give one input per line, .jsonl files one JSON value per line;
    for images and audio it is the file itself.

    Example: plainformer run smollm2-135m-instruct "The capital of France is" --max-new-tokens 8
    """
    if not inputs:
        raise UsageError("run needs at least one INPUT", 'give text, a file, or "-" for stdin')
    asked: dict[str, Any] = {}
    task = load.load(ref, lambda kind, name, config: asked.update(flags.checked(kind.Options, name)))
    options = task.make_options(asked)
    items = _items(task, inputs, whole=whole, literal=literal)
    texts = {"system": system, "pair": pair, "question": question, "query": query}
    forms: dict[str, Any] = {name: restored(value) for name, value in texts.items() if value is not None}
    forms |= {"chat": True} if chat else {}
    forms |= {"choice": [restored(one) for one in choice]} if choice else {}
    results = task.answer(_wrap(task.name, items, forms), options)
    if json:
        write_json(as_plain(result) for result in results)
        return
    for result in results:
        print("\n".join(_lines(result)), flush=True)


def _items(task: Any, inputs: tuple[str, ...], *, whole: bool, literal: bool) -> Iterator[Any]:
    if task.name.startswith(("image", "audio", "automatic")):
        for flag, on in (("whole", whole), ("literal", literal)):
            no_effect(on, flag, f"in {task.name}: an INPUT is a file there")
        return (read_stdin() if value == STDIN else value for value in inputs)
    return read_inputs(inputs, whole=whole, literal=literal)


def _wrap(name: str, items: Iterator[Any], given: dict[str, Any]) -> Iterator[Any]:
    """Return each input in the form that the task takes; a flag of another task is an error."""
    info = TASKS[name]
    for flag in given:
        owners = " and ".join(task.name for task in TASKS.values() if flag in task.flags)
        no_effect(flag not in info.flags, flag, f"in {name}", f"it belongs to {owners}")
    no_effect("system" in given and "chat" not in given, "system", f"without {opt('chat')}", f"add {opt('chat')}")
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
    return _complete(items, name) if info.form else items


def _texts(items: Iterator[Any], flag: str) -> Iterator[str]:
    """Yield inputs that a flag completes: each must be a text alone."""
    for item in items:
        no_effect(not isinstance(item, str), flag, f"on {str(item)[:60]!r}, which is more than a text")
        yield item


def _complete(items: Iterator[Any], name: str) -> Iterator[Any]:
    """Yield inputs of a task that takes more than a text, when no flag completes them."""
    for item in items:
        if isinstance(item, str):
            info = TASKS[name]
            raise UsageError(f"{name} needs {opt(info.flags[0])}", f"or a .jsonl file with one {info.form} per line")
        yield item


def as_plain(result: Any) -> Any:
    """Return a result for JSON."""
    if isinstance(result, tuple | list):
        return [as_plain(part) for part in result]
    return result.to_dict() if hasattr(result, "to_dict") else result


def _lines(result: Any) -> list[str]:
    """Return a result for people: the answer first."""
    if isinstance(result, tuple | list):
        return [line for part in result for line in _lines(part)]
    return list(result.lines())
