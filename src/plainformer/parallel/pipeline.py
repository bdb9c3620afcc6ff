"""Pipeline parallelism: stages of layers, each a process, and micro-batches that go through them.

    gpipe   all forward passes, then all backward passes (Huang et al. 2019): every stage keeps all m micro-batches
    1f1b    one forward, one backward in turn, as soon as the last stage has something to go back with (Narayanan et al. 2021):
            stage s of p keeps min(m, p - s)

Both compute the same and wait equally long: (p - 1) / (m + p - 1) of the time. Outside training every stage makes the same
calls as one process does, and all get the last one's answer: `Line`. What goes from stage to stage has the type of the weights.

Dropout: a stage draws for its own layers alone, so that draws differ from those of one process, which draws for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from plainformer.config.layout import Place
from plainformer.config.local import Local
from plainformer.errors import UsageError, opt
from plainformer.model.inputs import StackInput, read
from plainformer.model.stack import Stack, StackOutput
from plainformer.model.stages import Arrived, Crossing
from plainformer.model.transformer import Transformer
from plainformer.parallel.mesh import Mesh


def connect(model: Transformer, mesh: Mesh) -> Transformer:
    """Let a part of a model reach the other stages, in place: called on all ranks alike, it gives what the whole model does."""
    if mesh.pp is not None:
        model.pipe = Line(model, mesh.pp)
    return model


class Line:
    """The stages of a model, for calls that all ranks make: each runs its layers, and the result goes to all.

    What comes out has no gradient: that of a pipeline is made by `Pipeline`.

    Args:
        model: built from this rank's `Local`. group: the ranks of the stages, in their order.
    """

    def __init__(self, model: Transformer, group: dist.ProcessGroup) -> None:
        assert model.local is not None
        local = model.local
        self.model, self.group, self.stage, self.last = model, group, local.place.pp, local.layout.pp - 1
        stages = [Local(local.config, local.layout, Place(stage, 0, 0)) for stage in range(local.layout.pp)]
        # Which stages have layers of a stack, and how many hidden states each of them gives.
        self.holders = {name: [stage for stage, its in enumerate(stages) if its.layers[name]] for name in local.layers}
        self.states = {
            name: [len(its.layers[name]) + its.begins(name) if its.layers[name] else 0 for its in stages]
            for name in local.layers
        }

    def __reduce__(self) -> Any:
        raise UsageError("a stage of a pipeline cannot be copied", "copy it before connect(model, mesh)")

    @torch.no_grad()
    def through(
        self, stack: Stack, name: str, inputs: StackInput, *, shared: bool = True, **options: Any
    ) -> StackOutput:
        """See `Pipe`."""
        if options.get("output_attentions"):
            raise UsageError("the stages of a pipeline do not gather attentions", f"leave {opt('parallel.pp')} out")
        if stack.held:
            output: StackOutput = stack(inputs, came=None if stack.begins else self._received(stack), **options)
            x_BTD = output.last_hidden_state
            if not stack.ends:
                dist.send(self._wired(x_BTD), group=self.group, group_dst=self.stage + 1)
        else:
            output = self._passed_by(stack, inputs, options.get("cache"))
            x_BTD = output.last_hidden_state
        end = self.holders[name][-1]
        if options.get("output_hidden_states"):
            output.hidden_states = self._all_states(name, output.hidden_states or (), x_BTD.shape)
            output.last_hidden_state = output.hidden_states[-1]
        elif shared:
            output.last_hidden_state = self._from(end, x_BTD, x_BTD.shape)
        return output

    def from_first(self, name: str, make: Callable[[], Tensor], size: Sequence[int]) -> Tensor:
        """See `Pipe`."""
        first = self.holders[name][0]
        return self._from(first, make() if self.stage == first else None, size)

    def from_last(self, make: Callable[[], Tensor], size: Callable[[], Sequence[int]]) -> Tensor:
        """See `Pipe`."""
        return self._from(self.last, make(), ()) if self.stage == self.last else self._from(self.last, None, size())

    def _received(self, stack: Stack) -> Callable[[Any], Tensor]:
        """Return what takes the hidden states of the stage before, once their sizes are known and inputs are checked."""

        def receive(reading: Any) -> Tensor:
            x_BTD = self._empty((*reading.size, stack.config.hidden_size))
            dist.recv(x_BTD, group=self.group, group_src=self.stage - 1)
            return x_BTD

        return receive

    def _passed_by(self, stack: Stack, inputs: StackInput, cache: Any) -> StackOutput:
        """Check the inputs of a stack that has no layers here; return an output of the right sizes, without memory."""
        reading = read(stack.config, inputs, cache.length if cache is not None else 0, stack.training)
        if cache is not None:
            cache.advance(reading.size[1])
        x_BTD = self._empty(()).expand(*reading.size, stack.config.hidden_size)
        return StackOutput(x_BTD, reading.real_BT())

    def _all_states(self, name: str, own: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the hidden states of all layers of a stack."""
        found = []
        for stage, count in enumerate(self.states[name]):
            for number in range(count):
                found.append(self._from(stage, own[number] if stage == self.stage else None, size))
        return tuple(found)

    @torch.no_grad()
    def _from(self, stage: int, x: Tensor | None, size: Sequence[int]) -> Tensor:
        """Return what a stage has, on all."""
        x = self._wired(x) if stage == self.stage and x is not None else self._empty(size)
        dist.broadcast(x, group=self.group, group_src=stage)
        return x

    def _wired(self, x: Tensor) -> Tensor:
        return x.detach().to(self.model.dtype).contiguous()

    def _empty(self, size: Sequence[int]) -> Tensor:
        return torch.empty(tuple(size), dtype=self.model.dtype, device=self.model.device)


