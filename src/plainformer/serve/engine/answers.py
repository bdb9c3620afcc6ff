"""What a request gives: events while it runs, an outcome at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class TokenScore(NamedTuple):
    """A token's natural log-probability in the model's own distribution, before processors, and the likeliest tokens'."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Something new of one answer.

    Attributes:
        index: which of the request's answers.
        text: whole characters; what may begin a stop string is held back. All events' texts together are the answer's.
        token_ids: the tokens since this answer's last event. scores: one for each of them, where they were asked for.
        reason: why the answer ended, in its last event. stop_string: which one.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] | None = None
    reason: str | None = None
    stop_string: str | None = None


class Usage(NamedTuple):
    """Tokens: of the prompt, those of them that were not computed anew, and new ones of all answers as computed."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0


class Seconds(NamedTuple):
    """Where the time went: waiting (to be prepared, and for its turn), reading the prompt, writing; and all of it."""

    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """A request at its end.

    Attributes:
        result: what the task itself gives for the same call; of `Engine.exclusive` what the call gave.
        answers: of a written result each answer, as many as were asked for; else none.
        scores: where log-probabilities were asked for, those of each answer's tokens.
        seed: what the answers were drawn with; None where nothing was drawn.
    """

    result: Any
    answers: tuple[Any, ...] = ()
    scores: tuple[tuple[TokenScore, ...], ...] | None = None
    usage: Usage = field(default_factory=Usage)
    seed: int | None = None
    seconds: Seconds = field(default_factory=Seconds)
    warnings: tuple[str, ...] = ()
