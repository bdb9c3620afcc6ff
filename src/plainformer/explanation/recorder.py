"""Watches a generation and keeps of each step what explains it: the likeliest tokens, never a whole row of logits.

Shapes: R rows, V vocabulary, K tokens that are kept of each row.
"""

from __future__ import annotations

from dataclasses import replace

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
        self._rungs = _Rungs(width)
        self._groups: list[BeamGroup] = []
        self._first_rows: list[int] = []
        self._finished: dict[int, list[Hypothesis]] = {}
        self._session: Session | None = None
        self._begun = 0  # steps before this row's: of speculative decoding, they come one row after the other
        self._row = -1

    def processed(self, name: str, before_RV: Tensor, after_RV: Tensor) -> None:
        """A processor's work; "logits" are the model's own, and begin a step."""
        if name == "logits":
            self._rungs = _Rungs(self.width)
            self._rungs.begin(before_RV)
        else:
            self._rungs.add(name, before_RV, after_RV)

    def picked(self, logits_RV: Tensor, picked_R: Tensor, draws_R: Tensor | None, session: Session) -> None:
        """A token for each row."""
        first = self._enter(session)
        logits_RV = logits_RV.float()
        probabilities_R = logits_RV.softmax(-1).gather(1, picked_R[:, None])[:, 0].tolist()
        ranks_R = (1 + (logits_RV > logits_RV.gather(1, picked_R[:, None])).sum(-1)).tolist()
        draws = draws_R.tolist() if draws_R is not None else [None] * len(picked_R)
        rows = zip(picked_R.tolist(), probabilities_R, ranks_R, draws, strict=True)
        picks = tuple(Pick(row, *values) for row, values in enumerate(rows, first))
        self._keep(session, self._rungs.ladders(logits_RV, first), picks, ())

    def beams(self, prompt: int, candidates: list[Beam], running: list[Beam], finished: list[Hypothesis]) -> None:
        """What became of a group's candidates."""
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
        """All groups of a step have been through `beams`; what the rows' scores were."""
        self._enter(session)
        sources = {branch.parent for group in self._groups for branch in group.branches}
        ladders = tuple(ladder for ladder in self._rungs.ladders(logits_RV.float()) if ladder.row in sources)
        groups, self._groups = tuple(self._groups), []
        self._keep(session, ladders, (), groups)

    def _keep(
        self, session: Session, ladders: tuple[Ladder, ...], picks: tuple[Pick, ...], groups: tuple[BeamGroup, ...]
    ) -> None:
        cache = session.cache
        step = TraceStep(len(self.steps) + 1 - self._begun, cache.length, cache.memory_bytes(), ladders, picks, groups)
        self.steps.append(step)
        self.closed(step)

    def closed(self, step: TraceStep) -> None:
        """Called after each complete step; override to observe."""

    def _enter(self, session: Session) -> int:
        """The number of its first row."""
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

    def __init__(self, width: int) -> None:
        self.width = width
        self.top_RK = torch.empty(0, 0, dtype=torch.long)
        self.logits: list[list[float | None]] = []
        self.effects: list[list[Effect]] = []

    def begin(self, logits_RV: Tensor) -> None:
        self.top_RK = logits_RV.topk(min(self.width, logits_RV.size(-1)), dim=-1).indices
        self.logits = _finite(logits_RV.gather(1, self.top_RK))
        self.effects = [[] for _ in range(len(logits_RV))]

    def add(self, name: str, before_RV: Tensor, after_RV: Tensor) -> None:
        possible_RV, were_RV = after_RV > -INFINITY, before_RV > -INFINITY
        counts_R3 = torch.stack(
            [((after_RV != before_RV) & possible_RV).sum(-1), (were_RV & ~possible_RV).sum(-1), possible_RV.sum(-1)], -1
        )
        before, after = (_finite(logits_RV.gather(1, self.top_RK)) for logits_RV in (before_RV, after_RV))
        rows = zip(self.effects, counts_R3.tolist(), self.top_RK.tolist(), before, after, strict=True)
        for effects, (changed, banned, left), ids, was, now in rows:
            values = zip(ids, was, now, strict=True)
            lost = tuple(i for i, old, new in values if old is not None and new is None)
            effects.append(Effect(name, changed, banned, left, tuple(was), tuple(now), lost))

    def ladders(self, final_RV: Tensor, first: int = 0) -> tuple[Ladder, ...]:
        """A ladder for each row, given its logits (fp32) after all processors."""
        p_RV = final_RV.softmax(-1)
        best_RK = final_RV.topk(self.top_RK.size(1), dim=-1).indices
        rows = zip(
            self.top_RK.tolist(),
            self.logits,
            self.effects,
            p_RV.gather(1, self.top_RK).tolist(),
            best_RK.tolist(),
            _finite(final_RV.gather(1, best_RK)),
            p_RV.gather(1, best_RK).tolist(),
            strict=True,
        )
        made = []
        for row, (ids, logits, effects, probabilities, best, scores, shares) in enumerate(rows, first):
            # What is impossible is not a candidate, even where fewer than K tokens are left.
            final = (FinalToken(*values) for values in zip(best, scores, shares, strict=True) if values[1] is not None)
            made.append(Ladder(row, tuple(ids), tuple(logits), tuple(effects), tuple(probabilities), tuple(final)))
        return tuple(made)


def _finite(values_RK: Tensor) -> list[list[float | None]]:
    return [
        [value if abs(value) < INFINITY else None for value in row]  # NaN compares as False too
        for row in values_RK.float().tolist()
    ]


def without_ended(steps: list[TraceStep], lengths: list[int]) -> tuple[TraceStep, ...]:
    """Steps without the rows that had ended before them, `lengths` being the answers'."""
    kept = []
    for step in steps:
        running = {row for row, length in enumerate(lengths) if step.number <= length}
        if step.picks:
            picks = tuple(pick for pick in step.picks if pick.row in running)
            ladders = tuple(ladder for ladder in step.ladders if ladder.row in running)
            step = replace(step, picks=picks, ladders=ladders)
        if step.picks or step.groups:
            kept.append(step)
    return tuple(kept)
