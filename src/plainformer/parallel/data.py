"""Data parallelism: ranks with their own rows and one set of weights, and what they share out of it (ZeRO, Rajbhandari 2020).

    zero 0   every rank has all; gradients are added up while the last backward pass still runs (DDP, Li et al. 2020)
    zero 1   and each keeps the optimizer's states of some whole parameters, of which it gives the others the new values
    zero 2   gradients and states of a part of each parameter; weights are whole from the first forward to the last backward
    zero 3   weights too: a layer's are whole while it runs

Losses are divided by the labels of a step on all ranks, so gradients are added up, never averaged: ranks hold different
numbers of labels. In the last two, torch's FSDP2 (`fully_shard`) does the work. Layers are units of their own; everything
else - tables, which may be tied to the head, and the head - is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plainformer.config import WaveFrontend
from plainformer.config.local import zero1_owners
from plainformer.errors import UsageError, opt
from plainformer.model.transformer import Transformer
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.sync import add_up_shared, missing_gradients

BUCKET = 25 << 20  # bytes of gradients that travel together: few messages, and the first leaves early
AHEAD = 2  # messages with new weights that are on their way at a time
METHODS = (
    "states",
    "score",
    "early_logits",
    "encode",
    "embed_tokens",
    "stage",
)  # besides forward, what a loop calls of a model


class Gradients:
    """How gradients of a step's micro-batches become those of all ranks; this one is of one data-parallel rank.

    Args:
        model, mesh: None for one process, of which there is nothing to bring together.
    """

    def __init__(self, model: Transformer | None = None, mesh: Mesh | None = None) -> None:
        self.model, self.mesh = model, mesh

    def begin(self) -> None:
        """Call it before the first backward pass of a step."""

    def last(self) -> None:
        """Call it before the forward pass whose backward pass is the step's last."""

    def finish(self) -> None:
        """Call it after that: gradients are then complete."""
        if self.model is not None and self.mesh is not None:
            if self.mesh.tp is not None:
                from plainformer.parallel.tensor import add_up_gradients

                add_up_gradients(self.model, self.mesh)
            add_up_shared(self.model, self.mesh)

    def stepped(self) -> None:
        """Call it after the optimizer's step."""

    def keeps(self, name: str) -> bool:
        """Return whether the optimizer's states of a parameter, or of a part of it, are kept here."""
        return True

    def lacking(self, passes: int) -> int:
        """Return how many passes of the model other ranks make for their micro-batch, beyond `passes`: make as many.

        All data-parallel ranks call it, before each micro-batch.
        """
        return 0

    def evaluated(self) -> None:
        """Call it when weights are about to change after forward passes without a backward pass."""


