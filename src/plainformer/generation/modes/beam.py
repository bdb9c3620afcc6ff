"""Beam search: keep the n likeliest beginnings of each prompt's answer (Lowerre 1976; Graves 2012).

Also beam-sample, which draws the continuations instead of taking the likeliest, and diverse beam search, whose groups of
beams shun each other's words (Vijayakumar et al. 2016). Which of the candidates count as finished, and when a prompt is
done, is as in the reference (transformers 5.23); patience is from Kasai et al. 2022.

Shapes: B prompts, n beams each, R = B * n rows, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from plainformer.generation.draw import Draws, draw_without_replacement
from plainformer.generation.modes.token_loop import Watcher, process
from plainformer.generation.processors.context import Processor
from plainformer.generation.result import Generation, Search, Step
from plainformer.generation.sessions.session import Session
from plainformer.generation.stopping import StopReason, Stops


@dataclass(frozen=True)
class Beam:
    """A beginning of an answer: new tokens, the sum of their log-probabilities, and which row it is in."""

    tokens: tuple[int, ...]
    log_probability: float
    row: int


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer; `score` is its log-probability over length ** length_penalty."""

    tokens: tuple[int, ...]
    log_probability: float
    score: float
    reason: StopReason


@dataclass(frozen=True)
class BeamSettings:
    """How to search; `early_stopping` True ends a prompt with its n-th finished answer, "never" only when none can win."""

    beams: int
    groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    patience: float = 1.0
    returned: int = 1

    @property
    def group_size(self) -> int:
        return self.beams // self.groups


class BeamWatcher(Watcher, Protocol):
    """Also sees what becomes of the candidates."""

    def beams(self, prompt: int, candidates: list[Beam], running: list[Beam], finished: list[Hypothesis]) -> None:
        """One prompt's (or group's) step: all candidates, best first, and what is kept of them."""

    def searched(self, logits_RV: Tensor, session: Session) -> None:
        """A step's end, behind `beams` of all groups: the log-probabilities they chose from, before the cache moves on."""


def answers_kept(beams: int, patience: float) -> int:
    """How many finished answers a search of so many beams waits for, and keeps."""
    return max(1, round(beams * patience))


@dataclass
class _Group:
    """The beams of one prompt, or one of its groups: those that run, and those that have finished."""

    settings: BeamSettings
    prompt: int
    first_row: int
    stops: Stops
    running: list[Beam] = field(default_factory=list)
    finished: list[Hypothesis] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    improvable: bool = True
    done: bool = False

    def __post_init__(self) -> None:
        self.capacity = answers_kept(self.settings.group_size, self.settings.patience)
        self.running = [Beam((), 0.0, self.first_row)]

    def advance(self, candidates: list[Beam]) -> None:
        """Sort candidates, best first or as they were drawn, into finished ones and the next beams: of those, the best."""
        size, full = self.settings.group_size, len(self.finished) >= self.capacity
        reasons = [self.stops.reason(list(beam.tokens), self.prompt) for beam in candidates]
        closed = (full and self.settings.early_stopping is True) or not self.improvable
        for beam, reason in zip(
            candidates[:size], reasons, strict=False
        ):  # those further down are only there in reserve
            if reason is not None and not closed:
                self._finish(beam, reason)
        going = [beam for beam, reason in zip(candidates, reasons, strict=True) if reason is None]
        self.running = sorted(going, key=lambda beam: -beam.log_probability)[:size]
        # What the last step there is room for takes is shunned too, though nothing goes on from it.
        cut = [beam for beam, reason in zip(candidates, reasons, strict=True) if reason in (None, "length", "time")]
        self.taken = [beam.tokens[-1] for beam in cut[:size]]
        self.done = not self.running or not self._goes_on(candidates[0])

    def _finish(self, beam: Beam, reason: StopReason) -> None:
        score = beam.log_probability / len(beam.tokens) ** self.settings.length_penalty
        self.finished.append(Hypothesis(beam.tokens, beam.log_probability, score, reason))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.capacity :]

    def _goes_on(self, likeliest: Beam) -> bool:
        """Whether an answer that is still to come can win. For groups the likeliest candidate is looked at, ended or not.

        The reference did so before it searched all kinds of beams alike (transformers 4.49, the last that had groups).
        """
        settings, full = self.settings, len(self.finished) >= self.capacity
        if full:
            longest = settings.early_stopping == "never" and settings.length_penalty > 0
            hope = self.running[0] if settings.groups == 1 else likeliest
            length = self.stops.limits[self.prompt] if longest else len(hope.tokens)
            possible = hope.log_probability / length**settings.length_penalty
            self.improvable = self.improvable and possible > self.finished[-1].score
        return self.improvable and not (full and settings.early_stopping is True)

    def best(self) -> list[Hypothesis]:
        """The answers, best first; where time is up before enough have finished, behind them the beams as they are."""
        penalty = self.settings.length_penalty
        unfinished = [
            Hypothesis(b.tokens, b.log_probability, b.log_probability / max(len(b.tokens), 1) ** penalty, "time")
            for b in self.running
        ]
        return self.finished + unfinished[: self.capacity - len(self.finished)]

    def settled(self) -> tuple[int, ...]:
        """What every answer that can still win begins with."""
        if self.done:
            return self.best()[0].tokens if self.best() else ()
        possible = [beam.tokens for beam in self.running] + [hypothesis.tokens for hypothesis in self.finished]
        shortest = min(map(len, possible))
        same = next((i for i in range(shortest) if len({tokens[i] for tokens in possible}) > 1), shortest)
        return possible[0][:same]


