"""The token loop: process → pick → stop? → decode_step. Greedy search and sampling are two ways to pick.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from plainformer.errors import UsageError, nth
from plainformer.generation.draw import Draws, draw_tokens
from plainformer.generation.processors.context import Context, Processor
from plainformer.generation.processors.control import AllowedTokens
from plainformer.generation.result import Generation, Search, Step
from plainformer.generation.sessions.session import Session
from plainformer.generation.stopping import StopReason, Stops

# On a GPU the host fetches tokens only once in this many steps where nothing but end tokens and limits can end a row:
# fetching each would wait for each.
SYNC_EVERY = 16


def syncs_every_step(device: torch.device, stops: Stops, processors: Sequence[Processor]) -> bool:
    """Whether the host fetches every token as it is picked: where that is free, or where something needs it to."""
    asked = any(isinstance(processor, AllowedTokens) for processor in processors)
    return device.type == "cpu" or stops.needs_every_token or asked


class Watcher(Protocol):
    """Sees every step; `trace.Recorder` is one."""

    def processed(self, name: str, before_RV: Tensor, after_RV: Tensor) -> None:
        """Called after each processor; and before the first, with the name "logits" and the model's own logits for both."""

    def picked(self, logits_RV: Tensor, picked_R: Tensor, draws_R: Tensor | None, session: Session) -> None:
        """Called with a step's tokens, the logits they were picked from, and the random numbers that chose them."""


def process(
    logits_RV: Tensor, context: Callable[[], Context], processors: Sequence[Processor], watcher: Watcher | None = None
) -> Tensor:
    """Run all processors, in order; return the logits after the last."""
    if watcher is not None:
        watcher.processed("logits", logits_RV, logits_RV)
    if not processors:
        return logits_RV
    seen = context()
    for processor in processors:
        after_RV = processor(logits_RV, seen)
        if watcher is not None:
            watcher.processed(processor.name, logits_RV, after_RV)
        logits_RV = after_RV
    return logits_RV


@dataclass
class Picker:
    """Picks a token for each row: the likeliest, or a drawn one.

    Attributes:
        draws: streams of random numbers; None picks the likeliest.
        spread: the first token of a prompt's k-th row is its k-th likeliest.
    """

    draws: Draws | None = None
    spread: bool = False

    def __call__(self, logits_RV: Tensor, session: Session) -> tuple[Tensor, Tensor | None]:
        if self.spread and session.length == session.prompt_columns:
            first_BV = logits_RV[:: session.copies]
            return first_BV.topk(session.copies, dim=-1).indices.flatten(), None
        if self.draws is None:
            return logits_RV.argmax(-1), None
        uniform_R = self.draws.next(logits_RV.device)
        return draw_tokens(logits_RV, uniform_R), uniform_R


@dataclass
class _Rows:
    """Tokens of each row as the host knows them, and which rows have ended."""

    stops: Stops
    copies: int
    tokens: list[list[int]]
    reasons: list[StopReason | None]
    log_probabilities: list[list[float]] = field(default_factory=list)

    def done(self) -> bool:
        return all(reason is not None for reason in self.reasons)

    def record(self, picked: list[int], scored: list[float] | None) -> Step:
        """Record a step's tokens; a row that had ended before gets None."""
        step: list[int | None] = []
        for row, token in enumerate(picked):
            running = self.reasons[row] is None
            step.append(token if running else None)
            if running:
                self.tokens[row].append(token)
                if scored is not None:
                    self.log_probabilities[row].append(scored[row])
                self.reasons[row] = self.stops.reason(self.tokens[row], row // self.copies)
        return step, list(self.reasons)


def search_tokens(
    session: Session,
    stops: Stops,
    processors: Sequence[Processor],
    picker: Picker,
    *,
    output_scores: bool = False,
    streamed: bool = True,
    watcher: Watcher | None = None,
) -> Search:
    """Yield steps until every row has ended; the generator's return value is the `Generation`."""
    logits_RV = session.prefill()
    count, most = len(logits_RV), max(stops.limits)
    rows = _Rows(stops, session.copies, [[] for _ in range(count)], [None] * count, [[] for _ in range(count)])
    every_step = streamed or watcher is not None or syncs_every_step(logits_RV.device, stops, processors)
    every = 1 if every_step else SYNC_EVERY
    waiting: list[_Picked] = []
    for number in range(1, most + 1):
        logits_RV = process(logits_RV, session.context, processors, watcher)
        picked_R, draws_R = picker(logits_RV, session)
        if watcher is not None:
            watcher.picked(logits_RV, picked_R, draws_R, session)
        banned_R = logits_RV.gather(-1, picked_R[:, None])[:, 0].isneginf() if processors else None
        waiting.append(_Picked(picked_R, _scores(logits_RV, picked_R) if output_scores else None, banned_R))
        if number % every == 0 or number == most:
            yield from _fetch(waiting, rows)
            if rows.done():
                break
            session.ended = [reason is not None for reason in rows.reasons]
        logits_RV = session.decode_step(picked_R)
    return Generation(
        tuple(tuple(row) for row in rows.tokens),
        tuple(reason or "length" for reason in rows.reasons),
        tuple(sum(row) for row in rows.log_probabilities) if output_scores else None,
        tuple(tuple(row) for row in rows.log_probabilities) if output_scores else None,
        session.finished_cache(),
    )


def _scores(logits_RV: Tensor, picked_R: Tensor) -> Tensor:
    return logits_RV.float().log_softmax(-1).gather(-1, picked_R[:, None])[:, 0]


@dataclass(frozen=True)
class _Picked:
    """A step's tokens on the device; their log-probabilities; and whether nothing but banned ones was left."""

    tokens_R: Tensor
    scores_R: Tensor | None
    banned_R: Tensor | None


def _fetch(waiting: list[_Picked], rows: _Rows) -> Iterator[Step]:
    """Fetch the tokens that are waiting on the device, and record them; what follows a row's end is dropped."""
    tokens = torch.stack([step.tokens_R for step in waiting]).tolist()
    scores = [step.scores_R for step in waiting if step.scores_R is not None]
    scored = torch.stack(scores).tolist() if scores else [None] * len(tokens)
    flags = [step.banned_R for step in waiting if step.banned_R is not None]
    banned = torch.stack(flags).tolist() if flags else [[]] * len(tokens)
    waiting.clear()
    for step_tokens, step_scores, step_banned in zip(tokens, scored, banned, strict=True):
        if rows.done():
            return
        stuck = [row for row, none_left in enumerate(step_banned) if none_left and rows.reasons[row] is None]
        if stuck:
            raise all_banned(len(rows.tokens[stuck[0]]), stuck[0] // rows.copies)
        yield rows.record(step_tokens, step_scores)


def all_banned(new: int, prompt: int) -> UsageError:
    """Return the error of a prompt that has no token left to continue with."""
    return UsageError(
        f"every token is banned after {new} new ones of {nth(prompt)}", "loosen the processors that ban tokens"
    )
