"""Decoding steps through a compiled kernel, one call for a layer, wherever a step is a usual one.

A layer is some fifty calls into torch, which together cost as much as reading its weights; here it is one call. What the
kernel is not made for - several tokens, attentions asked for, masked heads, an int8 cache, someone's hook - goes through
the layer's own modules, which compute the same up to floating-point order.

Shapes: R rows, one token each, D hidden size, S positions, H heads, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plainformer.config import StackConfig
from plainformer.model.attention import CrossAttention
from plainformer.model.block import norms_around
from plainformer.model.fast.compiled import (
    FEW_ROWS,
    affine,
    as_array,
    follow_torch_threads,
    kernels,
    loops_follow,
    paths,
    quantised,
    ready,
    state,
)
from plainformer.model.fast.packed import KernelWeight
from plainformer.model.flow import Attentions, Flow, Mask
from plainformer.model.linear import is_shared, outermost
from plainformer.model.norm import LayerNorm, RMSNorm
from plainformer.model.stack import Stack

NO_BIAS = np.zeros((0, 1, 0), np.float32)
NO_TURN = np.zeros((2, 0, 0), np.float32)
NO_ATTENTIONS = Attentions()
NORMS = LayerNorm, RMSNorm
HOOKS_OF_ALL: list[dict[int, Any]] = [
    torch.nn.modules.module._global_forward_hooks,
    torch.nn.modules.module._global_forward_pre_hooks,
]
# Arrays that the kernel reads masks and rotations from, by what they were made of: layers share both.
Views = dict[tuple[int, int], Any]


class FastStack(Stack):
    """A `Stack` whose decoding steps run through the kernel. `install` makes a stack one, `uninstall` makes it plain again."""

    steps: Sequence[LayerStep] = ()

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
        """Return whether the kernels are compiled for the weights of this stack; those that are not, are then being compiled."""
        blocks = list(self.layers)
        steps = self._steps(blocks)
        for step, block in zip(steps, blocks, strict=True):
            step.follow(block, module)
        known = {step.kind: step for step in steps if step.arrays is not None}
        waiting = [step for step in known.values() if not step.is_ready(module)]  # all are asked for at once
        return not waiting

    def _steps(self, blocks: Sequence[nn.Module]) -> Sequence[LayerStep]:
        """Return the steps of all layers, made if they are not."""
        if len(self.steps) != len(blocks):
            self.steps = [LayerStep(self.config) for _ in blocks]
        return self.steps

    def _run_steps(
        self, x_BTD: Tensor, flow: Flow, numbers: range, module: ModuleType
    ) -> Iterator[tuple[Tensor, Attentions]]:
        blocks = list(self.layers)
        steps, usual = self._steps(blocks), True
        views: Views = {}
        follow_torch_threads()
        loops_follow(True)
        try:
            for layer in numbers:
                index = self.config.layer_ids[layer]
                stepped = steps[index](blocks[index], x_BTD, layer, flow, views, module) if usual else None
                if stepped is not None:
                    x_BTD, attentions = stepped, NO_ATTENTIONS
                else:
                    x_BTD, attentions = blocks[index](x_BTD, layer, flow)
                    usual = _is_usual(x_BTD, flow)
                yield x_BTD, attentions
        finally:
            loops_follow(False)


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
            vars(module).pop("steps", None)
            module.__class__ = Stack  # type: ignore[assignment]


class LayerStep:
    """Fast path of one layer for one decoding step; returns None if this call does not qualify.

    Holds views of the layer's weights, made on the first step, and again when a weight or a module has been replaced.
    """

    def __init__(self, config: StackConfig) -> None:
        self.config = config
        self.block: nn.Module | None = None
        # What the views are of: the modules, packed weights and norms' parameters by their place, the memory of tensors.
        self.children: list[dict[str, nn.Module | None]] = []
        self.made_of: list[dict[str, nn.Module | None]] = []
        self.parts: list[tuple[dict[str, Any], str, object]] = []
        self.tensors: list[tuple[Tensor | None, tuple[int, int]]] = []
        self.hooks: list[dict[int, Any]] = []
        self.arrays: Any = None

    def __call__(
        self, block: nn.Module, x_BTD: Tensor, layer: int, flow: Flow, views: Views, module: ModuleType
    ) -> Tensor | None:
        self.follow(block, module)
        if self.arrays is None or any(self.hooks) or "forward" in vars(block):
            return None
        assert flow.cache is not None
        encoder = _encoder_keys(getattr(block, "cross", None), layer, flow, views)
        room = flow.cache.room(layer, len(x_BTD), 1)
        if room is None:
            return None
        keys, values = room.keys.numpy(), room.values.numpy()
        if room.shared is None:
            shared = keys[:1, :, :0], values[:1, :, :0]
        else:
            shared = as_array(room.shared[0]), as_array(room.shared[1])
        bias = _bias(views, flow.masks[layer], room.held + shared[0].shape[2])
        seen = (*shared, keys, values, room.held, bias)
        y_BTD = torch.empty_like(x_BTD, memory_format=torch.contiguous_format)
        module.run_layer(
            self.arrays, _turn(views, flow, layer), seen, encoder or seen, as_array(x_BTD)[:, 0], y_BTD.numpy()[:, 0]
        )
        return y_BTD

    def follow(self, block: nn.Module, module: ModuleType) -> None:
        """View the weights that the layer has now."""
        if not self._is_current(block):
            self._make(block, module)

    @property
    def kind(self) -> tuple[torch.dtype, ...]:
        """What the kernel is compiled for: the types of the weights."""
        return tuple(x.dtype for x, _ in self.tensors if x is not None)

    def is_ready(self, module: ModuleType) -> bool:
        """Return whether the kernels are compiled for this layer; else they are being compiled from here on."""
        x_RD = np.zeros((1, self.config.hidden_size), np.float32)
        keys = np.zeros((1, 1, 0, 1), np.float32)
        seen = keys, keys, keys, keys, 0, NO_BIAS
        matrix = self.arrays[2][0]
        layer = ready(module.run_layer, self.arrays, NO_TURN, seen, seen, x_RD, x_RD)
        of_blocks = quantised() if matrix[0].dtype == np.int64 else None
        multiply = module.multiply if of_blocks is None else of_blocks.multiply_blocks
        return ready(multiply, *matrix, x_RD, x_RD, 0, 0) and layer

    def _is_current(self, block: nn.Module) -> bool:
        """Return whether the views are still of the weights that the layer has."""
        if self.block is not block:
            return False
        for place, name, part in self.parts:
            if place.get(name) is not part:
                return False
        for tensor, made_of in self.tensors:
            if state(tensor) != made_of:
                return False
        return self.children == self.made_of

    def _make(self, block: nn.Module, module: ModuleType) -> None:
        """View the layer's weights as the kernel wants them, if they have the layout for it."""
        self.block = None
        modules, linears = list(block.modules()), outermost(block)
        norms: list[tuple[dict[str, Any], str]] = [
            (each._parameters, name) for each in modules if isinstance(each, NORMS) for name in ("weight", "bias")
        ]
        packed: list[object] = [linear.packed for linear in linears]
        self.hooks = [hooks for each in modules for hooks in (each._forward_hooks, each._forward_pre_hooks)]
        self.hooks += HOOKS_OF_ALL
        self.children = [each._modules for each in modules]
        self.made_of = [dict(children) for children in self.children]
        self.parts = [(vars(linear), "packed", weight) for linear, weight in zip(linears, packed, strict=True)]
        self.parts += [(place, name, place.get(name)) for place, name in norms]
        kernel_weights = [weight for weight in packed if isinstance(weight, KernelWeight)]
        tensors = [place.get(name) for place, name in norms]
        tensors += [x for weight in kernel_weights for x in weight.tensors]
        self.tensors = [(x, state(x)) for x in tensors if x is not None]
        ready = _is_ours(block) and len(kernel_weights) == len(packed) and not any(map(is_shared, linears))
        self.arrays = _layer(module, block, self.config) if ready else None
        self.block = block  # last: another thread takes the views for current from here on

    def __reduce__(self) -> Any:
        return LayerStep, (self.config,)  # a copy has weights of its own


