"""Distillation: learn the labels and, beside them, what a teacher expects in their places (Hinton et al. 2015).

Shapes: N labels, D hidden size, C classes, M numbers that a metric is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plainformer.errors import UsageError, opt
from plainformer.model.dropout import never_drop
from plainformer.train.losses import distillation_losses, labels_at_a_time
from plainformer.train.objectives.base import Arrays, Batch, Encoded, Loss, Objective
from plainformer.train.objectives.words import WordObjective, labelled_states, most_positions

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.model.transformer import Transformer


class Distilled(Objective):
    """Another objective with (1 - w) of its own loss and w of the divergence from a teacher, at the same labels.

    w is `loss.teacher_weight`; the divergence is T² KL(teacher || student), both with `loss.temperature` T. Evaluation is
    that of the objective: how near the teacher is says little about the student.

    Args:
        inner: what is learned. teacher: a model of the same tokens and labels (`check_teacher`), where the student is; it no longer
            drops anything.
    """

    def __init__(self, inner: Objective, teacher: Transformer) -> None:
        super().__init__(inner.config, inner.model_config, inner.processor)
        if not inner.distils:
            what = f"{opt('objective', inner.name)} has no scores that a teacher could have, too"
            raise UsageError(what, f"leave {opt('loss.teacher')} out")
        self.inner, self.teacher = inner, never_drop(teacher).requires_grad_(False)
        self.weight, self.temperature = inner.config.loss.teacher_weight, inner.config.loss.temperature
        for name in ("name", "head", "columns", "packs", "metrics"):
            setattr(self, name, getattr(inner, name))

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        """Run both models."""
        own_N, far_N = (self._words if isinstance(self.inner, WordObjective) else self._classes)(model, batch)
        losses_N = far_N * self.weight
        if own_N is not None:
            losses_N = losses_N + (1 - self.weight) * own_N
        return Loss(losses_N, batch.targets.get("per_row"))

    def _classes(self, model: Transformer, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Return the losses of labels and the divergences, each (N,)."""
        scores_NC = self.inner.scored(model, batch)
        with torch.no_grad():
            teacher_NC = self.inner.scored(self.teacher, batch)
        far_N = distillation_losses(scores_NC, teacher_NC, self.temperature)
        return (self.inner.scored_losses(scores_NC, batch) if self.weight < 1 else None), far_N

    def _words(self, model: Transformer, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """The same where the classes are a vocabulary: not all scores of all labels exist at once."""
        assert isinstance(self.inner, WordObjective)
        states_ND = labelled_states(model, batch)
        with torch.no_grad():
            teacher_ND = labelled_states(self.teacher, batch)
        size = labels_at_a_time(self.config.loss.chunk, model.config.head.out_size, len(states_ND))
        parts = list(zip(states_ND.split(size), teacher_ND.split(size), strict=True))
        if len(parts) == 1 or not torch.is_grad_enabled():
            far = [self._far(model, *part) for part in parts]
        else:  # the scores are made again for the gradient
            far = [checkpoint(self._far, model, *part, use_reentrant=False) for part in parts]
        own_N = self.inner.losses(model, states_ND, batch.targets["labels"]) if self.weight < 1 else None
        return own_N, torch.cat(far)

    def _far(self, model: Transformer, states_ND: Tensor, teacher_ND: Tensor) -> Tensor:
        scores_NC = model.score(states_ND)
        with torch.no_grad():
            teacher_NC = self.teacher.score(teacher_ND)
        known = min(scores_NC.size(-1), teacher_NC.size(-1))  # vocabularies are padded to round sizes
        return distillation_losses(scores_NC[:, :known], teacher_NC[:, :known], self.temperature)

    # ---- as the objective does it ---------------------------------------------------------------------------------

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """See the objective."""
        return self.inner.encode(row)

    def length(self, example: Arrays) -> int:
        """See the objective."""
        return self.inner.length(example)

    def part(self, example: Arrays, start: int, stop: int | None) -> Arrays:
        """See the objective."""
        return self.inner.part(example, start, stop)

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Batch:
        """See the objective."""
        return self.inner.collate(rows, draws)

    def apart(self, batch: Batch) -> Sequence[Batch]:
        """See the objective."""
        return self.inner.apart(batch)

    def texts(self, batch: Batch) -> list[list[int]]:
        """See the objective."""
        return self.inner.texts(batch)

    def statistics(self, model: Transformer, batch: Batch) -> npt.NDArray[np.float64]:
        """See the objective."""
        return self.inner.statistics(model, batch)

    def measured(self, sums: npt.NDArray[np.float64]) -> dict[str, float]:
        """See the objective."""
        return self.inner.measured(sums)

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """See the objective."""
        return self.inner.shown(example)


def check_teacher(objective: Objective, student: ModelConfig, teacher: ModelConfig, processor: Any) -> None:
    """Refuse a teacher whose scores mean something else than the student's.

    Args:
        processor: the teacher's tokenizer, or its processor of audio or images.
    Raises:
        UsageError: another head, vocabulary or labels, or a teacher that reads less than the student is given.
    """
    named = opt("loss.teacher", objective.config.loss.teacher)
    if teacher.head.kind != student.head.kind:
        what = f"{named} has a {teacher.head.kind} head, and the student a {student.head.kind} head"
        raise UsageError(what, "choose a teacher that was trained for the same")
    own = objective.processor
    for mine, theirs in ((own, processor), (getattr(own, "output", own), getattr(processor, "output", processor))):
        if hasattr(mine, "backend"):
            _check_vocabulary(_vocabulary(mine), _vocabulary(theirs), named)
    if student.labels != teacher.labels and not isinstance(objective, WordObjective):
        what = f"{named} tells the labels {_few(teacher.labels)} apart, and the student {_few(student.labels)}"
        raise UsageError(what, "both need the same labels in the same order")
    if isinstance(objective, WordObjective):
        packed = objective.packs and objective.config.batches.packed
        needed, most = (packed and objective.config.batches.row_length) or objective.limit, most_positions(teacher)
        if most is not None and (needed is None or needed > most):
            what = f"{named} reads {most} tokens, and the student {needed or 'any number'}"
            raise UsageError(what, f"give {opt('data.max_length', most)} or less")


def _vocabulary(tokenizer: Any) -> dict[str, int | None]:
    return {token: tokenizer.token_to_id(token) for token in tokenizer.backend.get_vocab()}


def _check_vocabulary(mine: Mapping[str, int | None], theirs: Mapping[str, int | None], named: str) -> None:
    other = next((token for token in {**mine, **theirs} if mine.get(token) != theirs.get(token)), None)
    if other is not None:
        here, there = (ids.get(other, "missing") for ids in (mine, theirs))
        what = f"{named} has another vocabulary: token {other!r} is {there} there, and {here} here"
        raise UsageError(what, "choose a teacher with the student's tokenizer")


def _few(labels: Sequence[str]) -> str:
    return ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
