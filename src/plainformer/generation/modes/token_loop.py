"""The token loop: process → pick → stop? → decode_step. Greedy search and sampling are two ways to pick.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from plainformer.errors import UsageError, nth
from plainformer.generation.cache.cache import KeyValueCache
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


def likeliest(logits_RV: Tensor) -> Tensor:
    """Return each row's likeliest token, (R,); on a CPU by NumPy, in this thread.

    Torch would wake its own threads, which then wait actively for milliseconds, on the cores that the kernels' want.
    """
    if logits_RV.device.type == "cpu" and logits_RV.dtype == torch.float32:
        return torch.from_numpy(logits_RV.detach().numpy().argmax(-1))
    return logits_RV.argmax(-1)


class Growing(Protocol):
    """Rows that tokens are picked for: a `Session`'s, or one row of a batch whose rows come and go."""

    prompt_columns: int
    length: int
    copies: int

    def context(self) -> Context:
        """Return what processors see."""


@dataclass
class Picker:
    """Picks a token for each row: the likeliest, or a drawn one.

    Attributes:
        draws: streams of random numbers; None picks the likeliest.
        spread: the first token of a prompt's k-th row is its k-th likeliest.
    """

    draws: Draws | None = None
    spread: bool = False

    def __call__(self, logits_RV: Tensor, session: Growing) -> tuple[Tensor, Tensor | None]:
        if self.spread and session.length == session.prompt_columns:
            first_BV = logits_RV[:: session.copies]
            return first_BV.topk(session.copies, dim=-1).indices.flatten(), None
        if self.draws is None:
            return likeliest(logits_RV), None
        uniform_R = self.draws.next(logits_RV.device)
        return draw_tokens(logits_RV, uniform_R), uniform_R


class Picked(NamedTuple):
    """A step's tokens, (R,) each; None where it does not apply.

    tokens: the picked ones. banned: whether nothing but banned tokens was left. scores: the tokens' log-probabilities.
    """

    tokens: Tensor
    banned: Tensor | None = None
    scores: Tensor | None = None


def pick(
    logits_RV: Tensor,
    rows: Growing,
    processors: Sequence[Processor],
    picker: Picker,
    *,
    output_scores: bool = False,
    watcher: Watcher | None = None,
) -> Picked:
    """Turn the logits of rows into their next tokens: process, then pick."""
    logits_RV = process(logits_RV, rows.context, processors, watcher)
    picked_R, draws_R = picker(logits_RV, rows)
    if watcher is not None:
        watcher.picked(logits_RV, picked_R, draws_R, cast("Session", rows))
    banned_R = logits_RV.gather(-1, picked_R[:, None])[:, 0].isneginf() if processors else None
    return Picked(picked_R, banned_R, log_probability_of(logits_RV, picked_R) if output_scores else None)


class Rows:
    """Tokens of each row as the host knows them, and why rows have ended."""

    def __init__(self, stops: Stops, prompts: int, copies: int = 1) -> None:
        self.stops, self.copies = stops, copies
        self.tokens: list[list[int]] = [[] for _ in range(prompts * copies)]
        self.reasons: list[StopReason | None] = [None for _ in self.tokens]
        self.log_probabilities: list[list[float]] = [[] for _ in self.tokens]

    @property
    def ended(self) -> list[bool]:
        return [reason is not None for reason in self.reasons]

    def record(self, picked: list[int], banned: list[bool] | None, scored: list[float] | None = None) -> Step:
        """Record a step's tokens; a row that had ended before gets None.

        Args:
            banned: rows of which nothing but banned tokens was left.
        Raises:
            UsageError: such a row has not ended.
        """
        step: list[int | None] = [None for _ in picked]
        for row, token in enumerate(picked):
            if self.reasons[row] is None:
                if banned is not None and banned[row]:
                    raise all_banned(len(self.tokens[row]), row // self.copies)
                step[row] = token
                self.add(row, token, None if scored is None else scored[row])
        return step, list(self.reasons)

    def add(self, row: int, token: int, log_probability: float | None = None) -> None:
        """Record a token of one row that has not ended."""
        self.tokens[row].append(token)
        if log_probability is not None:
            self.log_probabilities[row].append(log_probability)
        self.reasons[row] = self.stops.reason(self.tokens[row], row // self.copies)

    def generation(self, cache: KeyValueCache | None = None, *, output_scores: bool = False) -> Generation:
        """Return what was generated."""
        chances = tuple(map(tuple, self.log_probabilities)) if output_scores else None
        reasons = tuple(reason or "length" for reason in self.reasons)
        return Generation(tuple(map(tuple, self.tokens)), reasons, chances, cache=cache)


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
    most, rows = max(stops.limits), Rows(stops, len(session.prompt), session.copies)
    every_step = streamed or watcher is not None or syncs_every_step(logits_RV.device, stops, processors)
    every = 1 if every_step else SYNC_EVERY
    waiting: list[Picked] = []  # of each step on the device
    for number in range(1, most + 1):
        picked = pick(logits_RV, session, processors, picker, output_scores=output_scores, watcher=watcher)
        waiting.append(picked)
        if number % every == 0 or number == most:
            yield from _fetch(waiting, rows)
            if all(rows.reasons):
                break
            session.ended = rows.ended
        logits_RV = session.decode_step(picked.tokens)
    return rows.generation(session.finished_cache(), output_scores=output_scores)


def log_probability_of(logits_RV: Tensor, picked_R: Tensor) -> Tensor:
    """Return the log-probability of each row's token in the distribution that it was picked from, (R,)."""
    return logits_RV.float().log_softmax(-1).gather(-1, picked_R[:, None])[:, 0]


def _fetch(waiting: list[Picked], rows: Rows) -> Iterator[Step]:
    """Fetch the steps that are waiting on the device, and record them; what follows a row's end is dropped."""
    columns = [
        torch.stack([x for x in column if x is not None]).tolist() if column[0] is not None else [None] * len(column)
        for column in zip(*waiting, strict=True)
    ]
    waiting.clear()
    for step in zip(*columns, strict=True):
        if all(rows.reasons):
            return
        yield rows.record(*step)


def all_banned(new: int, prompt: int) -> UsageError:
    """Return the error of a prompt that has no token left to continue with."""
    return UsageError(
        f"every token is banned after {new} new ones of {nth(prompt)}", "loosen the processors that ban tokens"
    )