class Pipeline:
    """Forward and backward passes of a step's micro-batches through the stages, in the order of a schedule.

    Args:
        model: of this stage, on its device. mesh: its `pp` are the stages.
        schedule: "1f1b" or "gpipe"; by default the layout's.
    """

    def __init__(self, model: Transformer, mesh: Mesh, schedule: Literal["1f1b", "gpipe"] | None = None) -> None:
        assert mesh.pp is not None and model.local is not None
        self.model, self.group = model, mesh.pp
        self.schedule = schedule or mesh.layout.schedule
        self.stage, self.count = mesh.place.pp, mesh.layout.pp
        self.is_last = self.stage == self.count - 1
        self.wires = _Wires(mesh.pp, self.stage)

    def run(self, step: Work, *, last: Callable[[], None] = lambda: None) -> None:
        """Add up the gradients of a step's losses. `last`: is called before the last backward pass.

        Of n micro-batches, `ahead` have gone forward before the first comes back: the most that a stage keeps is one more.
        """
        passes = self._passes(step)
        count, ahead = len(step.inputs), min(self.count - 1 - self.stage, len(step.inputs))
        if self.schedule == "gpipe":
            ahead = count
        for number in range(ahead):
            passes.forward(number, passes.take(number))
            passes.wires.exchange(passes.give(number))
        came = passes.take(ahead) if ahead < count else Crossing()
        for number in range(ahead, count):
            back = number - ahead
            passes.forward(number, came)
            passes.come_back(back, passes.give(number))
            passes.backward(back, last)
            came = passes.go_back(back, number + 1)
        for back in range(count - ahead, count):
            passes.come_back(back, [])
            passes.backward(back, last)
            passes.go_back(back, None)
        self.wires.settle()

    @torch.no_grad()
    def look(self, step: Work) -> None:
        """Run the forward passes of a step alone: the last stage sees its losses, and nothing is kept or learnt."""
        passes = self._passes(step)
        for number in range(len(step.inputs)):
            passes.forward(number, passes.take(number))
            passes.wires.exchange(passes.give(number))
            passes.forget(number)
        self.wires.settle()

    def _passes(self, step: Work) -> _Passes:
        sizes = [self.model.crossings(**one) for one in step.inputs]
        return _Passes(self, step, sizes, self._trained())

    def _trained(self) -> list[Crossing]:
        """Return which gradients each stage but the last gets back: of what anything before it is trained for.

        All stages ask at once, which is also the first thing that they say to each other.
        """
        mine = [
            any(p.requires_grad for p in stack.parameters()) if stack is not None else False
            for stack in (self.model.encoder, self.model.decoder)
        ]
        given = torch.tensor(mine, dtype=torch.int32, device=self.model.device)
        every = [torch.empty_like(given) for _ in range(self.count)]
        dist.all_gather(every, given, group=self.group)
        before = torch.stack(every).cummax(0).values.bool().tolist()
        return [Crossing(encoder or decoder, encoder) for encoder, decoder in before[:-1]]


@dataclass(frozen=True)
class Work:
    """What a step's micro-batches are.

    Attributes:
        inputs: of each, what `Transformer.forward` takes, on the model's device; the same on all stages.
        loss: number → its loss, (), by the model as in one process; called on the last stage alone.
        within: number → what a forward pass runs in: seeds, autocast.
    """

    inputs: Sequence[Mapping[str, Tensor]]
    loss: Callable[[int], Tensor]
    within: Callable[[int], AbstractContextManager[Any]] = lambda _: nullcontext()