def _encoder_keys(cross: CrossAttention | None, layer: int, flow: Flow, views: Views) -> Any:
    """Return the keys and values of the encoder's output as `kernels.Keys`; None where there is no encoder."""
    if cross is None:
        return None
    k_BHSE, v_BHSE = cross.keys_and_values(layer, flow)
    bias = _bias(views, flow.encoder_mask, k_BHSE.size(2))
    keys, values = as_array(k_BHSE), as_array(v_BHSE)
    own = np.empty((len(keys), keys.shape[1], 0, keys.shape[3]), np.float32)
    return keys, values, own, own, 0, bias


def _is_ours(block: nn.Module) -> bool:
    """Return whether every part is this library's own; a norm may be an identity. Someone's wrapper does not go into a kernel."""
    package = "plainformer.model."
    return all(
        (type(part).__module__.startswith(package) or (path.endswith("norm") and type(part) is nn.Identity))
        and "forward" not in vars(part)
        for path, part in block.named_modules()
    )


def _is_usual(x_BTD: Tensor, flow: Flow) -> bool:
    few = flow.length == 1 and x_BTD.size(0) <= FEW_ROWS
    asked = flow.output_attentions or flow.head_mask_LH is not None or flow.cross_head_mask_LH is not None
    gradient = x_BTD.requires_grad and torch.is_grad_enabled()
    return few and not asked and not gradient and x_BTD.dtype == torch.float32 and x_BTD.device.type == "cpu"