def search_beams(
    session: Session,
    stops: Stops,
    processors: Sequence[Processor],
    settings: BeamSettings,
    *,
    draws: Draws | None = None,
    watcher: BeamWatcher | None = None,
) -> Search:
    """Yield what is settled, token by token; the generator's return value is the `Generation`.

    Args:
        session: with `settings.beams` copies of each prompt.
        draws: for beam-sample; the first stream of each prompt is used.
    """
    size = settings.group_size
    prompts = [
        [_Group(settings, prompt, prompt * settings.beams + g * size, stops) for g in range(settings.groups)]
        for prompt in range(len(session.prompt))
    ]
    streams = draws.streams[:: settings.beams] if draws is not None else [None] * len(prompts)
    logits_RV = session.prefill()
    outlet = _Outlet(prompts)
    while True:
        scores_RV = process(logits_RV.float().log_softmax(-1), session.context, processors, watcher)
        tokens, sources = [0] * len(scores_RV), list(range(len(scores_RV)))
        for groups, stream in zip(prompts, streams, strict=True):
            _advance(groups, scores_RV, stream, watcher, max(2, 1 + len(stops.eos_ids)))
            for group in groups:
                for place, beam in enumerate(group.running):
                    tokens[group.first_row + place] = beam.tokens[-1]
                    sources[group.first_row + place] = beam.row
                group.running = [
                    Beam(b.tokens, b.log_probability, group.first_row + i) for i, b in enumerate(group.running)
                ]
        running = {b.row for groups in prompts for group in groups if not group.done for b in group.running}
        session.ended = [row not in running for row in range(len(tokens))]
        if watcher is not None:
            watcher.searched(scores_RV, session)
        yield from outlet.steps()
        if stops.out_of_time() or all(group.done for groups in prompts for group in groups):
            break
        if sources != list(range(len(sources))):
            session.reorder(torch.tensor(sources, device=logits_RV.device))
        logits_RV = session.decode_step(torch.tensor(tokens, device=logits_RV.device))
    return (yield from outlet.finish(settings.returned))


def _advance(
    groups: list[_Group], scores_RV: Tensor, stream: random.Random | None, watcher: BeamWatcher | None, spare: int
) -> None:
    """One step of a prompt's groups, one after the other, each shunning the tokens that those before it have just taken."""
    taken: list[int] = []
    for group in groups:
        if not group.done:
            rows = [beam.row for beam in group.running]
            group_RV = scores_RV[rows]
            if taken:
                counts_V = torch.bincount(torch.tensor(taken, device=group_RV.device), minlength=group_RV.size(1))
                group_RV = group_RV - group.settings.diversity_penalty * counts_V
            candidates = _candidates(group, group_RV, spare * group.settings.group_size, stream)
            group.advance(candidates)
            if watcher is not None:
                watcher.beams(group.prompt, candidates, group.running, group.finished)
            taken += group.taken  # a group that was done before takes nothing


def _candidates(group: _Group, scores_RV: Tensor, count: int, stream: random.Random | None) -> list[Beam]:
    """The best continuations of all running beams, best first; or drawn ones, as they came."""
    before_R1 = scores_RV.new_tensor([beam.log_probability for beam in group.running])[:, None]
    total_N = (scores_RV + before_R1).flatten()
    if stream is None:
        values, places = total_N.topk(min(count, len(total_N)))
    else:
        places = draw_without_replacement(total_N, count, stream)
        values = total_N[places]
    vocabulary = scores_RV.size(1)
    return [
        Beam(
            (*group.running[place // vocabulary].tokens, place % vocabulary),
            value,
            group.running[place // vocabulary].row,
        )
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
        if value > float("-inf")
    ]


class _Outlet:
    """Hands out what is settled, and at the end the answers."""

    def __init__(self, prompts: list[list[_Group]]) -> None:
        self.prompts = prompts
        self.given = [0] * len(prompts)
        self.told: list[StopReason | None] = [None] * len(prompts)

    def steps(self) -> Iterator[Step]:
        """Settled tokens that were not yet given, of each prompt's best answer."""
        settled = [groups[0].settled() if len(groups) == 1 else () for groups in self.prompts]
        done = [groups[0].best()[:1] if len(groups) == 1 and groups[0].done else [] for groups in self.prompts]
        yield from self._give(settled, [best[0].reason if best else None for best in done])

    def _give(self, settled: Sequence[tuple[int, ...]], reasons: list[StopReason | None]) -> Iterator[Step]:
        places = range(len(settled))
        while any(self.given[i] < len(settled[i]) or self.told[i] != reasons[i] for i in places):
            step: list[int | None] = []
            for index, tokens in enumerate(settled):
                more = self.given[index] < len(tokens)
                step.append(tokens[self.given[index]] if more else None)
                self.given[index] += more
            self.told = [reasons[i] if self.given[i] >= len(settled[i]) else None for i in places]
            yield step, self.told

    def finish(self, returned: int) -> Search:
        """Yield the rest; return all answers, and for those that were not found an empty row."""
        none = Hypothesis((), -math.inf, -math.inf, "exhausted")
        answers = []
        for groups in self.prompts:
            found = sorted((h for group in groups for h in group.best()), key=lambda h: -h.score)
            answers.append((found + [none] * returned)[:returned])
        yield from self._give([found[0].tokens for found in answers], [found[0].reason for found in answers])
        flat = [hypothesis for found in answers for hypothesis in found]
        return Generation(
            tuple(h.tokens for h in flat), tuple(h.reason for h in flat), tuple(h.score for h in flat), None, None
        )
