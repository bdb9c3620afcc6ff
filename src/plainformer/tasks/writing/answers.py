"""Generated text as an answer: whole or piece by piece, up to its stop string, with its scores and stop reason."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from plainformer.errors import UsageError
from plainformer.generation.constraints.stop_strings import first_stop
from plainformer.generation.result import Generation, Search
from plainformer.tasks.html import continued
from plainformer.tasks.results import Result

R = TypeVar("R")
OPTIONAL = ("stop_string", "log_probability", "log_probabilities", "score", "segments", "words", "alternatives")


@dataclass(frozen=True)
class Answer(Result):
    """One generated text.

    Attributes:
        text: without the stop string that ended it, and without special tokens.
        stop_reason: why it ended: "eos" (the model ended it), "stop_string", "length" (a limit cut it off), "time", or
            "callback" (`stop_when`).
        new_tokens: how many were generated; those of the stop string and the end token count. token_ids: their ids.
        stop_string: which one.
        log_probability: the sum of `log_probabilities`: exp of it is the probability that just these tokens were written.
        log_probabilities: of each new token in the distribution that it was picked from, after all processors and constraints;
            natural logarithms, at most 0. Both with `output_scores=True` or `choices`, else None.
        score: what beams are ranked by, the sum of log-probabilities over length ** length_penalty; None in other modes.
    """

    text: str
    stop_reason: str
    new_tokens: int
    stop_string: str | None = None
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    log_probability: float | None = None
    log_probabilities: tuple[float, ...] | None = field(default=None, repr=False)
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without what was not asked for or does not apply."""
        return without_missing(super().to_dict())

    def lines(self) -> list[str]:
        """Return the text; of several answers each, with its number and score."""
        return answer_lines(self)

    def _repr_html_(self) -> str:
        return continued(getattr(self, "prompt", ""), self.text)


def answer_lines(result: Any) -> list[str]:
    """Return the text of a result; of several answers each, with its number, and its score or else its log-probability."""
    answers = (result, *getattr(result, "alternatives", ()))
    if len(answers) == 1:
        return [result.text]
    return [f"[{number}]{_rated(answer)} {answer.text}" for number, answer in enumerate(answers, 1)]


def _rated(answer: Any) -> str:
    for value, name in ((answer.score, "score"), (answer.log_probability, "log-probability")):
        if value is not None:
            return f" ({name} {value:.4f})"
    return ""


def without_missing(values: dict[str, Any]) -> dict[str, Any]:
    """Return a result's values without stop string, scores, segments, words and alternatives where there are none."""
    found = {name: value for name, value in values.items() if name not in OPTIONAL or value not in (None, ())}
    others = [without_missing(other) for other in found.get("alternatives", ())]
    return {**found, "alternatives": others} if others else found


def make_answer(found: Generation, row: int, lead: str, text: str, strings: Sequence[str]) -> Answer:
    """Return the answer of a row: the text that it begins with, and the new text up to its first stop string."""
    match = first_stop(text, strings)
    chances = found.log_probabilities[row] if found.log_probabilities is not None else None
    return Answer(
        lead + (text if match is None else text[: match.start]),
        found.stop_reasons[row] if match is None else "stop_string",
        len(found.token_ids[row]),
        None if match is None else match.string,
        found.token_ids[row],
        None if chances is None else sum(chances),
        chances,
        found.scores[row] if found.scores is not None else None,
    )


def first_row(steps: Search, ended: list[Generation]) -> Iterator[int]:
    """Yield the first row's tokens as they come, where there are any; the whole is appended to `ended`."""
    while True:
        try:
            tokens, _ = next(steps)
        except StopIteration as end:
            ended.append(end.value)
            return
        if tokens[0] is not None:
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
