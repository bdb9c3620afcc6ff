"""What the loop is given, and what it remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from plainformer.config.training import TrainConfig
from plainformer.model.transformer import Transformer
from plainformer.parallel.data import Gradients, Replicas
from plainformer.parallel.gather import Holding
from plainformer.parallel.sync import Ranks, Turn
from plainformer.train.checkpoint import Checkpoints, Tensors, Written
from plainformer.train.example_losses import LossFiles, Scored
from plainformer.train.feeder import moved
from plainformer.train.finite import Finite
from plainformer.train.history import History
from plainformer.train.objectives.base import Batch, Metric, Objective
from plainformer.train.optimizer import Average
from plainformer.train.plan import Plan, Step
from plainformer.train.record import Record
from plainformer.train.trimming import Trimming


@dataclass
class State:
    """What a run knows of its past, besides tensors.

    Attributes:
        step: steps done. evaluated: the step of the last evaluation, -1 before the first.
        best: step, metric and value of the best evaluation. since_best: evaluations after it.
        loss, labels: sums since the last line of metrics.jsonl. tokens: learnt from, in all.
        ended: "" while it goes on, "stopped" when asked to, "early" without progress, "done" at the end.
    """

    step: int = 0
    evaluated: int = -1
    best: dict[str, Any] | None = None
    since_best: int = 0
    loss: float = 0.0
    labels: int = 0
    tokens: int = 0
    ended: str = ""


class Pipeline(Protocol):
    """Makes the gradients of a step where each process has some of the layers."""

    def accumulate(self, step: Step, batches: Sequence[Batch], turns: Sequence[Turn], labels: int) -> Tensor:
        """Add up the gradient of the mean over `labels` of a step's losses, complete in all groups of ranks.

        Args:
            batches: micro-batches of this data-parallel rank, equally many on all; the same on all stages.
            turns: the number in the step of each, and whether it counts.
            labels: of the whole step, before trimming.
        Returns:
            the summed loss of these micro-batches, (), fp64; 0 on all stages but the last.
        """


@dataclass
class Run:
    """Everything the loop works with; `plainformer.training` puts it together.

    Attributes:
        batches: step → its micro-batches, on the CPU.
        scored: what evaluations score: validation rows, then the probe; () for no evaluation. losses: where it is kept; None:
            another process does.
        history: what learning gave for each example.
        rate: step → learning rate. average: of the weights; it is what is evaluated and saved.
        metric: chooses the best checkpoint. evaluate_every, save_every: in steps.
        save_model, tensors: write the model into a folder; return what else is needed to go on.
        stop: whether to stop after this step. trimming: what steps leave out; None: nothing.
        ranks: the processes of the run. gradients: how theirs come together. replicas: copies of the model on other devices.
        pipeline: what makes the gradients of a model that is cut into stages; None: the loop does.
    """

    config: TrainConfig
    folder: Path
    model: Transformer
    objective: Objective
    plan: Plan
    batches: Callable[[int], tuple[Step, list[Batch]]]
    scored: Sequence[Scored]
    losses: LossFiles | None
    history: History
    optimizer: torch.optim.AdamW
    rate: Callable[[int], float]
    average: Average | None
    metric: Metric
    evaluate_every: int
    save_every: int
    checkpoints: Checkpoints
    save_model: Callable[[Path, State], Written]
    tensors: Callable[[], Mapping[str, Tensors | Holding]]
    record: Record
    stop: Callable[[], bool] = lambda: False
    trimming: Trimming | None = None
    ranks: Ranks = field(default_factory=Ranks)
    gradients: Gradients = field(default_factory=Gradients)
    replicas: Replicas | None = None
    pipeline: Pipeline | None = None

    def __post_init__(self) -> None:
        self.device = self.model.device
        self.finite = Finite(self.optimizer, self.device, self.ranks.is_first)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)

    @property
    def weights(self) -> AbstractContextManager[None]:
        """Within, the model has the weights that are evaluated and saved."""
        return self.average.in_place() if self.average is not None else nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in bf16 where that was asked for; weights and sums stay fp32."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.config.precision == "bf16" else nullcontext()

    def here(self, batch: Batch, model: Transformer | None = None) -> Batch:
        """Return a batch on the device of a model, by default of the run's."""
        device = self.device if model is None or self.replicas is None else model.device
        on_cpu = device.type == "cpu"
        return batch if on_cpu else moved(batch, lambda tensor: tensor.to(device, non_blocking=True))
