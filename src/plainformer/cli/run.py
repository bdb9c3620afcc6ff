"""`plainformer run REF INPUT...`: a checkpoint does its task on texts, files or stdin."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from plainformer.cli import inputs as reader
from plainformer.cli.default_model import DEFAULT, OPTIONS, with_model
from plainformer.cli.flags import Flags, LoadFlags, as_flag
from plainformer.cli.inputs import IMAGES, SOUNDS, Item, Reading
from plainformer.cli.options import Json, Ref, passed_over, restored, some_skipped
from plainformer.cli.progress import Count, screen, typing_hidden
from plainformer.cli.rows import CsvRows, JsonRows, PlainRows, Rows, for_people
from plainformer.cli.several import meet
from plainformer.config.values import no_effect
from plainformer.errors import PlainformerError, UsageError, opt
from plainformer.tasks import TASKS, option_classes

if TYPE_CHECKING:
    from plainformer.parallel.mesh import Mesh


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
    field: Annotated[str | None, Parameter(help="Field (JSON) or column (CSV) that holds the input.")] = None,
    load: LoadFlags = LoadFlags(),  # noqa: B008
    flags: TaskFlags = TaskFlags(),  # noqa: B008
    json: Json = False,
    csv: Annotated[bool, Parameter(negative="", help="A table on stdout: one row for each answer.")] = False,
) -> None:
    r"""Run a checkpoint on inputs.

    An input is a text, "-" for stdin, a file or a folder of files: text files give
    one input per line, .jsonl files one JSON value per line, .csv and .tsv files
    one row; for images and audio it is the file itself.

    A text alone, with white space in it, is code: the bundled model
    code-completion goes on with it: plainformer run "import pandas as pd\ndf = "

    Example: plainformer run smollm2-135m-instruct "The capital of France is" --max-new-tokens 8
    """
    named = ref
    ref, inputs = with_model(ref, inputs)
    if not inputs:
        fix = f'give text, a file, or "-" for stdin after the model; code without blanks needs it, too: run {DEFAULT} CODE'
        raise UsageError("run needs at least one INPUT", fix)
    no_effect(json and csv, "csv", f"with {opt('json')}", "leave one of them out")
    reader.check_paths(inputs, literal=literal)
    ranks = meet(load, inputs)
    asked: dict[str, Any] = {} if ref == named else dict(OPTIONS)
    task = load.load(ref, lambda kind, name, config: asked.update(flags.checked(kind.Options, name)))
    options = task.make_options(asked)
    texts = {"system": system, "pair": pair, "question": question, "query": query}
    forms: dict[str, Any] = {name: restored(value) for name, value in texts.items() if value is not None}
    forms |= {"chat": True} if chat else {}
    forms |= {"choice": [restored(one) for one in choice]} if choice else {}
    keys = () if forms else tuple(re.findall(r'"(\w+)":', TASKS[task.name].form))
    reading = Reading(whole, literal, restored(field), keys)
    other: list[Path] = []  # files of folders, of kinds that the task does not read
    items = _wrap(task.name, _items(task, inputs, reading, other), forms)
    if reader.is_one_text(inputs, reading) and not (_media(task) or json or csv) and _streams(task, options):
        _stream(task, next(items), options)
        return
    total = (None if _media(task) else reader.count(inputs, reading)) if screen.shows else None
    answering = Answering(task, options, total, ranks)
    answering.run(items, JsonRows if json else CsvRows if csv else None)
    if not (answering.read or json or csv):
        screen.say("nothing to answer: there is no text in the input")
    if other:
        screen.say(passed_over(other, "of another kind"))


def _media(task: Any) -> tuple[str, ...]:
    """Return the endings of the files that a task reads; none for tasks that read text."""
    kinds = {"image": IMAGES, "audio": SOUNDS, "automatic": SOUNDS}
    return kinds.get(task.name.partition("-")[0], ())


def _items(task: Any, inputs: Sequence[str], reading: Reading, other: list[Path]) -> Iterator[Item]:
    if media := _media(task):
        for flag in ("whole", "literal", "field"):
            on = bool(getattr(reading, flag))
            no_effect(on, flag, f"in {task.name}: an INPUT is a file there")
        return reader.read_media(inputs, media, other)
    reader.check_reading(inputs, reading)
    return reader.read_texts(inputs, reading, other)


# ---- one text, as it is written -----------------------------------------------------------------------------------------


def _streams(task: Any, options: Any) -> bool:
    """Whether the task writes one text, which can be shown while it is written."""
    several = getattr(options, "num_return_sequences", 1) > 1 or getattr(options, "num_alternatives", 1) > 1
    return hasattr(task, "streamed") and not several and options.on_error == "stop"


def _stream(task: Any, item: Item, options: Any) -> None:
    if item.problem is not None:
        raise item.problem
    with typing_hidden():
        with screen.during("writing"):
            pieces = task.streamed(item.value, options)
            # A first step compiles kernels, and says so below: nothing is written until it is done.
            first = list(islice(pieces, 3 if getattr(options, "answer_prefix", "") else 2))
        for piece in chain(first, pieces):
            screen.write(for_people(piece), end="")
        screen.write("")


# ---- many inputs --------------------------------------------------------------------------------------------------------


class Answering:
    """A task on a stream of inputs: answers in their order, as they come, and what became of those without one."""

    def __init__(self, task: Any, options: Any, total: int | None, ranks: Mesh | None = None) -> None:
        self.task, self.options, self.ranks = task, options, ranks
        self.count = Count(total)
        self.waiting: deque[Item] = deque()  # read, and not answered yet
        self.read = self.answered = self.skipped = 0
        self.ended = False

    def run(self, items: Iterator[Item], kind: Callable[[], Rows] | None) -> None:
        """Answer all, and write the answers.

        Raises:
            PlainformerError: an input cannot be answered, with its place; or some were skipped, at the end.
        """
        rows = PlainRows(self.task.name, self._several) if kind is None else kind()
        with screen.during(self.count):
            try:
                for result in self._answers(self._values(items)):
                    self._put(result, rows)
            except PlainformerError as error:
                raise self._placed(error) from error.__cause__
            self._without_answer(rows)
            rows.end()
        if self.skipped:
            raise some_skipped(self.skipped, self.read, "inputs")

    def _answers(self, values: Iterator[Any]) -> Iterator[Any]:
        """Yield the answers in order; copies of the model on several processes share the inputs."""
        if self.ranks is None:
            yield from self.task.answer(values, self.options, done=self.count.advance)
            return
        from plainformer.parallel.inference import answered_in_turn

        answer = partial(self.task.answer, options=self.options)
        for result in answered_in_turn(self.ranks, values, answer, self.options.batch_size):
            self.count.advance(1)
            yield result

    def _values(self, items: Iterator[Item]) -> Iterator[Any]:
        for item in items:
            if item.problem is not None and self.options.on_error == "stop":
                raise item.problem
            self.waiting.append(item)
            self.read += not item.blank
            if item.value is not None:
                yield item.value
        self.ended = True

    def _several(self) -> bool:
        """Whether there is more than one input; where that is not known yet, there may be."""
        return self.read > 1 or not self.ended

    def _put(self, result: Any, rows: Rows) -> None:
        from plainformer.tasks.results import Skipped

        self._without_answer(rows)
        item = self.waiting.popleft()
        self.answered += 1
        if isinstance(result, Skipped):
            self._skip(item, result.error, rows)
        else:
            rows.write(item, result)

    def _without_answer(self, rows: Rows) -> None:
        """Write of the next inputs those that were not given to the task."""
        while self.waiting and self.waiting[0].value is None:
            item = self.waiting.popleft()
            if item.problem is not None:
                self._skip(item, item.problem, rows)
            else:
                rows.skip(item, "a blank line")

    def _skip(self, item: Item, error: PlainformerError, rows: Rows) -> None:
        self.skipped += 1
        reason = error.named(lambda place: item.place).reason(as_flag)
        screen.say(f"skipped: {reason}" if item.place in reason else f"skipped {item.place}: {reason}")
        rows.skip(item, reason)

    def _placed(self, error: PlainformerError) -> PlainformerError:
        """The error with the place of the input that it names."""
        left = [item for item in self.waiting if item.value is not None]

        def name(place: int) -> str:
            index = place - self.answered
            return left[index].place if 0 <= index < len(left) else f"input {place + 1}"

        several = self.read > 1 and error.place is not None
        return error.named(name).advised(f"{opt('on_error', 'skip')} goes on without it" if several else "")


# ---- what the task gets -------------------------------------------------------------------------------------------------


def _wrap(name: str, items: Iterator[Item], given: dict[str, Any]) -> Iterator[Item]:
    """Return each input in the form that the task takes; a flag of another task is an error."""
    info = TASKS[name]
    for flag in given:
        owners = " and ".join(task.name for task in TASKS.values() if flag in task.flags)
        no_effect(flag not in info.flags, flag, f"in {name}", f"it belongs to {owners}")
    no_effect("system" in given and "chat" not in given, "system", f"without {opt('chat')}", f"add {opt('chat')}")
    if "chat" in given:
        first = [{"role": "system", "content": given["system"]}] if "system" in given else []
        return _completed(items, "chat", lambda text: [*first, {"role": "user", "content": text}])
    if "pair" in given:
        return _completed(items, "pair", lambda text: (text, given["pair"]))
    if "question" in given:
        return _completed(items, "question", lambda text: (given["question"], text))
    if "choice" in given:
        return _completed(items, "choice", lambda text: (text, given["choice"]))
    if "query" in given:
        return _of_query(given["query"], _completed(items, "query", lambda text: text))
    return _whole(items, name) if info.form else items


def _completed(items: Iterator[Item], flag: str, complete: Callable[[str], Any]) -> Iterator[Item]:
    """Yield inputs that a flag completes: each must be a text alone."""
    for item in items:
        text = item.value
        no_effect(not isinstance(text, str | None), flag, f"on {str(text)[:60]!r}, which is more than a text")
        yield item if text is None else replace(item, value=complete(text))


def _of_query(query: str, items: Iterator[Item]) -> Iterator[Item]:
    """Yield the one input of a query: all documents."""
    texts = []
    for item in items:
        if item.problem is not None:
            raise item.problem
        texts += [] if item.blank else [item.value]
    yield Item((query, texts), "the query")


def _whole(items: Iterator[Item], name: str) -> Iterator[Item]:
    """Yield inputs of a task that takes more than a text, when no flag completes them."""
    for item in items:
        if isinstance(item.value, str):
            info = TASKS[name]
            raise UsageError(f"{name} needs {opt(info.flags[0])}", f"or a .jsonl file with one {info.form} per line")
        yield item
