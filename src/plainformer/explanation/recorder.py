"""Watch a generation and keep what explains each step: the likeliest tokens, never a whole row of logits.

Shapes: R rows, V vocabulary, N tokens kept of each row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plainformer.config.values import check_whole
from plainformer.errors import UsageError
from plainformer.explanation.trace_format import BeamGroup, Branch, Effect, Fate, FinalToken, Ladder, Pick, TraceStep
from plainformer.generation.modes.beam import Beam, Hypothesis
from plainformer.generation.sessions.session import Session

INFINITY = float("inf")


class Recorder:
    """A watcher for `generate(..., watcher=Recorder())` that keeps every step of one prompt.

    Args:
        width: how many tokens of each row are kept.
    Attributes:
        steps: so far. Rows that have ended are in them until the generation has: `record` leaves them out.
    """

    def __init__(self, width: int = 5) -> None:
        check_whole("width", width)
        self.width = width
        self.steps: list[TraceStep] = []
        self._rungs: _Rungs  # of this step
        self._groups: list[BeamGroup] = []
        self._first_rows: list[int] = []
        self._finished: dict[int, list[Hypothesis]] = {}
        self._session: Session | None = None
        self._begun = 0  # steps before this row's: of speculative decoding, they come one row after the other
        self._row = -1

    def processed(self, name: str, before_RV: Tensor, after_RV: Tensor) -> None:
        """Keep what a processor did; the name "logits" is of the model's own logits, which begin a step."""
        if name == "logits":
            self._rungs = _Rungs(self.width, before_RV)
        else:
            self._rungs.add(name, before_RV, after_RV)

    def picked(self, logits_RV: Tensor, picked_R: Tensor, draws_R: Tensor | None, session: Session) -> None:
        """Keep a step that picked a token for each row."""
        first = self._enter(session)
        logits_RV = logits_RV.float()
        probabilities_R = logits_RV.softmax(-1).gather(1, picked_R[:, None])[:, 0].tolist()
        ranks_R = (1 + (logits_RV > logits_RV.gather(1, picked_R[:, None])).sum(-1)).tolist()
        draws = draws_R.tolist() if draws_R is not None else [None] * len(picked_R)
        rows = zip(picked_R.tolist(), probabilities_R, ranks_R, draws, strict=True)
        picks = tuple(Pick(row, *values) for row, values in enumerate(rows, first))
        self._keep(session, self._rungs.ladders(logits_RV, first), picks=picks)

    def beams(self, prompt: int, candidates: list[Beam], running: list[Beam], finished: list[Hypothesis]) -> None:
        """Keep a group's candidates and what became of each."""
        if prompt:
            raise _one_prompt()
        if not candidates:
            return
        source = min(beam.row for beam in candidates)
        if not self.steps:  # in the first step a group's candidates all come from its first row
            self._first_rows.append(source)
        group = max(index for index, first in enumerate(self._first_rows) if first <= source)
        places = {id(beam): self._first_rows[group] + place for place, beam in enumerate(running)}
        before = self._finished.get(group, [])
        new = {h.tokens: h.score for h in finished if h not in before}
        branches = []
        for beam in candidates:
            row, score = places.get(id(beam)), new.get(beam.tokens)
            fate: Fate = "runs" if row is not None else "finished" if score is not None else "pruned"
            branches.append(Branch(beam.row, beam.tokens[-1], beam.log_probability, fate, row, score))
        dropped = tuple(h.score for h in before if h not in finished)
        self._finished[group] = list(finished)
        self._groups.append(BeamGroup(group, tuple(branches), dropped))

    def searched(self, logits_RV: Tensor, session: Session) -> None:
        """Keep a step of beam search, after `beams` of all its groups."""
        self._enter(session)
        sources = {branch.parent for group in self._groups for branch in group.branches}
        ladders = tuple(ladder for ladder in self._rungs.ladders(logits_RV.float()) if ladder.row in sources)
        self._keep(session, ladders, groups=tuple(self._groups))
        self._groups = []

    def _keep(self, session: Session, ladders: tuple[Ladder, ...], **chosen: Any) -> None:
        cache, number = session.cache, len(self.steps) + 1 - self._begun
        step = TraceStep(number, cache.length, cache.used_bytes(), cache.memory_bytes(), ladders, **chosen)
        self.steps.append(step)
        self.closed(step)

    def closed(self, step: TraceStep) -> None:
        """Called after each complete step; override to observe."""

    def _enter(self, session: Session) -> int:
        """Return the number of the session's first row; refuse a second prompt."""
        if len(session.prompt) != 1 or (self._session is not None and session.prompt is not self._session.prompt):
            raise _one_prompt()
        if session.length == session.prompt_columns:
            self._session, self._begun, self._row = session, len(self.steps), self._row + 1
        return self._row


