"""Beam search: keep the n likeliest beginnings of each prompt's answer (Lowerre 1976; Graves 2012).

Also beam-sample, which draws the continuations instead of taking the likeliest, and diverse beam search, whose groups are
penalised for tokens already chosen by earlier groups (Vijayakumar et al. 2016). Which of the candidates count as finished,
and when a prompt is done, is as in transformers 5.23; patience is from Kasai et al. 2022.

Shapes: B prompts, n beams each, R = B * n rows, N candidates, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from plainformer.generation.draw import Draws, draw_without_replacement
from plainformer.generation.modes.token_loop import Watcher, process
from plainformer.generation.options import GenerationOptions
from plainformer.generation.processors.context import Processor
from plainformer.generation.result import Generation, Search, Step
from plainformer.generation.sessions.session import Session
from plainformer.generation.stopping import StopReason, Stops


@dataclass(frozen=True)
class Beam:
    """A beginning of an answer: new tokens, the sum of their scores, the row that holds it, and, if asked for, log-probabilities.

    A token's score is its log-probability, which processors may have changed; `chances` are normalised after them.
    """

    tokens: tuple[int, ...]
    log_probability: float
    row: int
    chances: tuple[float, ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer; `score` is its log-probability over length ** length_penalty."""

    tokens: tuple[int, ...]
    log_probability: float
    score: float
    reason: StopReason
    chances: tuple[float, ...] = ()


class BeamWatcher(Watcher, Protocol):
    """Also sees what becomes of the candidates."""

    def beams(self, prompt: int, candidates: list[Beam], running: list[Beam], finished: list[Hypothesis]) -> None:
        """Called with one prompt's (or group's) step: all candidates, best first, and those that are kept."""

    def searched(self, logits_RV: Tensor, session: Session) -> None:
        """Called after `beams` of all groups, before the cache advances, with the log-probabilities they chose from."""


class _Group:
    """The beams of one prompt, or of one of its groups: those that run, and those that have finished."""

    def __init__(self, options: GenerationOptions, prompt: int, first_row: int, stops: Stops) -> None:
        self.prompt, self.first_row, self.stops = prompt, first_row, stops
        self.size, self.capacity = options.group_size, options.answers_kept
        self.is_alone = options.num_beam_groups == 1
        self.diversity_penalty = options.diversity_penalty or 0.0
        self.length_penalty = 1.0 if options.length_penalty is None else options.length_penalty
        self.early_stopping = options.early_stopping or False
        self.running = [Beam((), 0.0, first_row)]
        self.finished: list[Hypothesis] = []
        self.taken: list[int] = []  # tokens that later groups are penalised for
        self.improvable, self.done = True, False
        self.output_scores = options.output_scores

    def advance(self, candidates: list[Beam]) -> None:
        """Sort candidates, best first or as they were drawn, into finished answers and the next beams: of those, the best."""
        reasons = [self.stops.reason(list(beam.tokens), self.prompt) for beam in candidates]
        closed = (self._is_full() and self.early_stopping is True) or not self.improvable
        # Candidates further down are only a reserve of beams to continue.
        for beam, reason in zip(candidates[: self.size], reasons, strict=False):
            if reason is not None and not closed:
                self._finish(beam, reason)
        open_beams = [beam for beam, reason in zip(candidates, reasons, strict=True) if reason is None]
        self.running = sorted(open_beams, key=lambda beam: -beam.log_probability)[: self.size]
        # Later groups are also penalised for the tokens of the last step that fits, though nothing continues from them.
        chosen = [beam for beam, reason in zip(candidates, reasons, strict=True) if reason in (None, "length", "time")]
        self.taken = [beam.tokens[-1] for beam in chosen[: self.size]]
        self.done = not self.running or not self._can_improve(candidates[0])

    def _is_full(self) -> bool:
        return len(self.finished) >= self.capacity

    def _score(self, beam: Beam) -> float:
        return beam.log_probability / max(len(beam.tokens), 1) ** self.length_penalty

    def _hypothesis(self, beam: Beam, reason: StopReason) -> Hypothesis:
        return Hypothesis(beam.tokens, beam.log_probability, self._score(beam), reason, beam.chances)

    def _finish(self, beam: Beam, reason: StopReason) -> None:
        self.finished.append(self._hypothesis(beam, reason))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.capacity :]

    def _can_improve(self, likeliest: Beam) -> bool:
        """Whether an answer that is still to come can win. Groups look at the likeliest candidate, ended or not.

        transformers did so before it searched all kinds of beams alike (4.49, its last version that had groups).
        """
        if self._is_full():
            best = self.running[0] if self.is_alone else likeliest
            reaches_limit = self.early_stopping == "never" and self.length_penalty > 0
            length = self.stops.limits[self.prompt] if reaches_limit else len(best.tokens)
            best_possible = best.log_probability / length**self.length_penalty
            self.improvable = self.improvable and best_possible > self.finished[-1].score
        return self.improvable and not (self._is_full() and self.early_stopping is True)

    def best(self) -> list[Hypothesis]:
        """Return the answers, best first; where time ran out before enough had finished, the running beams follow them."""
        unfinished = [self._hypothesis(beam, "time") for beam in self.running]
        return self.finished + unfinished[: self.capacity - len(self.finished)]

    def common_prefix(self) -> tuple[int, ...]:
        """Return what every answer that can still win begins with."""
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
    options: GenerationOptions,
    *,
    draws: Draws | None = None,
    watcher: BeamWatcher | None = None,
) -> Search:
    """Yield the tokens that all beams agree on, one by one; the generator's return value is the `Generation`.

    Args:
        session: with `options.num_beams` copies of each prompt.
        draws: for beam-sample; the first stream of each prompt is used.
    """
    size, beams = options.group_size, options.num_beams
    prompts = [
        [_Group(options, prompt, prompt * beams + g * size, stops) for g in range(options.num_beam_groups)]
        for prompt in range(len(session.prompt))
    ]
    streams = draws.streams[::beams] if draws is not None else [None] * len(prompts)
    logits_RV = session.prefill()
    streamer = _BeamStreamer(prompts)
    while True:
        scores_RV = process(logits_RV.float().log_softmax(-1), session.context, processors, watcher)
        tokens, sources = [0] * len(scores_RV), list(range(len(scores_RV)))
        for groups, stream in zip(prompts, streams, strict=True):
            _advance(groups, scores_RV, stream, watcher, max(2, 1 + len(stops.eos_ids)))
            for group in groups:
                for place, beam in enumerate(group.running):
                    tokens[group.first_row + place] = beam.tokens[-1]
                    sources[group.first_row + place] = beam.row
                group.running = [replace(beam, row=group.first_row + i) for i, beam in enumerate(group.running)]
        running = {b.row for groups in prompts for group in groups if not group.done for b in group.running}
        session.ended = [row not in running for row in range(len(tokens))]
        if watcher is not None:
            watcher.searched(scores_RV, session)
        yield from streamer.steps()
        if stops.out_of_time() or all(group.done for groups in prompts for group in groups):
            break
        if sources != list(range(len(sources))):
            session.reorder(torch.tensor(sources, device=logits_RV.device))
        logits_RV = session.decode_step(torch.tensor(tokens, device=logits_RV.device))
    return (yield from streamer.finish(options.num_return_sequences, options.output_scores))