class Replicated(Gradients):
    """DDP and ZeRO-1.

    Gradients lie in flat buckets, from the head down, which is the order in which they become ready. A bucket leaves when all
    of it is ready, and all before it have left: ranks that leave out other layers still send the same.
    """

    def __init__(self, model: Transformer, mesh: Mesh) -> None:
        super().__init__(model, mesh)
        assert mesh.dp is not None
        self.group, self.index = mesh.dp, mesh.place.dp
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        sizes = {name: p.numel() for name, p in self.parameters.items()}
        self.owners = zero1_owners(sizes, mesh.layout.dp) if mesh.layout.zero == 1 else None
        self.buckets = [_Bucket(some, self.group) for some in in_buckets(list(self.parameters.values())[::-1])]
        self._of = {id(p): bucket for bucket in self.buckets for p in bucket.parameters}
        self._sends = False
        for parameter in self.parameters.values():
            parameter.register_post_accumulate_grad_hook(self._ready)

    def begin(self) -> None:
        self._sends, self._next = False, 0
        for bucket in self.buckets:
            bucket.begin()

    def last(self) -> None:
        self._sends = True

    def _ready(self, parameter: Tensor) -> None:
        self._of[id(parameter)].take(parameter)
        if not self._sends:
            return
        self._of[id(parameter)].missing.discard(id(parameter))
        while self._next < len(self.buckets) and not self.buckets[self._next].missing:
            self.buckets[self._next].send()
            self._next += 1

    def finish(self) -> None:
        for bucket in self.buckets[self._next :]:
            bucket.send()
        self._next, self._sends = len(self.buckets), False
        missing_gradients(self.parameters, self.group)
        for bucket in self.buckets:
            bucket.receive()
        super().finish()

    def keeps(self, name: str) -> bool:
        return self.owners is None or self.owners[name] == self.index

    @torch.no_grad()
    def stepped(self) -> None:
        """Give the others the new values of what is kept here, and take theirs."""
        if self.owners is None:
            return
        waiting: list[tuple[Any, Tensor, Sequence[nn.Parameter]]] = []
        for owner, rank in enumerate(dist.get_process_group_ranks(self.group)):
            for some in in_buckets([p for name, p in self.parameters.items() if self.owners[name] == owner]):
                if len(waiting) == AHEAD:
                    _arrived(*waiting.pop(0))
                flat = torch.cat([p.detach().flatten() for p in some])
                work = dist.broadcast(flat, src=rank, group=self.group, async_op=True)
                waiting.append((work, flat, some if owner != self.index else []))
        for one in waiting:
            _arrived(*one)


class _Bucket:
    """Gradients that travel together: from a step's first backward pass on, they are views of one tensor.

    Attributes:
        missing: whose last gradient of the step is still to come. parts: where each parameter's gradient lies.
    """

    def __init__(self, parameters: list[nn.Parameter], group: dist.ProcessGroup) -> None:
        self.parameters, self.group = parameters, group
        self.begin()

    def begin(self) -> None:
        self.missing = {id(parameter) for parameter in self.parameters}
        self.flat: Tensor | None = None  # from the first gradient on
        self.parts: dict[int, Tensor] = {}
        self.taken: set[int] = set()
        self.work: Any = None

    def _open(self) -> Tensor:
        if self.flat is None:
            sizes = [parameter.numel() for parameter in self.parameters]
            self.flat = self.parameters[0].new_empty(sum(sizes))
            parts = zip(self.parameters, self.flat.split(sizes), strict=True)
            self.parts = {id(parameter): part.view_as(parameter) for parameter, part in parts}
        return self.flat

    def take(self, parameter: Tensor) -> None:
        """Move a parameter's first gradient of a step here; those of later backward passes are added where it is."""
        if id(parameter) in self.taken:
            return
        self._open()
        self.taken.add(id(parameter))
        parameter.grad = self.parts[id(parameter)].copy_(parameter.grad)  # type: ignore[arg-type]

    def send(self) -> None:
        """Begin to add up; a parameter without a gradient has zeros."""
        flat = self._open()
        for key in self.parts.keys() - self.taken:
            self.parts[key].zero_()
        self.work = dist.all_reduce(flat, group=self.group, async_op=True)

    def receive(self) -> None:
        """Wait for the sums; what has a gradient on another rank alone has its own now."""
        self.work.wait()
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = self.parts[id(parameter)]
        self.begin()


def in_buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Divide parameters, in their order, into lists of about `BUCKET` bytes and of one type."""
    found: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        nbytes = parameter.numel() * parameter.element_size()
        if not found or size + nbytes > BUCKET or found[-1][-1].dtype != parameter.dtype:
            found.append([])
            size = 0
        found[-1].append(parameter)
        size += nbytes
    return found


def _arrived(work: Any, flat: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Wait for new weights, and take them."""
    work.wait()
    parts = flat.split([p.numel() for p in parameters]) if parameters else ()
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))