def _one_prompt() -> UsageError:
    return UsageError(
        "a recorder sees one prompt, and this is a batch", "record each by itself: its answer is the same as in a batch"
    )


class _Rungs:
    """The effects of one step's processors, for all rows at once."""

    def __init__(self, width: int, logits_RV: Tensor) -> None:
        self.top_RN = logits_RV.topk(min(width, logits_RV.size(-1)), dim=-1).indices
        self.logits = _finite(logits_RV.gather(1, self.top_RN))
        self.effects: list[list[Effect]] = [[] for _ in range(len(logits_RV))]

    def add(self, name: str, before_RV: Tensor, after_RV: Tensor) -> None:
        possible_RV, were_RV = after_RV > -INFINITY, before_RV > -INFINITY
        counts_R3 = torch.stack(
            [((after_RV != before_RV) & possible_RV).sum(-1), (were_RV & ~possible_RV).sum(-1), possible_RV.sum(-1)], -1
        )
        before, after = (_finite(logits_RV.gather(1, self.top_RN)) for logits_RV in (before_RV, after_RV))
        rows = zip(self.effects, counts_R3.tolist(), self.top_RN.tolist(), before, after, strict=True)
        for effects, (changed, banned, left), ids, was, now in rows:
            lost = tuple(i for i, old, new in zip(ids, was, now, strict=True) if old is not None and new is None)
            effects.append(Effect(name, changed, banned, left, tuple(was), tuple(now), lost))

    def ladders(self, final_RV: Tensor, first: int = 0) -> tuple[Ladder, ...]:
        """Return a ladder for each row, given its logits (fp32) after all processors."""
        p_RV = final_RV.softmax(-1)
        best_RN = final_RV.topk(self.top_RN.size(1), dim=-1).indices
        best = (best_RN.tolist(), _finite(final_RV.gather(1, best_RN)), p_RV.gather(1, best_RN).tolist())
        # What is impossible is not a candidate, even where fewer than N tokens are left.
        final = [
            [token for token in map(FinalToken, *values) if token.logit is not None]
            for values in zip(*best, strict=True)
        ]
        columns = (self.top_RN.tolist(), self.logits, self.effects, p_RV.gather(1, self.top_RN).tolist(), final)
        return tuple(Ladder(row, *map(tuple, values)) for row, values in enumerate(zip(*columns, strict=True), first))


def _finite(values_RN: Tensor) -> list[list[float | None]]:
    return [
        [value if abs(value) < INFINITY else None for value in row]  # NaN compares as False too
        for row in values_RN.float().tolist()
    ]


def without_ended(steps: list[TraceStep], lengths: list[int]) -> tuple[TraceStep, ...]:
    """Return steps without rows that had ended before them; `lengths`: of the answers."""

    def running(step: TraceStep) -> TraceStep:
        picks = tuple(pick for pick in step.picks if step.number <= lengths[pick.row])
        ladders = tuple(ladder for ladder in step.ladders if step.number <= lengths[ladder.row])
        return replace(step, picks=picks, ladders=ladders)

    kept = (running(step) if step.picks else step for step in steps)
    return tuple(step for step in kept if step.picks or step.groups)