class _Passes:
    """The passes of one step on one stage, and what is kept between a forward and its backward pass."""

    def __init__(self, line: Pipeline, step: Work, sizes: list[list[Crossing]], trained: list[Crossing]) -> None:
        self.model, self.step, self.wires, self.is_last = line.model, step, line.wires, line.is_last
        at = line.stage
        empty = [Crossing()] * len(sizes)
        # By micro-batch: the sizes of what comes from before, and of what goes on; and which of it gets a gradient.
        self.before = [some[at - 1] for some in sizes] if at else empty
        self.after = [some[at] for some in sizes] if not line.is_last else empty
        self.trained_before = trained[at - 1] if at else Crossing(False, False)
        self.trained_after = trained[at] if not line.is_last else Crossing(False, False)
        self.came: dict[int, Crossing] = {}
        self.out: dict[int, Crossing] = {}
        self.gradient: dict[int, Crossing] = {}

    def take(self, number: int) -> Crossing:
        """Wait for what the stage before gives of a micro-batch."""
        ops, came = self.arrival(number)
        self.wires.exchange(ops)
        return came

    def arrival(self, number: int) -> tuple[list[Op], Crossing]:
        """Return how to get it, and where it will be."""
        came = Crossing(*map(self._empty, self.before[number]))
        return [("recv", x, -1) for x in came if x is not None], came

    def forward(self, number: int, came: Crossing) -> None:
        """Run a micro-batch, and keep what its backward pass needs."""
        for x, trained in zip(came, self.trained_before, strict=True):
            if x is not None:
                x.requires_grad_(trained)
        pipe, self.model.pipe = self.model.pipe, Arrived(came)
        try:
            with self.step.within(number):
                if self.is_last:
                    out = Crossing(self.step.loss(number))
                else:
                    out = self.model.stage(came, **self.step.inputs[number])
        finally:
            self.model.pipe = pipe
        self.came[number], self.out[number] = came, out

    def forget(self, number: int) -> None:
        """Let go of a micro-batch that does not come back."""
        del self.out[number], self.came[number]

    def give(self, number: int) -> list[Op]:
        """Return how a micro-batch goes on to the next stage."""
        out = self.out[number] if not self.is_last else Crossing()
        return [("send", self._wired(x), 1) for x in out if x is not None]

    def come_back(self, number: int, ops: list[Op]) -> None:
        """Get the gradients of what the next stage was given of one micro-batch, while `ops` are done."""
        wanted = zip(self.after[number], self.trained_after, strict=True)
        self.gradient[number] = gradients = Crossing(*(self._empty(size if need else None) for size, need in wanted))
        self.wires.exchange([*ops, *(("recv", x, 1) for x in gradients if x is not None)])

    def backward(self, number: int, last: Callable[[], None]) -> None:
        """Run the backward pass of a micro-batch, and forget it, except the gradients of what has come."""
        out, gradients = self.out.pop(number), self.gradient.pop(number)
        if number == len(self.step.inputs) - 1:
            last()
        if self.is_last:
            if out.x_BTD.requires_grad:
                out.x_BTD.backward()
            return
        pairs = [(x, g.to(x.dtype)) for x, g in zip(out, gradients, strict=True) if g is not None and x.requires_grad]
        if pairs:
            torch.autograd.backward([x for x, _ in pairs], [gradient for _, gradient in pairs])

    def go_back(self, number: int, next_one: int | None) -> Crossing:
        """Send the gradients of what has come, and get the next micro-batch, if there is one."""
        came = self.came.pop(number)
        asked = zip(came, self.trained_before, strict=True)
        ops: list[Op] = [
            ("send", self._wired(x.grad if x.grad is not None else torch.zeros_like(x)), -1)
            for x, need in asked
            if need and x is not None
        ]
        more: list[Op] = []
        arriving = Crossing()
        if next_one is not None and next_one < len(self.step.inputs):
            more, arriving = self.arrival(next_one)
        self.wires.exchange([*ops, *more])
        return arriving

    def _empty(self, size: Sequence[int] | None) -> Tensor | None:
        return None if size is None else torch.empty(tuple(size), dtype=self.model.dtype, device=self.model.device)

    def _wired(self, x: Tensor) -> Tensor:
        return x.detach().to(self.model.dtype).contiguous()


Op = tuple[
    str, Tensor, int
]  # "send" or "recv", of what, and to or from which side: 1 the next stage, -1 the one before


class _Wires:
    """Messages between neighbours. What they exchange is one call, or each would wait for the other's first."""

    def __init__(self, group: dist.ProcessGroup, stage: int) -> None:
        self.group, self.stage = group, stage
        self.sent: list[tuple[Any, Tensor]] = []

    def exchange(self, ops: Sequence[Op]) -> None:
        """Begin to send, and wait for what is received."""
        if not ops:
            return
        functions = {"send": dist.isend, "recv": dist.irecv}
        made = [dist.P2POp(functions[kind], x, group=self.group, group_peer=self.stage + side) for kind, x, side in ops]
        works = dist.batch_isend_irecv(made)
        self.sent = [(work, x) for work, x in self.sent if not work.is_completed()]
        if len(works) != len(ops):  # NCCL: one for all
            for work in works:
                work.wait()
            return
        for work, (kind, x, _) in zip(works, ops, strict=True):
            if kind == "recv":
                work.wait()
            else:
                self.sent.append((work, x))

    def settle(self) -> None:
        """Wait for what has been sent."""
        for work, _ in self.sent:
            work.wait()
        self.sent.clear()
