"""One decoding step through a layer as one call of a compiled kernel, wherever the step is a usual one.

A layer is some fifty calls into torch, which together cost as much as reading its weights; here it is one call. What the kernel is
not made for - several tokens, attentions asked for, silenced heads, a cache in eight bits, someone's hook - goes through the
layer's own modules, which compute the same up to floating-point order.

Shapes: R rows, one token each, D width, S positions, H heads, E channels of a head.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plainformer.config import StackConfig
from plainformer.model.attention import CrossAttention, Flow, Mask
from plainformer.model.fast.compiled import FEW_ROWS, affine, as_array, follow_torch_threads, kernels, version
from plainformer.model.linear import CompiledWeight, Int8Weight, Linear, LinearGroup, outermost
from plainformer.model.norm import LayerNorm, RMSNorm

NO_BIAS = np.zeros((0, 1, 0), np.float32)
NO_TURN = np.zeros((2, 0, 0), np.float32)
HOOKS_OF_ALL: list[dict[int, Any]] = [
    torch.nn.modules.module._global_forward_hooks,
    torch.nn.modules.module._global_forward_pre_hooks,
]


class LayerStep:
    """What a layer asks first; None is "not one of mine".

    Holds views of the layer's weights, made on the first step, and again when a weight or a module has been replaced.
    """

    def __init__(self, config: StackConfig) -> None:
        self.config = config
        self.possible = config.disentangled is None
        self.made_of: list[tuple[Linear | LinearGroup, object, object]] = []
        self.norms: list[tuple[nn.Module, str, Tensor | None, int]] = []
        self.modules: list[tuple[nn.Module, dict[str, Any]]] = []
        self.hooks: list[dict[int, Any]] = []
        self.arrays: Any = None

    def __call__(self, layer: nn.Module, x_BTD: Tensor, index: int, flow: Flow) -> Tensor | None:
        if not self.possible or flow.cache is None or not _is_usual(x_BTD, flow):
            return None
        if (module := kernels()) is None:
            return None
        if not self._is_current():
            self._make(layer, module)
        if self.arrays is None or any(self.hooks):
            return None
        memory = self._memory(getattr(layer, "cross", None), index, flow)
        room = flow.cache.room(index, len(x_BTD), 1)
        if room is None:
            return None
        keys, values = room.keys.numpy(), room.values.numpy()
        if room.shared is None:
            shared = keys[:1, :, :0], values[:1, :, :0]
        else:
            shared = as_array(room.shared[0]), as_array(room.shared[1])
        bias = _bias(flow, flow.masks[index], room.held + shared[0].shape[2])
        seen = (*shared, keys, values, room.held, bias)
        y_BTD = torch.empty_like(x_BTD, memory_format=torch.contiguous_format)
        if index == 0:
            follow_torch_threads()
        module.run_layer(
            self.arrays, _turn(flow, index), seen, memory or seen, as_array(x_BTD)[:, 0], y_BTD.numpy()[:, 0]
        )
        return y_BTD

    def _is_current(self) -> bool:
        """Whether the views are still of the weights that the layer has."""
        for module, children in self.modules:
            if module._modules != children:
                return False
        for linear, packed, matrix in self.made_of:
            if linear.packed is not packed or _matrix(packed) is not matrix:
                return False
        for norm, name, parameter, changes in self.norms:
            if norm._parameters.get(name) is not parameter or version(parameter) != changes:
                return False
        return bool(self.modules)

    def _make(self, layer: nn.Module, module: ModuleType) -> None:
        """View the layer's weights as the kernel wants them, if they have the layout for it."""
        self.made_of = [(linear, linear.packed, _matrix(linear.packed)) for linear in outermost(layer)]
        found = [norm for norm in layer.modules() if isinstance(norm, LayerNorm | RMSNorm)]
        named = [(norm, name, norm._parameters.get(name)) for norm in found for name in ("weight", "bias")]
        self.norms = [(norm, name, parameter, version(parameter)) for norm, name, parameter in named]
        inner = [each for each in layer.modules() if each is not layer]
        self.hooks = [hooks for each in inner for hooks in (each._forward_hooks, each._forward_pre_hooks)]
        self.hooks += HOOKS_OF_ALL
        ready = _is_ours(layer) and all(matrix is not None for _, _, matrix in self.made_of)
        self.arrays = module.plain(_layer(module, layer, self.config)) if ready else None
        # Last: another thread takes the views for current from here on.
        self.modules = [(each, dict(each._modules)) for each in layer.modules() if each._modules]

    def __reduce__(self) -> Any:
        return LayerStep, (self.config,)  # a copy has weights of its own

    def _memory(self, cross: CrossAttention | None, index: int, flow: Flow) -> Any:
        """The encoder's keys and values, and which of them are real; None where there is no encoder."""
        if cross is None:
            return None
        k_NHSE, v_NHSE = cross.memory(index, flow)
        size = k_NHSE.size(2)
        bias = _bias(flow, flow.memory_mask, size)
        keys, values = as_array(k_NHSE), as_array(v_NHSE)
        own = np.empty((len(keys), keys.shape[1], 0, keys.shape[3]), np.float32)
        return keys, values, own, own, 0, bias


