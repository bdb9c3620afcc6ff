"""What a prepared run needs of memory and disk: its model is loaded, and run once, forward."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from plainformer.config.parallel import processes
from plainformer.plan.planned import Plan as Planned
from plainformer.plan.planned import planned
from plainformer.plan.workload import Workload
from plainformer.planning.runs import workload_of
from plainformer.train.feeder import collated, moved
from plainformer.train.history import BYTES
from plainformer.train.needs import Needs, activation_bytes, needs
from plainformer.train.plan import MicroBatch, Plan
from plainformer.training.example_table import history_of
from plainformer.training.machine import machine
from plainformer.training.models import made_model
from plainformer.training.prepared import Prepared
from plainformer.training.scored import loss_bytes

_LOOKED_AT = 50  # steps among which the largest micro-batch is sought: with batches of like length, one pool


def needs_of(prepared: Prepared) -> Needs:
    """Return what a run needs: tensors are counted, and the activations measured on its largest micro-batch."""
    config, objective = prepared.config, prepared.objective
    with machine(config):
        model, _ = made_model(config, prepared.start, type(objective), None)
        batch = collated(objective, prepared.examples, largest(prepared.plan), config.seed, 0)
        batch = moved(batch, lambda tensor: tensor.to(model.device))
        low = config.precision == "bf16"
        with torch.autocast(model.device.type, torch.bfloat16) if low else nullcontext():
            kept = activation_bytes(lambda: objective.loss(model, batch).total, model.parameters())
    listed = BYTES * len(history_of(prepared).last)
    return needs(config, model.parameters(), kept, losses=loss_bytes(prepared), examples=listed)


def plan_of(prepared: Prepared) -> Planned:
    """Return the plan of a run's step, phase by phase, for its largest micro-batch; nothing is loaded or run."""
    rows, layout = largest(prepared.plan), prepared.config.parallel.planned(processes())
    asked = workload_of(prepared.config, layout.dp) | {
        "batch": len(rows),
        "length": max(positions(prepared.plan, rows) // len(rows), 1),
    }
    return planned(prepared.start.config, Workload(**asked), layout, name=prepared.start.config.family)


def largest(plan: Plan) -> MicroBatch:
    """Return the micro-batch with the most positions, padding counted, among those of the first steps."""
    steps = range(min(_LOOKED_AT, plan.total_steps))
    return max((rows for step in steps for rows in plan.step(step).micro), key=lambda rows: positions(plan, rows))


def positions(plan: Plan, rows: MicroBatch) -> int:
    """Return how many positions rows have when they are padded to the longest."""
    return len(rows) * max(sum(map(plan.tokens_of, row)) for row in rows)
