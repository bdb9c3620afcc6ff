"""Generated text as an answer: cut at its stop string, whole or piece by piece, with what else is known of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from plainformer.errors import UsageError
from plainformer.generation.result import Generation, Search
from plainformer.tasks.base import Result
from plainformer.tasks.writing.detokenize import HALF_A_CHARACTER, continuation

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer

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
        """Plain values, without what was not asked for or does not apply."""
        return without_missing(super().to_dict())


def without_missing(values: dict[str, Any]) -> dict[str, Any]:
    """A result's values without stop string, scores, segments and alternatives where there are none."""
    found = {name: value for name, value in values.items() if name not in OPTIONAL or value not in (None, ())}
    others = [without_missing(other) for other in found.get("alternatives", ())]
    return {**found, "alternatives": others} if others else found


def make_answer(found: Generation, row: int, text: str, free: int, strings: Sequence[str]) -> Answer:
    """The answer of a row; no stop string is looked for in the first `free` characters of its text."""
    shown, string = cut(text[free:], strings)
    return Answer(
        text[:free] + shown,
        "stop_string" if string is not None else found.stop_reasons[row],
        len(found.token_ids[row]),
        string,
        found.scores[row] if found.scores is not None else None,
        found.log_probabilities[row] if found.log_probabilities is not None else None,
    )


def cut(text: str, strings: Sequence[str]) -> tuple[str, str | None]:
    """The text in front of the stop string that ends first (of several that end together, the longest), and which it is."""
    found = [(at + len(string), at, string) for string in strings if (at := text.find(string)) >= 0]
    if not found:
        return text, None
    _, at, string = min(found)
    return text[:at], string


def until(texts: Iterable[str], strings: Sequence[str]) -> Iterator[str]:
    """Pieces of text up to a stop string. What may be the beginning of one is held back until that is known.

    All of `texts` is consumed, so that whatever makes it comes to its end.
    """
    held, ended = "", False
    for piece in texts:
        if ended:
            continue
        shown, string = cut(held + piece, strings)
        ended = string is not None
        keep = 0 if ended else _beginning(shown, strings)
        held = shown[len(shown) - keep :]
        if shown := shown[: len(shown) - keep]:
            yield shown
    if held and not ended:
        yield held


def _beginning(text: str, strings: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    most = max((len(string) for string in strings), default=1) - 1
    lengths = range(min(most, len(text)), 0, -1)
    return next((n for n in lengths if any(s.startswith(text[len(text) - n :]) for s in strings)), 0)


def behind(texts: Iterable[str], count: int) -> Iterator[str]:
    """Pieces of text without the first `count` characters."""
    for piece in texts:
        rest, count = piece[count:], max(0, count - len(piece))
        if rest:
            yield rest


def first_row(steps: Search, ended: list[Generation]) -> Iterator[int | None]:
    """The first row's tokens as they come; the whole is appended to `ended`."""
    while True:
        try:
            tokens, _ = next(steps)
        except StopIteration as end:
            ended.append(end.value)
            return
        yield tokens[0]


class TextStop:
    """Looks for stop strings behind what a prompt has left to be written again: `StopStrings` for healed prompts.

    Args:
        before: ids in front of a row. begun: ids of the row that were there before its new ones.
        skip: characters of the row that belong to the prompt.
    """

    def __init__(
        self, tokenizer: Tokenizer, strings: Sequence[str], before: Sequence[int], begun: Sequence[int], skip: int
    ) -> None:
        self.tokenizer, self.strings, self.skip = tokenizer, strings, skip
        self.before, self.begun = before, begun

    def find(self, ids: Sequence[int]) -> str | None:
        """The stop string that ends a row, or None."""
        text = continuation(self.tokenizer, self.before, [*self.begun, *ids])[self.skip :]
        return cut(text.rstrip(HALF_A_CHARACTER), self.strings)[1]


class AnswerStream(Generic[R]):
    """An answer piece by piece, as soon as its characters are whole; joined, the pieces are the `text` of the result."""

    def __init__(self, steps: Generator[str, None, R]) -> None:
        self._steps = steps
        self._result: R | None = None

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
        """The whole result, as the task gives it without streaming; there is one when the stream has come to its end."""
        if self._result is None:
            raise UsageError("the stream has not come to its end, so it has no result", "read it to the end first")
        return self._result
