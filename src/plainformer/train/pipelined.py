"""A step's gradient where each process has some of the layers.

Every stage has the same micro-batches, so that each makes the masks and positions of its layers itself. The objective runs on
the last stage, on hidden states that have arrived; the others run the model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from plainformer.parallel.pipeline import Pipeline, Work
from plainformer.parallel.sync import Turn
from plainformer.train.draws import torch_seed
from plainformer.train.noise import noised
from plainformer.train.objectives.base import Batch, Loss
from plainformer.train.plan import Step
from plainformer.train.run import Run
from plainformer.train.trimming import Trimming


@dataclass(frozen=True)
class Part:
    """What the model runs on at once: a micro-batch, or the `place`-th of the parts that its objective divides it into."""

    turn: Turn
    place: int
    batch: Batch

    @property
    def key(self) -> tuple[int, int]:
        """Its number among all parts of the step."""
        return self.turn.micro, self.place


class Pipelined:
    """Makes the gradients of a run's steps."""

    def __init__(self, run: Run, pipeline: Pipeline) -> None:
        self.run, self.pipeline = run, pipeline

    def accumulate(self, step: Step, batches: Sequence[Batch], turns: Sequence[Turn], labels: int) -> Tensor:
        """See `plainformer.train.run.Pipeline`."""
        run = self.run
        parts = [
            Part(turn, place, run.here(batch))
            for turn, whole in zip(turns, batches, strict=True)
            for place, batch in enumerate(run.objective.apart(whole))
        ]
        first = parts[0]
        for _ in range(run.gradients.lacking(len(parts))):
            parts.append(Part(first.turn._replace(counts=False), len(parts), first.batch))
        trimming = run.trimming if run.trimming is not None and run.trimming.begun(step.step) else None
        kept, left = self._kept(trimming, step, parts) if trimming is not None else (None, labels)
        total = torch.zeros((), dtype=torch.float64, device=run.device)

        def loss(number: int) -> Tensor:
            part = parts[number]
            found = self._loss(part)
            if not part.turn.counts:
                return found.total * 0 / left
            counted = found.total if kept is None else found.of_rows(kept[part.key].to(found.values.device))
            run.history.take(step.step, part.batch, found)
            total.add_(counted.detach())
            return counted / left

        run.gradients.begin()
        self.pipeline.run(self._work(step, parts, loss), last=run.gradients.last)
        run.gradients.finish()
        return total

    def _kept(
        self, trimming: Trimming, step: Step, parts: Sequence[Part]
    ) -> tuple[dict[tuple[int, int], Tensor], Tensor]:
        """Return which rows of each part trimming keeps, as weights of 1 or 0, (B,), and how many labels they have, ().

        All parts run twice: only the last stage sees their losses, and tells them to all, who then choose alike.
        """
        known: list[tuple[tuple[int, int], tuple[int, ...], Tensor, Tensor]] = []

        def loss(number: int) -> Tensor:
            part = parts[number]
            found = self._loss(part)
            if part.turn.counts:
                known.append((part.key, part.batch.examples, found.per_row.cpu(), found.labels_per_row.cpu()))
            return found.total

        self.pipeline.look(self._work(step, parts, loss))
        every = sorted(
            {one[0]: one for told in self.run.ranks.everywhere(known) for one in told}.values(),
            key=lambda one: one[0],
        )
        device = self.run.device
        losses = [Loss(sums.to(device), labels=labels.to(device)) for _, _, sums, labels in every]
        kept = trimming.choose(step, [examples for _, examples, _, _ in every], losses)
        return {one[0]: rows for one, rows in zip(every, kept.rows, strict=True)}, kept.labels

    def _loss(self, part: Part) -> Loss:
        return self.run.objective.loss(self.run.model, part.batch)

    def _work(self, step: Step, parts: Sequence[Part], loss: Callable[[int], Tensor]) -> Work:
        """Return a step's passes: each draws the same numbers whenever it runs."""
        run, pipeline = self.run, self.pipeline

        @contextmanager
        def within(number: int) -> Iterator[None]:
            part = parts[number]
            # Other draws for other stages, or layers that are equally far from the cut would drop the same.
            draws = pipeline.stage + pipeline.count * part.place
            torch.manual_seed(torch_seed(run.config.seed, step.step, part.turn.micro, draws))
            with run.autocast(), noised(run.model, part.batch.noise):
                yield

        return Work([part.batch.inputs for part in parts], loss, within)
