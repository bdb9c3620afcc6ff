"""Rows through a task, one after the other, into a kept evaluation; memory does not grow with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from plainformer.data.counts import Counts
from plainformer.errors import PlainformerError, UsageError, opt
from plainformer.evaluate.base import Scorer, plain_values
from plainformer.evaluate.kept import Keeper
from plainformer.evaluation.exams.base import Dropped, Exam, Question
from plainformer.evaluation.source import Example, Source
from plainformer.tasks.results import Skipped

_MOST_REASONS = 12  # that are told apart


@dataclass(frozen=True)
class _Waiting:
    question: Question
    example: Example


class Stream:
    """Asks a task about rows.

    Args:
        on_error: what becomes of rows that the task cannot read: "stop" ends the evaluation, "skip" counts them; None counts
            them, but for texts that are too long.
        done: is told of each answer.
    """

    def __init__(self, exam: Exam, source: Source, on_error: str | None, done: Callable[[int], object]) -> None:
        self.exam, self.source, self.on_error, self.done = exam, source, on_error, done
        self.left_out = Counts()
        self.waiting: deque[_Waiting] = deque()
        self.answered = 0

    def run(
        self, keeper: Keeper, scorer: Scorer, answers: Callable[[Iterator[Any]], Iterator[Any]] | None = None
    ) -> Counts:
        """Answer all rows; return what was left out and cut. `answers`: who answers in place of the exam alone.

        Raises:
            UsageError: a label that the model lacks, a text that is too long, ... with the row's place.
        """
        try:
            for result in (answers or self.exam.answers)(self._values()):
                self._take(self.waiting.popleft(), result, keeper, scorer)
                self.answered += 1
                self.done(1)
        except PlainformerError as error:
            raise self._placed(error) from error.__cause__
        counts = Counts(self.source.counts.rows, self.source.counts.passed, self.source.counts.dropped)
        counts.add(self.left_out)
        return counts

    def _values(self) -> Iterator[Any]:
        cuts = bool(getattr(self.exam.options, "truncate", False))
        for example in self.source:
            place = example.row.place
            try:
                question = self.exam.question(example.row)
                lost = self.exam.lost(question) if cuts else 0
            except Dropped as dropped:
                self._drop(dropped.reason, place)
                continue
            except PlainformerError as error:
                raise error.within(place) from error
            self.left_out.shorten(lost, place)
            self.waiting.append(_Waiting(question, example))
            yield question.value

    def _take(self, own: _Waiting, result: Any, keeper: Keeper, scorer: Scorer) -> None:
        place = own.example.row.place
        if isinstance(result, Skipped):
            self._skip(result.error, place, own.question.said)
            return
        try:
            answer = self.exam.answer(own.question, result)
        except Dropped as dropped:
            self._drop(dropped.reason, place)
            return
        reference = self.exam.reference(own.question, result)
        line = {"place": place, "input": own.question.said, "reference": reference, "answer": answer}
        line |= self.exam.shown(own.question, answer)
        keeper.add(plain_values(line), scorer.row(reference, answer), own.example.key, own.example.unit)

    def _skip(self, error: PlainformerError, place: str, said: str) -> None:
        """Count a row that the task cannot read, by a reason without its own text; one that is too long is an error."""
        named = error.named(lambda _: place)
        if self.on_error == "stop" or (self.on_error is None and "truncate" in error.fix_options):
            raise named if place in named.what else named.within(place)
        reason = error.named(lambda _: "the input").what.partition("\n")[0]
        for own in (repr(said), said):
            reason = reason.replace(f"{own}: ", "").replace(own, "it")
        self._drop(reason[:120], place)

    def _drop(self, reason: str, place: str) -> None:
        known = self.left_out.dropped
        self.left_out.drop(reason if reason in known or len(known) < _MOST_REASONS else "another reason", place)

    def _placed(self, error: PlainformerError) -> PlainformerError:
        """Return the error with the place of the row that it names."""

        def name(place: int) -> str:
            index = place - self.answered
            return self.waiting[index].example.row.place if 0 <= index < len(self.waiting) else f"row {place + 1}"

        return error.named(name)


def check_any(count: int, source: Source, counts: Counts) -> None:
    """Refuse an evaluation of no rows."""
    if not count:
        said = "; ".join(counts.lines())
        raise UsageError(f"no row of {source.name} can be evaluated: {said}", f"check the data and {opt('columns')}")
