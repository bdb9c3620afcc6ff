"""Decoding steps through a compiled kernel, one call for all layers, wherever a step is a usual one.

A layer is some fifty calls into torch, which together cost as much as reading its weights; here all layers are one call. What
the kernel is not made for - several tokens, attentions asked for, masked heads, an int8 cache, someone's hook - goes through
the layer's own modules, which compute the same up to floating-point order.

Shapes: R rows, one token each, D hidden size, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plainformer.model.fast.compiled import (
    FEW_ROWS,
    address,
    follow_torch_threads,
    kernels,
    loops_follow,
    paths,
    ready,
)
from plainformer.model.fast.describe import HOOKS_OF_ALL, Described, Watch
from plainformer.model.fast.records import LAYER
from plainformer.model.fast.seen import Steps
from plainformer.model.flow import Attentions, Flow
from plainformer.model.linear import is_shared, outermost
from plainformer.model.stack import Stack

NO_ATTENTIONS = Attentions()


class Records:
    """All layers of a stack as kernels read them.

    Attributes:
        steps: each layer's description, which keeps what the records are of. blocks: the layers.
        records: their `LAYER`s, (L,), of which those are empty that kernels do not know.
        known: whether they know all. watch: of all layers.
    """

    def __init__(self, steps: Sequence[Described] = ()) -> None:
        self.steps = steps
        self.blocks: list[Any] = [step.block for step in steps]
        self.known = all(step.arrays is not None for step in steps)
        self.watch = Watch.of_all(step.watch for step in steps)
        arrays = [np.zeros(1, LAYER) if step.arrays is None else step.arrays for step in steps]
        self.records: Any = np.concatenate(arrays) if arrays else None

    def __reduce__(self) -> Any:
        return Records, ()  # a copy has weights of its own


class FastStack(Stack):
    """A `Stack` whose decoding steps run through the kernel. `install` makes a stack one, `uninstall` makes it plain again."""

    steps: Sequence[Described] = ()
    joined = Records()

    def run_layers(
        self, x_BTD: Tensor, flow: Flow, first: int | None = None, last: int | None = None
    ) -> Iterator[tuple[Tensor, Attentions]]:
        module = None if flow.cache is None or self.training else self._path(x_BTD, flow.cache)
        if module is None or not _is_usual(x_BTD, flow):
            return super().run_layers(x_BTD, flow, first, last)
        return self._run_steps(x_BTD, flow, self.between(first, last), module)

    def _path(self, x_BTD: Tensor, cache: Any) -> ModuleType | None:
        """Return the kernels to compute a sequence with; None without. Decided where it begins, see `compiled.Paths`."""
        if x_BTD.size(1) > 1 or cache not in paths.of:
            module = kernels()
            paths.take(cache, module if module is not None and self._is_ready(module) else None)
        else:
            paths.take(cache, paths.of[cache])
        return paths.of[cache]

    def _is_ready(self, module: ModuleType) -> bool:
        """Return whether the kernel is compiled, where a layer is one for it; else it is being compiled from here on."""
        self.follow()
        return all(step.arrays is None for step in self.steps) or ready(module.run_layers, 0, 0, 0, 0, 0, 0)

    def follow(self) -> Records:
        """Return the records of the layers as they are now."""
        blocks = list(self.layers)
        if self.joined.blocks != blocks or not self.joined.watch.is_same():
            old = self.steps if len(self.steps) == len(blocks) else [Described()] * len(blocks)
            pairs = zip(old, blocks, strict=True)
            self.steps = [step if step.fits(block) else Described(block, self.config) for step, block in pairs]
            self.joined = Records(self.steps)
        return self.joined

    def _run_steps(
        self, x_BTD: Tensor, flow: Flow, numbers: range, module: ModuleType
    ) -> Iterator[tuple[Tensor, Attentions]]:
        joined, ids = self.follow(), self.config.layer_ids
        plain = not joined.known or any(HOOKS_OF_ALL) or joined.watch.is_hooked()
        layer, usual = numbers.start, True
        while layer < numbers.stop:
            run = range(layer, layer + 1 if flow.each else numbers.stop)
            if plain:
                run = range(layer, next((n for n in run if self._is_plain(n)), run.stop))
            steps = self._steps(x_BTD, flow, run) if usual else None
            if steps is not None:
                x_BTD, attentions = self.run_kernel(x_BTD, steps, module), NO_ATTENTIONS
                layer += len(steps.records)
            else:
                x_BTD, attentions = joined.blocks[ids[layer]](x_BTD, layer, flow)
                usual = _is_usual(x_BTD, flow)
                layer += 1
            yield x_BTD, attentions

    def run_kernel(self, x_BTD: Tensor, steps: Steps, module: ModuleType) -> Tensor:
        """Return one token of each row after the layers that steps are of."""
        follow_torch_threads()
        loops_follow(True)
        y_BTD = x_BTD.clone(memory_format=torch.contiguous_format)
        sizes = len(steps.records), len(y_BTD), y_BTD.size(2)
        joined = self.joined  # to the end of the call, whatever another thread finds changed meanwhile
        try:
            module.run_layers(address(joined.records), steps.address, *sizes, y_BTD.data_ptr())
        finally:
            loops_follow(False)
        return y_BTD

    def _is_plain(self, layer: int) -> bool:
        """Return whether a layer goes through its modules."""
        step = self.steps[self.config.layer_ids[layer]]
        return step.arrays is None or any(HOOKS_OF_ALL) or step.watch.is_hooked()

    def _steps(self, x_BTD: Tensor, flow: Flow, numbers: range) -> Steps | None:
        """Return what the kernel needs for as many of some layers as the cache has room in; None for none."""
        assert flow.cache is not None
        pairs, rooms = [], []
        for layer in numbers:
            if self.config.cross_attention:
                cross = self.joined.blocks[self.config.layer_ids[layer]].cross
                pairs.append(cross.keys_and_values(layer, flow))
            room = flow.cache.room(layer, len(x_BTD), 1)
            if room is None:
                break
            rooms.append(room)
        if not rooms:
            return None
        numbers = numbers[: len(rooms)]
        steps = Steps(len(rooms))
        steps.records["layer"] = [self.config.layer_ids[layer] for layer in numbers]
        steps.put_rooms(rooms)
        steps.put_rotations(flow.rotations[numbers.start : numbers.stop])
        steps.put_masks(flow, numbers, self.config.windows, flow.real_BS is None and self.bias is None)
        if pairs:
            steps.put_encoder(pairs[: len(rooms)], flow.encoder_mask)
        return steps


def install(model: nn.Module) -> None:
    """Let the stacks that decode run their steps through the kernel, in place.

    Not those whose layers are shared with other processes, which add something up in the middle of each layer.
    """
    for module in model.modules():
        usual = type(module) is Stack and module.causal and module.config.disentangled is None
        if usual and not any(is_shared(each) for each in outermost(module)):
            module.__class__ = FastStack


def uninstall(model: nn.Module) -> None:
    """Make every stack a plain one again."""
    for module in model.modules():
        if type(module) is FastStack:
            for name in ("steps", "joined"):
                vars(module).pop(name, None)
            module.__class__ = Stack  # type: ignore[assignment]


def _is_usual(x_BTD: Tensor, flow: Flow) -> bool:
    few = flow.length == 1 and x_BTD.size(0) <= FEW_ROWS
    asked = flow.output_attentions or flow.head_mask_LH is not None or flow.cross_head_mask_LH is not None
    gradient = x_BTD.requires_grad and torch.is_grad_enabled()
    return few and not asked and not gradient and x_BTD.dtype == torch.float32 and x_BTD.device.type == "cpu"
