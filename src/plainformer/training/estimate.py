"""What a prepared run needs of memory and disk, counted: its largest micro-batch is made, and nothing is loaded or run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from plainformer.checkpoint.matrices import chosen, matrices_of
from plainformer.config import ModelConfig
from plainformer.config.parallel import processes
from plainformer.config.shapes import parameters
from plainformer.config.training import TrainConfig
from plainformer.families import table_for
from plainformer.plan.devices import Device, of_size
from plainformer.plan.lengths import SAMPLES
from plainformer.plan.machine import available_memory
from plainformer.plan.planned import Plan as Planned
from plainformer.plan.planned import planned
from plainformer.plan.states import trained_shapes
from plainformer.plan.workload import Workload
from plainformer.planning.options import adapted
from plainformer.planning.runs import workload_of
from plainformer.train.feeder import collated
from plainformer.train.history import BYTES
from plainformer.train.plan import MicroBatch, Plan
from plainformer.training.example_table import history_of
from plainformer.training.prepared import Prepared
from plainformer.training.scored import loss_bytes

_LOOKED_AT = 50  # steps among which the largest micro-batch is sought: with batches of like length, one pool
_NUMBER = 4  # bytes: weights are trained in fp32


@dataclass(frozen=True)
class Needs:
    """What a run needs.

    Attributes:
        step: the plan of a step with the largest micro-batch, for the memory that is available where the run is to be.
        parameters, trained: numbers, tied ones counted once; with adapters, theirs too.
        checkpoint: bytes of one checkpoint. checkpoints: how many are on the disk at a time, at most.
        losses: bytes of the losses of each example, which evaluations leave.
    """

    step: Planned
    parameters: int
    trained: int
    checkpoint: int
    checkpoints: int
    losses: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        names = ("parameters", "trained", "checkpoint", "checkpoints", "losses")
        return {"memory": self.step.peak, **{name: getattr(self, name) for name in names}}


def needs_of(prepared: Prepared) -> Needs:
    """Return what a run needs. A checkpoint has the weights, or the adapters alone, and AdamW's two numbers of what is trained."""
    config, model = prepared.config, prepared.start.config
    added, trained = trained_numbers(model, config)
    whole = sum(parameter.size for parameter in parameters(model).values())
    lora = config.model.lora
    saved = whole if lora is None or lora.merge else trained
    kept = 2 + (config.optimizer.ema is not None)
    return Needs(
        plan_of(prepared),
        parameters=whole + added,
        trained=trained,
        checkpoint=_NUMBER * (saved + kept * trained) + BYTES * len(history_of(prepared).last),
        checkpoints=config.checkpoints.keep + 3,  # the best, the last, and one that is being written
        losses=loss_bytes(prepared),
    )


def trained_numbers(model: ModelConfig, run: TrainConfig) -> tuple[int, int]:
    """Return the numbers that adapters add to a model, and all that are trained."""
    kind, added = run.model.train, 0
    if run.model.lora is not None:
        kind, rank = "lora", run.model.lora.rank
        linears = {name: one.shape for name, one in parameters(model).items() if one.kind == "linear"}
        for matrix in chosen(
            matrices_of(model, linears, table_for(model)), run.model.lora.targets, "model.lora.targets"
        ):
            shapes = [linears[f"{name}.weight"] for name in matrix.ours]
            added += rank * (shapes[0][1] + sum(shape[0] for shape in shapes))
    return added, added + sum(map(math.prod, trained_shapes(model, kind).values()))


def plan_of(prepared: Prepared) -> Planned:
    """Return the plan of a run's step, phase by phase, for its largest micro-batch."""
    config, layout = prepared.config, prepared.config.parallel.planned(processes())
    batch = collated(prepared.objective, prepared.examples, largest(prepared.plan), config.seed, 0)
    padded = {} if prepared.plan.row_length is not None else {"padded": "attention_mask" in batch.inputs}
    workload = Workload(**workload_of(config, layout.dp) | sizes_of(batch.inputs) | padded)
    model = prepared.start.config
    return planned(model, adapted(model, workload), layout, room(config, layout.world), name=model.family)


def sizes_of(inputs: dict[str, Tensor]) -> dict[str, Any]:
    """Return the sizes of what a model is given, as options of `Workload`."""
    found: dict[str, Any] = {}
    first = next(tensor for name, tensor in inputs.items() if not name.startswith("decoder_"))
    found["batch"] = len(first)
    if (ids := inputs.get("input_ids")) is not None:
        found |= {"batch": ids.numel() // ids.size(-1), "length": ids.size(-1)}
    if (ids := inputs.get("decoder_input_ids")) is not None:
        found["target_length"] = ids.size(-1)
    if (wave := inputs.get("input_values")) is not None:
        found["seconds"] = wave.size(-1) / SAMPLES
    if (pixels := inputs.get("pixel_values")) is not None:
        found["image_size"] = f"{pixels.size(-2)}x{pixels.size(-1)}"
    return found


def room(config: TrainConfig, count: int) -> Device | None:
    """Return the memory that each of some processes finds; None where the device of the run is not here."""
    if config.device == "cpu":
        return of_size(available_memory() // count)
    if not torch.cuda.is_available():
        return None
    return replace(of_size(torch.cuda.mem_get_info(torch.device(config.device))[0]), kind="gpu")


def largest(plan: Plan) -> MicroBatch:
    """Return the micro-batch with the most positions, padding counted, among those of the first steps."""
    steps = range(min(_LOOKED_AT, plan.total_steps))
    return max((rows for step in steps for rows in plan.step(step).micro), key=lambda rows: positions(plan, rows))


def positions(plan: Plan, rows: MicroBatch) -> int:
    """Return how many positions rows have when they are padded to the longest."""
    return len(rows) * max(sum(map(plan.tokens_of, row)) for row in rows)