def _advance(
    groups: list[_Group], scores_RV: Tensor, stream: random.Random | None, watcher: BeamWatcher | None, per_beam: int
) -> None:
    """Run one step of a prompt's groups in turn, each penalised for the tokens that earlier groups have just taken.

    Args:
        per_beam: candidates for each beam, so that enough remain where some of them end.
    """
    taken: list[int] = []
    for group in groups:
        if not group.done:
            group_RV = scores_RV[[beam.row for beam in group.running]]
            if taken:
                counts_V = torch.bincount(torch.tensor(taken, device=group_RV.device), minlength=group_RV.size(1))
                group_RV = group_RV - group.diversity_penalty * counts_V
            candidates = _candidates(group, group_RV, per_beam * group.size, stream)
            group.advance(candidates)
            if watcher is not None:
                watcher.beams(group.prompt, candidates, group.running, group.finished)
            taken += group.taken  # a group that was done before takes nothing


def _candidates(group: _Group, scores_RV: Tensor, count: int, stream: random.Random | None) -> list[Beam]:
    """Return the best continuations of all running beams, best first; or drawn ones, in the order of drawing."""
    before_R1 = scores_RV.new_tensor([beam.log_probability for beam in group.running])[:, None]
    total_N = (scores_RV + before_R1).flatten()
    if stream is None:
        values, places = total_N.topk(min(count, len(total_N)))
    else:
        places = draw_without_replacement(total_N, count, stream)
        values = total_N[places]
    chances: list[float | None] = [None] * len(places)
    if group.output_scores:
        chances = scores_RV.log_softmax(-1).flatten()[places].tolist()
    vocabulary = scores_RV.size(1)
    found = []
    for value, place, chance in zip(values.tolist(), places.tolist(), chances, strict=True):
        if value > float("-inf"):
            before = group.running[place // vocabulary]
            own = () if chance is None else (*before.chances, chance)
            found.append(Beam((*before.tokens, place % vocabulary), value, before.row, own))
    return found


class _BeamStreamer:
    """Emits the tokens that are certain, and at the end the answers."""

    def __init__(self, prompts: list[list[_Group]]) -> None:
        self.prompts = prompts
        self.emitted = [0] * len(prompts)
        self.reported: list[StopReason | None] = [None] * len(prompts)

    def steps(self) -> Iterator[Step]:
        """Emit the tokens of each prompt's best answer that have become certain. Groups have nothing in common to emit."""
        certain = [groups[0].common_prefix() if len(groups) == 1 else () for groups in self.prompts]
        done = [groups[0].best()[:1] if len(groups) == 1 and groups[0].done else [] for groups in self.prompts]
        yield from self._emit(certain, [best[0].reason if best else None for best in done])

    def _emit(self, certain: Sequence[tuple[int, ...]], reasons: list[StopReason | None]) -> Iterator[Step]:
        places = range(len(certain))
        while any(self.emitted[i] < len(certain[i]) or self.reported[i] != reasons[i] for i in places):
            step: list[int | None] = []
            for index, tokens in enumerate(certain):
                more = self.emitted[index] < len(tokens)
                step.append(tokens[self.emitted[index]] if more else None)
                self.emitted[index] += more
            self.reported = [reasons[i] if self.emitted[i] >= len(certain[i]) else None for i in places]
            yield step, self.reported

    def finish(self, returned: int, output_scores: bool) -> Search:
        """Emit the rest; return `returned` answers for each prompt, with an empty row for each that was not found."""
        none = Hypothesis((), -math.inf, -math.inf, "exhausted")
        answers = []
        for groups in self.prompts:
            found = sorted((h for group in groups for h in group.best()), key=lambda h: -h.score)
            answers.append((found + [none] * returned)[:returned])
        yield from self._emit([found[0].tokens for found in answers], [found[0].reason for found in answers])
        flat = [hypothesis for found in answers for hypothesis in found]
        tokens, reasons, scores = zip(*((h.tokens, h.reason, h.score) for h in flat), strict=True)
        return Generation(tokens, reasons, tuple(h.chances for h in flat) if output_scores else None, scores)
