"""What a plan is made of: items in phases, for each rank that differs from the others. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from plainformer.plan.workload import Workload as Workload

# Names of items, so that one kind of memory has one name in every phase. An item may be any of these.
WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGE = "weights", "gradients", "optimizer", "average of the weights"
GATHERED, BUFFERS = "gathered weights", "communication buffers"
CACHE, GROWTH = "key-value cache", "growth of the cache"
ACTIVATIONS, LOGITS, MASKS = "activations", "logits and loss", "masks and rotations"
WORKSPACE, CONVERSION = "workspace", "conversion"
PARTS = (
    *(WEIGHTS, GATHERED, GRADIENTS, OPTIMIZER, AVERAGE, CACHE, GROWTH, ACTIVATIONS, LOGITS, MASKS),
    *(WORKSPACE, CONVERSION, BUFFERS),
)
# What happens in each phase, for people.
PHASES = {
    "load": "the weights are loaded",
    "encode": "the encoder reads the input",
    "prefill": "the prompt is read",
    "decode": "tokens are written one by one",
    "forward": "the model computes its answers",
    "loss": "scores and their loss are computed",
    "backward": "gradients are computed",
    "sync": "devices add up their gradients",
    "clip": "the norm of the gradients is computed",
    "step": "the optimizer moves the weights",
    "save": "a checkpoint is written",
}


@dataclass(frozen=True)
class Item:
    """Memory of one kind in one phase.

    Attributes:
        name: of its kind, one of `PARTS`. bytes: how much. note: what has to be known of it, such as a dtype.
    """

    name: str
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class Phase:
    """What is alive at one moment: load, prefill, decode; forward, loss, backward, sync, clip, step, save."""

    name: str
    items: tuple[Item, ...]

    @property
    def bytes(self) -> int:
        """Return the sum."""
        return sum(item.bytes for item in self.items)

    def parts(self) -> dict[str, int]:
        """Return bytes by name; equal names are added up, and empty ones left out."""
        found: dict[str, int] = {}
        for item in self.items:
            found[item.name] = found.get(item.name, 0) + item.bytes
        return {name: size for name, size in found.items() if size}


@dataclass(frozen=True)
class RankPlan:
    """What one rank holds, and all that are like it.

    Attributes:
        ranks: that need the same. place: where the first of them is ("stage 1 of 2, tp 0 of 2"); "" for a single process.
        phases: in the order in which they happen.
    """

    ranks: tuple[int, ...]
    place: str
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        """Return the phase that needs most; of equal ones, the first."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def bytes(self) -> int:
        """Return the bytes of the peak."""
        return self.peak.bytes

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "ranks": list(self.ranks),
            "place": self.place,
            "peak": self.bytes,
            "phase": self.peak.name,
            "phases": {phase.name: {"bytes": phase.bytes, "parts": phase.parts()} for phase in self.phases},
        }


def alike(ranks: Iterable[RankPlan]) -> tuple[RankPlan, ...]:
    """Return one plan for all ranks whose phases are equal; the first of them says where they are."""
    found: dict[Sequence[Phase], RankPlan] = {}
    for one in ranks:
        before = found.get(one.phases)
        found[one.phases] = one if before is None else RankPlan(before.ranks + one.ranks, before.place, one.phases)
    return tuple(found.values())
