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
from plainformer.model.attention import Attentions, CrossAttention, Flow, Mask
from plainformer.model.fast.compiled import FEW_ROWS, affine, as_array, follow_torch_threads, kernels, version
from plainformer.model.fast.packed import KernelWeight
from plainformer.model.linear import Linear, LinearGroup, outermost
from plainformer.model.norm import LayerNorm, RMSNorm
from plainformer.model.stack import Stack

NO_BIAS = np.zeros((0, 1, 0), np.float32)
NO_TURN = np.zeros((2, 0, 0), np.float32)
NO_ATTENTIONS = Attentions()
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
        self, x_BTD: Tensor, flow: Flow, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[Tensor, Attentions]]:
        if flow.cache is None or not _is_usual(x_BTD, flow) or (module := kernels()) is None:
            return super().run_layers(x_BTD, flow, first, last)
        return self._run_steps(x_BTD, flow, self.config.layer_ids[first:last], first, module)

    def _run_steps(
        self, x_BTD: Tensor, flow: Flow, indices: Sequence[int], first: int, module: ModuleType
    ) -> Iterator[tuple[Tensor, Attentions]]:
        blocks = list(self.layers)
        if len(self.steps) != len(blocks):
            self.steps = [LayerStep(self.config) for _ in blocks]
        steps, usual = self.steps, True
        views: Views = {}
        follow_torch_threads()
        for layer, index in enumerate(indices, first):
            stepped = steps[index](blocks[index], x_BTD, layer, flow, views, module) if usual else None
            if stepped is not None:
                x_BTD, attentions = stepped, NO_ATTENTIONS
            else:
                x_BTD, attentions = blocks[index](x_BTD, layer, flow)
                usual = _is_usual(x_BTD, flow)
            yield x_BTD, attentions


def install(model: nn.Module) -> None:
    """Let the stacks that decode run their steps through the kernel, in place."""
    for module in model.modules():
        if type(module) is Stack and module.causal and module.config.disentangled is None:
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
        self.made_of: list[tuple[Linear | LinearGroup, object, object]] = []
        self.norms: list[tuple[nn.Module, str, Tensor | None, int]] = []
        self.modules: list[tuple[nn.Module, dict[str, Any]]] = []
        self.hooks: list[dict[int, Any]] = []
        self.arrays: Any = None

    def __call__(
        self, block: nn.Module, x_BTD: Tensor, layer: int, flow: Flow, views: Views, module: ModuleType
    ) -> Tensor | None:
        if not self._is_current(block):
            self._make(block, module)
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

    def _is_current(self, block: nn.Module) -> bool:
        """Whether the views are still of the weights that the layer has."""
        if not self.modules or self.modules[0][0] is not block:
            return False
        for module, children in self.modules:
            if module._modules != children:
                return False
        for linear, packed, matrix in self.made_of:
            if linear.packed is not packed or _matrix(packed) is not matrix:
                return False
        for norm, name, parameter, changes in self.norms:
            if norm._parameters.get(name) is not parameter or version(parameter) != changes:
                return False
        return True

    def _make(self, block: nn.Module, module: ModuleType) -> None:
        """View the layer's weights as the kernel wants them, if they have the layout for it."""
        self.made_of = [(linear, linear.packed, _matrix(linear.packed)) for linear in outermost(block)]
        found = [norm for norm in block.modules() if isinstance(norm, LayerNorm | RMSNorm)]
        named = [(norm, name, norm._parameters.get(name)) for norm in found for name in ("weight", "bias")]
        self.norms = [(norm, name, parameter, version(parameter)) for norm, name, parameter in named]
        self.hooks = [hooks for each in block.modules() for hooks in (each._forward_hooks, each._forward_pre_hooks)]
        self.hooks += HOOKS_OF_ALL
        ready = _is_ours(block) and all(matrix is not None for _, _, matrix in self.made_of)
        self.arrays = module.plain(_layer(module, block, self.config)) if ready else None
        # Last: another thread takes the views for current from here on.
        self.modules = [(each, dict(each._modules)) for each in block.modules() if each._modules or each is block]

    def __reduce__(self) -> Any:
        return LayerStep, (self.config,)  # a copy has weights of its own


def _encoder_keys(cross: CrossAttention | None, layer: int, flow: Flow, views: Views) -> Any:
    """The keys and values of the encoder's output as the kernel wants them; None where there is no encoder."""
    if cross is None:
        return None
    k_BHSE, v_BHSE = cross.keys_and_values(layer, flow)
    bias = _bias(views, flow.encoder_mask, k_BHSE.size(2))
    keys, values = as_array(k_BHSE), as_array(v_BHSE)
    own = np.empty((len(keys), keys.shape[1], 0, keys.shape[3]), np.float32)
    return keys, values, own, own, 0, bias