class Sharded(Gradients):
    """ZeRO-2 and 3: FSDP2 adds up, and divides, the gradients of a model that `make_sharded` has made.

    It does so after each backward pass: whole gradients of a step's micro-batches are what these forms are to avoid.
    """

    def begin(self) -> None:
        self._reshards(False)

    def last(self) -> None:
        self._reshards(True)

    def _reshards(self, now: bool) -> None:
        """ZeRO-2 keeps the whole weights from one micro-batch to the next."""
        assert self.mesh is not None
        if self.mesh.layout.zero == 2:
            model: Any = self.model
            model.set_reshard_after_backward(now)

    def lacking(self, passes: int) -> int:
        assert self.model is not None and self.mesh is not None
        if not isinstance(self.model.config.input_frontend, WaveFrontend):  # only clips may run apart
            return 0
        most = torch.tensor(passes)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.mesh.dp)
        return int(most) - passes

    def evaluated(self) -> None:
        from torch.distributed.fsdp import FSDPModule

        assert self.model is not None
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def make_sharded(model: Transformer, mesh: Mesh) -> Transformer:
    """Let FSDP2 divide a model's parameters among the data-parallel ranks, in place; call it last.

    Raises:
        UsageError: the model leaves out layers at random: ranks would wait for one another's.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    _check_runs_all(model, mesh)
    over, reshards = device_mesh(mesh), mesh.layout.zero == 3
    for stack in (model.encoder, model.decoder):
        for layer in stack.layers if stack is not None else ():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=over, reshard_after_forward=reshards)
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            hooks = ((*m._forward_hooks, *m._forward_pre_hooks) for m in stack.layers.modules())
            stack.unwatching = frozenset(chain.from_iterable(hooks))
    # The loss reads the head's weight after `states` has returned: the rest stays whole until the backward pass.
    made: Any = fully_shard(model, mesh=over, reshard_after_forward=False)
    for name in METHODS:
        register_fsdp_forward_method(made, name)
    for module in made.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no sum that divides
    return model


def device_mesh(mesh: Mesh) -> Any:
    """Return the data-parallel ranks as torch's own kind of mesh, of one dimension."""
    from torch.distributed.device_mesh import DeviceMesh

    assert mesh.dp is not None
    return DeviceMesh.from_group(mesh.dp, mesh.device.type, mesh_dim_names=("dp",))


def _check_runs_all(model: Transformer, mesh: Mesh) -> None:
    """Refuse what gives ranks another number of passes, each of which needs the weights that the other ranks have."""
    kept = f"which {opt('parallel.zero', mesh.layout.zero)} cannot do: a layer's weights come from all ranks"
    rates = [s.dropout.layer for s in (model.encoder, model.decoder) if s is not None and s.dropout.layer > 0]
    if rates:
        what = f"this model leaves out layers in training (layer dropout {rates[0]:g}), each rank other ones"
        raise UsageError(f"{what}, {kept}", f"give {opt('parallel.zero', 1)}, or {opt('model.dropout', 0)}")


class Replicas(Gradients):
    """DP in one process: copies of a model on several devices, each with its own micro-batches.

    Work on a GPU goes on while Python hands out that of the next, so one thread is enough; processors take turns.
    """

    def __init__(self, model: Transformer, devices: Sequence[str]) -> None:
        super().__init__()
        others = [deepcopy(model).to(device) for device in devices[1:]]
        self.models = [model, *others]

    @torch.no_grad()
    def begin(self) -> None:
        """Give the copies the model's weights, and no gradients."""
        for copy in self.models[1:]:
            for mine, its in zip(self.models[0].parameters(), copy.parameters(), strict=True):
                its.copy_(mine, non_blocking=True)
                its.grad = None

    def of(self, micro: int) -> Transformer:
        """Return the model that runs a micro-batch."""
        return self.models[micro % len(self.models)]

    @torch.no_grad()
    def finish(self) -> None:
        """Add the copies' gradients to the model's."""
        for copy in self.models[1:]:
            for mine, its in zip(self.models[0].parameters(), copy.parameters(), strict=True):
                if its.grad is not None:
                    gradient = its.grad.to(mine.device)
                    mine.grad = gradient.clone() if mine.grad is None else mine.grad.add_(gradient)