def _matrix(packed: object) -> object:
    """The `kernels.Matrix` of a weight that has one."""
    return packed.matrix if isinstance(packed, CompiledWeight | Int8Weight) else None


def _is_ours(layer: nn.Module) -> bool:
    """Whether every part is this library's own; a norm may be an identity. Someone's wrapper does not go into a kernel."""
    package = "plainformer.model."
    return all(
        type(part).__module__.startswith(package) or (path.endswith("norm") and type(part) is nn.Identity)
        for path, part in layer.named_modules()
    )


def _is_usual(x_BTD: Tensor, flow: Flow) -> bool:
    few = x_BTD.size(1) == 1 and x_BTD.size(0) <= FEW_ROWS
    asked = flow.attentions is not None or flow.head_mask_LH is not None or flow.cross_head_mask_LH is not None
    gradient = x_BTD.requires_grad and torch.is_grad_enabled()
    return few and not asked and not gradient and x_BTD.dtype == torch.float32 and x_BTD.device.type == "cpu"


def _bias(flow: Flow, mask: Mask, seen: int) -> Any:
    """What is added to the scores, (N, H or 1, S), for the last `seen` positions; made once for the layers that share it."""
    if mask.bias is None:
        return NO_BIAS
    key = (id(mask), seen)
    if key not in flow.views:
        bias = mask.bias if mask.bias.dim() == 4 else mask.bias[None, None]
        flow.views[key] = as_array(bias[:, :, -1, -seen:])
    return flow.views[key]


def _turn(flow: Flow, index: int) -> Any:
    """Cosines and sines, (2, N, E), made once for the layers that share them."""
    rotation = flow.rotations[index]
    if rotation is None:
        return NO_TURN
    key = (id(rotation), 0)
    if key not in flow.views:
        flow.views[key] = as_array(torch.stack([part[:, 0, 0] for part in rotation]))
    return flow.views[key]


def _layer(module: ModuleType, layer: Any, config: StackConfig) -> Any:
    """A `kernels.Layer` of a `Block` or `ParallelBlock`."""
    parallel = config.residual == "parallel"
    place = "pre" if parallel else config.norm_place
    attention, ffn, cross = layer.attention, layer.ffn, getattr(layer, "cross", None)
    qkv = attention.qkv.packed.matrix
    nothing = (qkv[0][:0], qkv[1][:, :0].copy())

    def norms(name: str, after: str) -> Any:
        found = (getattr(layer, each, None) for each in (name, after))
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
    """A `kernels.Norm`; nothing, or an identity, is one of kind "none"."""
    if isinstance(norm, LayerNorm):
        return module.Norm(module.NORM_CODES["layer"], float(norm.eps), affine(norm.weight, norm.bias, norm.shape[0]))
    if isinstance(norm, RMSNorm):
        weight = norm.weight.detach() + norm.offset
        return module.Norm(module.NORM_CODES["rms"], float(norm.eps), affine(weight, None, len(weight)))
    return module.Norm(module.NORM_CODES["none"], 0.0, affine(None, None, 0))