def _bias(views: Views, mask: Mask, seen: int) -> Any:
    """Return what is added to the scores, (R, H or 1, S), for the last `seen` positions."""
    if mask.bias is None:
        return NO_BIAS
    key = (id(mask), seen)
    if key not in views:
        bias = mask.bias if mask.bias.dim() == 4 else mask.bias[None, None]
        views[key] = as_array(bias[:, :, -1, -seen:])
    return views[key]


def _turn(views: Views, flow: Flow, layer: int) -> Any:
    """Return cosines and sines, (2, R, E)."""
    rotation = flow.rotations[layer]
    if rotation is None:
        return NO_TURN
    key = (id(rotation), 0)
    if key not in views:
        views[key] = as_array(torch.stack([part[:, 0, 0] for part in rotation]))
    return views[key]


def _layer(module: ModuleType, block: Any, config: StackConfig) -> Any:
    """Return the `kernels.Layer` of a `Block` or `ParallelBlock`."""
    attention, ffn, cross = block.attention, block.ffn, getattr(block, "cross", None)
    qkv, out = attention.qkv.packed.matrix, attention.out.packed.matrix
    up = (ffn.gate_up if config.ffn == "gated" else ffn.up).packed.matrix
    scale, softcap = float(config.attention_scale), float(config.score_softcap or 0.0)
    norms = [
        _norm(module, norm)
        for norm in (attention.q_norm or attention.q_norm_all, attention.k_norm or attention.k_norm_all)
    ]
    seen = qkv, out, config.num_heads, config.num_kv_heads, scale, softcap, *norms
    seen_across: Any = (qkv[0][:0], qkv[1][:, :0].copy()), out, 0, scale
    if cross is not None:
        seen_across = cross.q.packed.matrix, cross.out.packed.matrix, config.num_heads, scale
    activation = module.ACTIVATION_CODES[config.activation]

    def around(name: str, after: str) -> Any:
        norm, after_norm = (getattr(block, each, nn.Identity()) for each in (name, after))
        place = "pre" if config.residual == "parallel" else config.norm_place
        return tuple(_norm(module, each) for each in norms_around(place, norm, after_norm))

    return (
        config.residual == "parallel",
        around("attention_norm", "attention_after_norm"),
        seen,
        around("cross_norm", "cross_norm"),
        seen_across,
        around("ffn_norm", "ffn_after_norm"),
        (up, ffn.down.packed.matrix, config.ffn == "gated", activation),
    )


def _norm(module: ModuleType, norm: object) -> Any:
    """Return the `kernels.Norm` of a norm; of kind "none" for anything else."""
    if isinstance(norm, LayerNorm):
        return module.NORM_CODES["layer"], float(norm.eps), affine(norm.weight, norm.bias, norm.shape[0])
    if isinstance(norm, RMSNorm):
        return module.NORM_CODES["rms"], float(norm.eps), affine(norm.weight + norm.offset, None, len(norm.weight))
    return module.NORM_CODES["none"], 0.0, affine(None, None, 0)
