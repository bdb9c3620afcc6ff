"""A plan: what a model needs for what is asked of it, device by device and phase by phase. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from plainformer.config.layout import Layout
from plainformer.config.model import ModelConfig
from plainformer.config.shapes import shapes
from plainformer.errors import UsageError, opt
from plainformer.plan.asked import TargetOptions
from plainformer.plan.assumptions import assumptions
from plainformer.plan.counted import file_types, rank_plans
from plainformer.plan.devices import Device, extras, short
from plainformer.plan.result import Item, RankPlan
from plainformer.plan.rules import Rule, rule_of
from plainformer.plan.stored import READ_AS_THEY_ARE, FileType, StoredFile
from plainformer.plan.time import Bound, bound_of
from plainformer.plan.workload import Workload


@dataclass(frozen=True)
class Plan:
    """What a model needs.

    Attributes:
        name: of the model. parameters: numbers, tied ones counted once.
        ranks: what each device holds, phase by phase; devices that hold the same are one entry.
        beside: memory of a GPU that no tensor has, as far as it is known.
        about: where the model's sizes are from, as far as that has to be said. notes: what was assumed, a sentence each.
        stored: the type of the weights in their file, or the file by its header; None where nothing is known of it.
    """

    name: str
    config: ModelConfig = field(repr=False)
    workload: Workload
    layout: Layout
    device: Device | None
    target: TargetOptions
    parameters: int
    ranks: tuple[RankPlan, ...] = field(repr=False)
    beside: tuple[Item, ...] = ()
    about: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stored: str | StoredFile | None = field(default=None, repr=False)

    @property
    def devices(self) -> tuple[RankPlan, ...]:
        """Return one entry for each device that differs from the others."""
        return self.ranks

    @property
    def worst(self) -> RankPlan:
        """Return the device that needs most."""
        return max(self.ranks, key=lambda rank: rank.bytes)

    @property
    def peak(self) -> int:
        """Return the bytes of tensors at the worst moment of the worst device: what `comparable_to` measures."""
        return self.worst.bytes

    @property
    def phase(self) -> str:
        """Return the phase of the peak."""
        return self.worst.peak.name

    @property
    def parts(self) -> dict[str, dict[str, int]]:
        """Return the bytes on the worst device by phase and name."""
        return {phase.name: phase.parts() for phase in self.worst.phases}

    @property
    def total(self) -> int:
        """Return the peak, with what a GPU holds besides tensors."""
        return self.peak + sum(item.bytes for item in self.beside)

    @property
    def fits(self) -> bool | None:
        """Return whether each device can hold its part; None where no device is named."""
        return None if self.device is None else self.total <= self.device.memory

    @property
    def headroom(self) -> int | None:
        """Return the bytes that are left on the worst device; less than 0: that are missing."""
        return None if self.device is None else self.device.memory - self.total

    @property
    def headroom_tokens(self) -> int | None:
        """Return how many more tokens a row can have."""
        most = self.largest_context
        return None if most is None else max(most - self.context, 0)

    @property
    def headroom_rows(self) -> int | None:
        """Return how many more rows a batch can have."""
        most = self.largest_batch
        return None if most is None else max(most - self.workload.batch, 0)

    @property
    def context(self) -> int:
        """Return the tokens of a row: of a prompt with what follows, or of a training example."""
        asked = self.workload
        return asked.length if asked.training else asked.prompt + asked.new

    @cached_property
    def largest_batch(self) -> int | None:
        """Return the most rows at a time that fit; 0: not even one; None where no device is named."""
        from plainformer.plan.fit import largest_batch

        return largest_batch(self)

    @cached_property
    def largest_context(self) -> int | None:
        """Return the longest row that fits, in tokens; 0: not even one; None: no device, or no text."""
        from plainformer.plan.fit import largest_context

        return largest_context(self)

    @cached_property
    def time(self) -> Bound | None:
        """Return the least time that it can take; None where the device's rates are not known."""
        return bound_of(self.config, self.workload, self.layout, self.device, self.target, self.stored)

    @cached_property
    def rule(self) -> Rule:
        """Return what the rule of thumb says, and how far off it is."""
        copies = 1 if self.layout.zero and self.workload.training else self.layout.dp
        return rule_of(self.name, self.config, self.workload, self.parameters, self.ranks, copies, self.stored)

    @property
    def comparable_to(self) -> str:
        """Return what the peak can be compared with; no other figure is the same."""
        if self.device is not None and self.device.kind == "gpu":
            return (
                "torch.cuda.max_memory_allocated; nvidia-smi shows the total, and what the allocator keeps in reserve"
            )
        return "what the allocator hands out; the resident set of a process also has Python and PyTorch, about 0.3 GB"

    @cached_property
    def file(self) -> tuple[FileType, ...]:
        """Return what a GGUF file stores, type by type, with what is held of it once it is loaded; () for no such file."""
        if not isinstance(self.stored, StoredFile):
            return ()
        on_gpu = self.device is not None and self.device.kind == "gpu"
        return file_types(self.config, self.workload, self.stored, alone=self.layout.world == 1, on_gpu=on_gpu)

    def with_workload(self, **changes: Any) -> Plan:
        """Return the plan for a changed workload."""
        return self._again(self.workload.changed(**changes), self.layout)

    def with_layout(self, layout: Layout) -> Plan:
        """Return the plan for another layout."""
        return self._again(self.workload, layout)

    def _again(self, workload: Workload, layout: Layout) -> Plan:
        about = self.name, self.about, self.stored
        return planned(self.config, workload, layout, self.device, self.target, *about)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it: bytes, seconds and counts."""
        from plainformer.plan.shown import as_dict

        return as_dict(self)

    def lines(self) -> list[str]:
        """Return it for people."""
        from plainformer.plan.shown import lines_of

        return lines_of(self)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        where = "" if self.device is None else f" of {short(self.device.memory)}"
        return f"Plan({self.name}, {self.workload.purpose}: {short(self.total)}{where} in {self.phase})"

    def _repr_html_(self) -> str:
        from plainformer.plan.shown import html_of

        return html_of(self)


def planned(
    config: ModelConfig,
    workload: Workload | None = None,
    layout: Layout | None = None,
    device: Device | None = None,
    target: TargetOptions | None = None,
    name: str = "",
    about: tuple[str, ...] = (),
    stored: str | StoredFile | None = None,
) -> Plan:
    """Return the plan of a model by its configuration; the arguments as the fields of `Plan`.

    Raises:
        UsageError: the layout cannot work for this model; the message has every reason, with what would.
    """
    workload, layout, target = workload or Workload(), layout or Layout(), target or TargetOptions()
    check_layout(config, layout)
    on_gpu = device is not None and device.kind == "gpu"
    check_quantized(workload, layout, stored, on_gpu=on_gpu)
    ranks = rank_plans(config, workload, layout, on_gpu=on_gpu, stored=stored)
    made = Plan(
        name=name or config.family,
        config=config,
        workload=workload,
        layout=layout,
        device=device,
        target=target,
        parameters=count_parameters(config),
        ranks=ranks,
        about=about,
        notes=(*about, *assumptions(config, workload, layout, device)),
        stored=stored,
    )
    return replace(made, beside=beside(made))


def check_layout(config: ModelConfig, layout: Layout) -> None:
    """Refuse a layout that cannot work for a model, with all reasons."""
    found = layout.problems(config)
    if found:
        raise UsageError("; ".join(one.what for one in found), "; ".join(one.fix for one in found))


def check_quantized(workload: Workload, layout: Layout, stored: str | StoredFile | None, *, on_gpu: bool) -> None:
    """Refuse weights that `load` could not round, or keep, like this."""
    kind = workload.quantized
    said = opt("dtype", "int8") if workload.dtype == "int8" else opt("quantize", kind)
    if kind is None:
        return
    if on_gpu:
        what = f"{said}: weights are rounded, or multiplied in a file's blocks, on a CPU alone"
        raise UsageError(what, f"give {opt('dtype', 'bf16')}, or leave {opt('device')} out for the arithmetic")
    if (kind == "int4" and layout.tp > 1) or (kind == "keep" and layout.tp * layout.pp > 1):
        one = f"{said} is for one process"
        raise UsageError(one, f"give {opt('quantize', 'int8')}, or leave {opt('tp')} and {opt('pp')} out")
    if kind == "keep" and not (isinstance(stored, StoredFile) and any(tensor.can_stay for tensor in stored.tensors)):
        what = f"{said} is for a GGUF file with matrices in blocks that are read as they are"
        raise UsageError(what, f"leave it out; such are {', '.join(READ_AS_THEY_ARE)}")


@lru_cache(maxsize=64)
def count_parameters(config: ModelConfig) -> int:
    """Return how many numbers a model has, tied ones counted once."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def beside(plan: Plan) -> tuple[Item, ...]:
    """Return what a GPU holds besides tensors: constants, which a measurement on the card replaces."""
    if plan.device is None or plan.device.kind != "gpu":
        return ()
    known = extras()
    items = [Item("CUDA context and kernels", known.context, f"{known.sources['context']}")]
    for name, count in (("tensor", plan.layout.tp), ("pipeline", plan.layout.pp), ("data", plan.layout.dp)):
        if count > 1:
            size = known.communicator if count == 2 else known.communicator_more
            items.append(Item(f"NCCL, {name}-parallel group", size, known.sources["communicator"]))
    share = round(plan.peak * known.fragmentation)
    items.append(
        Item("fragmentation", share, f"{known.fragmentation:.0%} of the peak, {known.sources['fragmentation']}")
    )
    return tuple(items)
