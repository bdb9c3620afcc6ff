"""Generated text as an answer: whole or piece by piece, up to its stop string, with its scores and stop reason."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from plainformer.errors import UsageError
from plainformer.generation.constraints.stop_strings import first_stop
from plainformer.generation.result import Generation, Search
from plainformer.tasks.base import Result
from plainformer.tasks.html import continued

R = TypeVar("R")
OPTIONAL = ("stop_string", "score", "log_probabilities", "segments", "alternatives")


@dataclass(frozen=True)
class Answer(Result):
    """One generated text.

    Attributes:
        text: without the stop string that ended it, and without special tokens.
        stop_reason: why it ended: "eos" (the model ended it), "stop_string", "length" (a limit cut it off), "time", or
            "callback" (`stop_when`).
        new_tokens: how many were generated; those of the stop string and the end token count.
        stop_string: which one.
        score: of beams, the sum of log-probabilities over length ** length_penalty; with `output_scores=True`, the sum.
        log_probabilities: of each new token, with `output_scores=True`.
    """

    text: str
    stop_reason: str
    new_tokens: int
    stop_string: str | None = None
    score: float | None = None
    log_probabilities: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without what was not asked for or does not apply."""
        return without_missing(super().to_dict())

    def lines(self) -> list[str]:
        """Return the text; of several answers each, with its number and score."""
        return answer_lines(self)

    def _repr_html_(self) -> str:
        return continued(getattr(self, "prompt", ""), self.text)


def answer_lines(result: Any) -> list[str]:
    """Return the text of a result; of several answers each, with its number and score."""
    answers = (result, *getattr(result, "alternatives", ()))
    if len(answers) == 1:
        return [result.text]
    scores = (f" ({answer.score:.4f})" if answer.score is not None else "" for answer in answers)
    return [f"[{n}]{score} {a.text}" for n, (a, score) in enumerate(zip(answers, scores, strict=True), 1)]


def without_missing(values: dict[str, Any]) -> dict[str, Any]:
    """Return a result's values without stop string, scores, segments and alternatives where there are none."""
    found = {name: value for name, value in values.items() if name not in OPTIONAL or value not in (None, ())}
    others = [without_missing(other) for other in found.get("alternatives", ())]
    return {**found, "alternatives": others} if others else found


def make_answer(found: Generation, row: int, lead: str, text: str, strings: Sequence[str]) -> Answer:
    """Return the answer of a row: the text that it begins with, and the new text up to its first stop string."""
    match = first_stop(text, strings)
    return Answer(
        lead + (text if match is None else text[: match.start]),
        found.stop_reasons[row] if match is None else "stop_string",
        len(found.token_ids[row]),
        None if match is None else match.string,
        found.scores[row] if found.scores is not None else None,
        found.log_probabilities[row] if found.log_probabilities is not None else None,
    )


def first_row(steps: Search, ended: list[Generation]) -> Iterator[int | None]:
    """Yield the first row's tokens as they come; the whole is appended to `ended`."""
    while True:
        try:
            tokens, _ = next(steps)
        except StopIteration as end:
            ended.append(end.value)
            return
        yield tokens[0]


class AnswerStream(Generic[R]):
    """An answer piece by piece, as soon as its characters are whole; joined, the pieces are the `text` of the result."""

    def __init__(self, steps: Generator[str, None, R]) -> None:
        self._steps = steps
        self._result: R | None = None

    def __repr__(self) -> str:
        return f"AnswerStream({'at its end' if self._result is not None else 'not at its end yet'})"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._steps)
        except StopIteration as end:
            if end.value is not None:
                self._result = end.value
            raise StopIteration from None

    def close(self) -> None:
        """Stop generating."""
        self._steps.close()

    @property
    def result(self) -> R:
        """The whole result, as the task gives it without streaming; available at the end of the stream."""
        if self._result is None:
            raise UsageError("the stream has not come to its end, so it has no result", "read it to the end first")
        return self._result
