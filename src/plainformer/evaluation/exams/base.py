"""What every exam shares: which columns it reads, what the task is asked, and what the scorer gets of its answer."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plainformer.errors import UsageError, did_you_mean
from plainformer.evaluate.base import Scorer
from plainformer.inputs.text.lengths import Limit
from plainformer.tasks.base import Task
from plainformer.tasks.lengths import max_length_of
from plainformer.tasks.options import TaskOptions
from plainformer.train.objectives.base import Column
from plainformer.train.objectives.base import Dropped as Dropped
from plainformer.train.objectives.labels import place_of

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig

SHORT = 200  # characters of an input that are kept for people


@dataclass(frozen=True)
class Question:
    """An example.

    Attributes:
        value: what the task gets. reference: what is right, for the scorer. said: the input for people.
        about: what else `Exam.answer` needs to read the task's answer.
    """

    value: Any
    reference: Any
    said: str
    about: Any = None


class Exam(ABC):
    """How a task is examined.

    Attributes:
        columns: what it reads of a row. unit: what people call the examples that intervals are drawn over, where nothing is
            said; unit_column: the column whose equal values are one, None: each row is.
        stated: what a report says of how answers are compared. task, options: the task, and its options in this exam.
        temperature: divides the logarithms of probabilities, where a classifier's are calibrated; 1: as they are.
    """

    columns: ClassVar[tuple[Column, ...]]
    unit: ClassVar[str] = "row"
    unit_column: ClassVar[str | None] = None
    stated: ClassVar[str] = ""
    calibrates: ClassVar[bool] = False

    def __init__(self, task: Task, options: Any, temperature: float = 1.0, run: TrainConfig | None = None) -> None:
        self.task, self.options, self.temperature, self.run = task, options, temperature, run

    @classmethod
    def options_class(cls, task: type[Task]) -> type[TaskOptions]:
        """Return the class of the options that a caller may give."""
        return task.Options

    @classmethod
    def usual(cls, run: TrainConfig | None, known: Iterable[str]) -> dict[str, Any]:
        """Return options that the exam or the run that is examined asks for, where the caller says nothing.

        `known`: the names of the task's options.
        """
        return {}

    @classmethod
    def look(cls, row: Mapping[str, Any], seen: dict[str, Any]) -> None:
        """See a row before any is answered, and note in `seen` what decides the options."""
        return None

    @classmethod
    def seen(cls, seen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that what was seen asks for."""
        return {}

    @abstractmethod
    def question(self, row: Mapping[str, Any]) -> Question:
        """Return a row as an example. Raises Dropped, UsageError."""

    def answers(self, values: Iterator[Any]) -> Iterator[Any]:
        """Yield the task's answer to each value, `Skipped` for those without one, in flat memory."""
        found: Iterator[Any] = self.task.answer(values, self.options)
        return found

    @abstractmethod
    def answer(self, question: Question, result: Any) -> Any:
        """Return what the scorer compares with the reference: plain values."""

    def reference(self, question: Question, result: Any) -> Any:
        """Return what is right, where the task's answer decides what of it is scored."""
        return question.reference

    def shown(self, question: Question, answer: Any) -> Mapping[str, Any]:
        """Return what else people are shown of an example: the words of tags, where in its context an answer is."""
        return {}

    @abstractmethod
    def scorer(self) -> Scorer:
        """Return the scorer."""

    def said(self, scorer: Scorer) -> str:
        """Return what a report says of how answers are compared; "" where that needs no words."""
        return self.stated

    def lost(self, question: Question) -> int:
        """Return how many tokens of an example are cut off; asked with `truncate` alone."""
        return 0

    def limit(self) -> Limit:
        """Return how many tokens an input is cut to, where the task reads texts."""
        asked = getattr(self.options, "max_length", None)
        return max_length_of(self.task.config, self.task.tokenizer, truncate=True, asked=asked)

    def over(self, *texts: str, **options: Any) -> int:
        """Return by how many tokens a text, or a pair, is longer than the limit."""
        limit = self.limit()
        if not isinstance(limit, int):
            return 0
        return max(0, len(self.task.tokenizer.encode(*texts, max_length=None, **options)) - limit)


def short(value: Any) -> str:
    """Return an input for people: its beginning."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHORT else text[:SHORT] + "…"


def label_of(name: str, labels: Sequence[str], numbers: Mapping[str, int]) -> str:
    """Return the label of the model that a row names, by its name or as a number. Raises UsageError."""
    try:
        return labels[place_of(name, numbers)]
    except UsageError as error:
        known = did_you_mean(name, labels) or f"it has {', '.join(labels[:12])}{' ...' if len(labels) > 12 else ''}"
        raise UsageError(
            error.what, f"{known.rstrip('?')}{', or' if known.endswith('?') else ';'} are these rows of another task?"
        ) from None


def excerpt(text: str, parts: Iterable[str]) -> str:
    """Return the part of a text in which others first occur, and what is around them; its beginning where none does."""
    places = [(text.find(part), len(part)) for part in parts if part and part in text]
    if not places:
        return short(text)
    start = max(0, min(place for place, _ in places) - SHORT)
    end = min(max(place + size for place, size in places) + SHORT, start + 10 * SHORT)
    return "…" * (start > 0) + text[start:end] + "…" * (end < len(text))


def window_of(run: TrainConfig | None) -> dict[str, Any]:
    """Return the length of the windows in which a run read long texts, as an option; {} where it says none."""
    longest = None if run is None else run.data.max_length
    return {} if longest is None else {"window": longest}


def cut_as_in(run: TrainConfig | None, known: Iterable[str]) -> dict[str, Any]:
    """Return the options by which a run's texts are as long as they were in training."""
    if run is None:
        return {}
    given: dict[str, Any] = {}
    if run.data.too_long in (None, "cut") and "truncate" in known:
        given["truncate"] = True
    if run.data.max_length is not None and "max_length" in known:
        given["max_length"] = run.data.max_length
    return given
