"""What the ranks of a training run tell each other between forward and backward passes: who takes which micro-batch, sums of
losses and labels, flags that all agree on, the norm of all gradients, gradients of what several ranks have.

Every rank makes the same calls in the same order. With one process nothing is said, and nothing waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plainformer.config.layout import Layout, Place
from plainformer.config.local import Local, chunk_rows, shared
from plainformer.model.transformer import Transformer
from plainformer.parallel.gather import Team, local_of
from plainformer.parallel.mesh import Mesh

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # for the process that reads the data first


class Turn(NamedTuple):
    """A micro-batch, by its number in the step; not `counts`: it runs because others run, and nothing comes of it."""

    micro: int
    counts: bool = True


def dealt(count: int, ranks: int, rank: int) -> list[Turn]:
    """Return which of `count` micro-batches one of several ranks runs, in rounds: all ranks run equally many."""
    rounds = -(-count // ranks)
    numbers = [turn * ranks + rank for turn in range(rounds)]
    return [Turn(number, True) if number < count else Turn(number % count, False) for number in numbers]


class Ranks:
    """The processes of a run, as its loop sees them.

    Args:
        mesh: None for one process.
    Attributes:
        count, index: of data-parallel ranks, and this one's number. is_first: this process writes for all.
        team: all processes; None for one.
    """

    def __init__(self, mesh: Mesh | None = None) -> None:
        layout = mesh.layout if mesh is not None else Layout()
        self.mesh = mesh if mesh is not None and mesh.world is not None else None
        self.team = Team.of(self.mesh) if self.mesh is not None else None
        self.count, self.index = layout.dp, mesh.place.dp if mesh is not None else 0
        self.is_first = mesh is None or mesh.is_first
        self._dp = mesh.dp if mesh is not None else None

    def dealt(self, count: int) -> list[Turn]:
        """Return which of `count` micro-batches of a step, or batches of an evaluation, this rank runs."""
        return dealt(count, self.count, self.index)

    def sums(self, numbers: Sequence[int]) -> list[int]:
        """Return the sums of whole numbers over the data-parallel ranks."""
        if self._dp is None:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(found, group=self._dp)
        return [int(number) for number in found.tolist()]

    def total(self, loss: Tensor) -> Tensor:
        """Return the sum of a number, (), over data-parallel ranks and over stages, of which all but one have 0."""
        for group in (self._dp, self.mesh.pp if self.mesh is not None else None):
            if group is not None:
                dist.all_reduce(loss, group=group)
        return loss

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set on any rank."""
        if self.mesh is None:
            return flag
        found = torch.tensor(int(flag))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.mesh.world)
        return bool(found.item())

    def agreeing(self, ask: Callable[[], bool]) -> Callable[[], bool]:
        """Return a function that says on all ranks whether `ask` is true on any."""
        return ask if self.mesh is None else lambda: self.any(ask())

    def first(self, value: T) -> T:
        """Return what the first rank has given."""
        return value if self.team is None else self.team.first(lambda: value)

    def alone(self, act: Callable[[], T]) -> T:
        """Return what the first rank's `act` gives, however long that takes: it acts alone. What it raises, all raise."""
        return act() if self.team is None else self.team.first(act, PATIENCE)

    def gathered(self, value: T) -> list[T]:
        """Return what each data-parallel rank has given, in their order."""
        if self._dp is None:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self._dp)
        return found

    def everywhere(self, value: T) -> list[T]:
        """Return what each rank has given, in their order."""
        return [value] if self.team is None else self.team.gather(value)


# ----------------------------------------------------------------------------------------------------------------- gradients


def is_divided(tensor: Tensor) -> bool:
    """Return whether FSDP has divided a tensor among the data-parallel ranks."""
    return hasattr(tensor, "to_local")


