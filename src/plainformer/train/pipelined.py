"""A step's gradient where each process has some of the layers.

Every stage has the same micro-batches, so that each makes the masks and positions of its layers itself. The objective runs on
the last stage, on hidden states that have arrived; the others run the model alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from plainformer.config.training import TrainConfig
from plainformer.errors import UsageError, opt
from plainformer.parallel.pipeline import Pipeline, Work
from plainformer.parallel.sync import Turn
from plainformer.train.draws import torch_seed
from plainformer.train.noise import noised
from plainformer.train.objectives.base import Batch
from plainformer.train.plan import Step
from plainformer.train.run import Run


class Pipelined:
    """Makes the gradients of a run's steps."""

    def __init__(self, run: Run, pipeline: Pipeline) -> None:
        self.run, self.pipeline = run, pipeline

    def accumulate(self, step: Step, batches: Sequence[Batch], turns: Sequence[Turn], labels: int) -> Tensor:
        """See `plainformer.train.run.Pipeline`."""
        run, pipeline = self.run, self.pipeline
        parts = [
            (turn, place, run.here(part))
            for turn, batch in zip(turns, batches, strict=True)
            for place, part in enumerate(run.objective.apart(batch))
        ]
        turn, _, batch = parts[0]
        for _ in range(run.gradients.lacking(len(parts))):
            parts.append((turn._replace(counts=False), len(parts), batch))
        total = torch.zeros((), dtype=torch.float64, device=run.device)

        def loss(number: int) -> Tensor:
            turn, _, batch = parts[number]
            found = run.objective.loss(run.model, batch)
            counted = found.total if turn.counts else found.total * 0
            if turn.counts:
                run.history.take(step.step, batch, found)
            total.add_(counted.detach())
            return counted / labels

        @contextmanager
        def within(number: int) -> Iterator[None]:
            turn, place, batch = parts[number]
            # Other draws for other stages, or layers that are equally far from the cut would drop the same.
            draws = pipeline.stage + pipeline.count * place
            torch.manual_seed(torch_seed(run.config.seed, step.step, turn.micro, draws))
            with run.autocast(), noised(run.model, batch.noise):
                yield

        run.gradients.begin()
        pipeline.run(Work([batch.inputs for _, _, batch in parts], loss, within), last=run.gradients.last)
        run.gradients.finish()
        return total


def check_pipelined(config: TrainConfig) -> None:
    """Refuse what a pipeline does not do. Raises UsageError."""
    stages = config.parallel.pp
    if stages > 1 and config.loss.trim:
        what = f"{opt('loss.trim', config.loss.trim)} looks at all losses of a step before it learns from any"
        raise UsageError(f"{what}, which {opt('parallel.pp', stages)} does not do", f"leave {opt('parallel.pp')} out")
    if stages > 1 and config.model.train == "head":
        what = (
            f"{opt('model.train', 'head')} leaves all stages of {opt('parallel.pp', stages)} but the last without work"
        )
        raise UsageError(what, f"leave {opt('parallel.pp')} out")