def _matrix(packed: object) -> object:
    """The `kernels.Matrix` of a weight that has one."""
    return packed.matrix if isinstance(packed, KernelWeight) else None


def _is_ours(block: nn.Module) -> bool:
    """Whether every part is this library's own; a norm may be an identity. Someone's wrapper does not go into a kernel."""
    package = "plainformer.model."
    return all(
        (type(part).__module__.startswith(package) or (path.endswith("norm") and type(part) is nn.Identity))
        and "forward" not in vars(part)
        for path, part in block.named_modules()
    )


def _is_usual(x_BTD: Tensor, flow: Flow) -> bool:
    few = x_BTD.size(1) == 1 and x_BTD.size(0) <= FEW_ROWS
    asked = flow.output_attentions or flow.head_mask_LH is not None or flow.cross_head_mask_LH is not None
    gradient = x_BTD.requires_grad and torch.is_grad_enabled()
    return few and not asked and not gradient and x_BTD.dtype == torch.float32 and x_BTD.device.type == "cpu"


def _bias(views: Views, mask: Mask, seen: int) -> Any:
    """What is added to the scores, (R, H or 1, S), for the last `seen` positions."""
    if mask.bias is None:
        return NO_BIAS
    key = (id(mask), seen)
    if key not in views:
        bias = mask.bias if mask.bias.dim() == 4 else mask.bias[None, None]
        views[key] = as_array(bias[:, :, -1, -seen:])
    return views[key]


def _turn(views: Views, flow: Flow, layer: int) -> Any:
    """Cosines and sines, (2, R, E)."""
    rotation = flow.rotations[layer]
    if rotation is None:
        return NO_TURN
    key = (id(rotation), 0)
    if key not in views:
        views[key] = as_array(torch.stack([part[:, 0, 0] for part in rotation]))
    return views[key]


def _layer(module: ModuleType, block: Any, config: StackConfig) -> Any:
    """A `kernels.Layer` of a `Block` or `ParallelBlock`."""
    parallel = config.residual == "parallel"
    place = "pre" if parallel else config.norm_place
    attention, ffn, cross = block.attention, block.ffn, getattr(block, "cross", None)
    qkv = attention.qkv.packed.matrix
    nothing = (qkv[0][:0], qkv[1][:, :0].copy())

    def norms(name: str, after: str) -> Any:
        found = (getattr(block, each, None) for each in (name, after))
        norm, after_norm = (_norm(module, each) for each in found)
        none = _norm(module, None)
        before, inner, outer = {
            "pre": (norm, none, none),
            "post": (none, none, norm),
            "both": (norm, after_norm, none),
            "branch": (none, norm, none),
        }[place]
        return module.Norms(before, inner, outer)

    return module.Layer(
        parallel,
        norms("attention_norm", "attention_after_norm"),
        module.Attention(
            qkv,
            attention.out.packed.matrix,
            config.num_heads,
            config.num_kv_heads,
            float(config.attention_scale),
            float(config.score_softcap or 0.0),
            _norm(module, attention.q_norm or attention.q_norm_all),
            _norm(module, attention.k_norm or attention.k_norm_all),
        ),
        norms("cross_norm", "cross_norm"),
        module.Cross(
            cross.q.packed.matrix if cross is not None else nothing,
            cross.out.packed.matrix if cross is not None else nothing,
            config.num_heads if cross is not None else 0,
            float(config.attention_scale),
        ),
        norms("ffn_norm", "ffn_after_norm"),
        module.FeedForward(
            (ffn.gate_up if config.ffn == "gated" else ffn.up).packed.matrix,
            ffn.down.packed.matrix,
            config.ffn == "gated",
            module.ACTIVATION_CODES[config.activation],
        ),
    )


def _norm(module: ModuleType, norm: nn.Module | None) -> Any:
    """A `kernels.Norm`; of kind "none" for an identity, or where there is none."""
    if isinstance(norm, LayerNorm):
        return module.Norm(module.NORM_CODES["layer"], float(norm.eps), affine(norm.weight, norm.bias, norm.shape[0]))
    if isinstance(norm, RMSNorm):
        weight = norm.weight.detach() + norm.offset
        return module.Norm(module.NORM_CODES["rms"], float(norm.eps), affine(weight, None, len(weight)))
    return module.Norm(module.NORM_CODES["none"], 0.0, affine(None, None, 0))