def gradient_norm(model: Transformer, mesh: Mesh) -> Tensor:
    """Return the norm of all ranks' gradients, (), each number counted once. Nothing of a GPU's is waited for.

    Where ranks have the same numbers, the first of them counts: `Part.first` among those of tensor and pipeline parallel; in
    data parallel all have the same unless FSDP has divided them, whose placements need not be asked: every shard counts.
    """
    once: list[Tensor] = []
    divided: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.grad is None or (
            model.local is not None and not model.local.part(name, tuple(parameter.shape)).first
        ):
            continue
        (divided if is_divided(parameter.grad) else once).append(local_of(parameter.grad))
    total = _squares(divided, mesh.device)
    if mesh.dp is not None and any(is_divided(parameter) for parameter in model.parameters()):
        dist.all_reduce(total, group=mesh.dp)
    total += _squares(once, mesh.device)
    for group in (mesh.tp, mesh.pp):
        if group is not None:
            dist.all_reduce(total, group=group)
    return total.sqrt().float()


def _squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Return the sum of squares of all numbers, in fp64."""
    whole = [tensor for tensor in tensors if tensor.numel()]
    if not whole:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(whole)).double().square().sum()  # type: ignore[no-untyped-call]


@torch.no_grad()
def clip(parameters: Sequence[nn.Parameter], limit: float | None, norm: Tensor) -> None:
    """Scale gradients together so that a norm, (), becomes `limit` where it is more, as `clip_grads_with_norm_` does."""
    gradients = [local_of(p.grad) for p in parameters if p.grad is not None]
    if limit is not None and gradients:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor.to(gradients[0].device))


def add_up_shared(model: Transformer, mesh: Mesh) -> None:
    """Add up the gradients of parameters that several stages hold: tied tables, T5's bias, ALBERT's layer and its adapters."""
    if mesh.pp is None or model.local is None:
        return
    here = {part.name: name for name, part in model.local.parts.items()}
    parameters = dict(model.named_parameters())
    names = shared(model.config, mesh.layout)
    for name in parameters:
        stages = names.get(f"{name.partition('.adapter.')[0]}.weight")
        if stages is not None and ".adapter." in name:
            assert len(stages) == mesh.layout.pp, f"not all stages know of {name}"
            names[name], here[name] = stages, name
    held = {name: parameters[here[name]] for name in names if here.get(name) in parameters}
    trained = [int(name in held and held[name].grad is not None) for name in names]
    some = torch.tensor(trained, dtype=torch.uint8)
    dist.all_reduce(some, dist.ReduceOp.MAX, group=mesh.pp)
    for (name, stages), there in zip(names.items(), some.tolist(), strict=True):
        if not there:
            continue
        parameter = held.get(name)
        if parameter is not None and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradient = (
            torch.zeros(_shape(model, mesh, name, stages[0]), dtype=model.dtype, device=mesh.device)
            if parameter is None
            else local_of(parameter.grad)  # type: ignore[arg-type]
        )
        dist.all_reduce(gradient, group=mesh.pp)


def _shape(model: Transformer, mesh: Mesh, name: str, stage: int) -> tuple[int, ...]:
    """Return the shape of what a stage's rank, of this one's place in the other axes, has of a parameter's gradient."""
    place = Place(stage, mesh.place.dp, mesh.place.tp)
    parts = Local(model.config, mesh.layout, place).parts
    rows, *others = next(part for part in parts.values() if part.name == name).local_shape
    if mesh.layout.zero >= 2 and mesh.layout.dp > 1:
        start, stop = chunk_rows(rows, mesh.layout.dp, mesh.place.dp)
        rows = stop - start
    return (rows, *others)


def missing_gradients(parameters: Mapping[str, nn.Parameter], group: dist.ProcessGroup) -> None:
    """Give zeros to what has no gradient here, but on another rank; what has none anywhere is left as it is.

    A layer that is left out at random is left out on some ranks alone. In one process it has no gradient if it was left out
    in all micro-batches of a step, and then AdamW leaves it alone.
    """
    has = torch.tensor([int(p.grad is not None) for p in parameters.values()], dtype=torch.uint8)
    dist.all_reduce(has, dist.ReduceOp.MAX, group=group)
    for parameter, there in zip(parameters.values(), has.tolist(), strict=True):
        if there and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
