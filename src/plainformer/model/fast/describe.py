"""A layer's modules as a record that kernels read, and what tells whether the layer still is what the record says.

Weights are not copied, so what is changed in place is seen. What is replaced or moved, wrapped or watched by a hook is found by
`Watch`, which asks in C what Python would need longer for than a layer takes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plainformer.config import StackConfig
from plainformer.model.block import norms_around
from plainformer.model.fast.compiled import address, as_array, state
from plainformer.model.fast.packed import KernelWeight
from plainformer.model.fast.records import ACTIVATION_CODES, LAYER, NORM_CODES
from plainformer.model.linear import is_shared, outermost
from plainformer.model.norm import LayerNorm, RMSNorm

NORMS = LayerNorm, RMSNorm
HOOKS_OF_ALL: list[dict[int, Any]] = [
    torch.nn.modules.module._global_forward_hooks,
    torch.nn.modules.module._global_forward_pre_hooks,
]


class Watch:
    """What was looked at in some layers. Comparing costs a few µs a layer.

    Attributes:
        places, names, parts: dictionaries, and what each had under a name.
        tensors, pointers: and where their numbers were. copied: those of which kernels read a copy, and their state.
        children, made_of: each module's modules. hooks: dictionaries of hooks. layers: each layer's own attributes.
    """

    def __init__(self) -> None:
        self.places: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.parts: list[object] = []
        self.tensors: list[Tensor] = []
        self.pointers: list[int] = []
        self.copied: list[tuple[Tensor, tuple[int, int]]] = []
        self.children: list[dict[str, nn.Module | None]] = []
        self.made_of: list[dict[str, nn.Module | None]] = []
        self.hooks: list[dict[int, Any]] = []
        self.layers: list[dict[str, Any]] = []

    @classmethod
    def of_all(cls, watches: Iterable[Watch]) -> Watch:
        """Return one of all that several look at."""
        joined = cls()
        for watch in watches:
            for name, found in vars(watch).items():
                getattr(joined, name).extend(found)
        return joined

    def is_same(self) -> bool:
        """Return whether everything is where and what it was; hooks aside."""
        return (
            all(map(operator.is_, map(dict.get, self.places, self.names), self.parts))
            and list(map(Tensor.data_ptr, self.tensors)) == self.pointers
            and self.children == self.made_of
            and all(state(tensor) == before for tensor, before in self.copied)
        )

    def is_hooked(self) -> bool:
        """Return whether someone wants to be called where a kernel would call nobody."""
        return any(self.hooks) or any("forward" in attributes for attributes in self.layers)

    def look_at(self, place: dict[str, Any], name: str) -> None:
        self.places.append(place)
        self.names.append(name)
        self.parts.append(place.get(name))

    def look_into(self, tensor: Tensor | None) -> None:
        if tensor is not None:
            self.tensors.append(tensor)
            self.pointers.append(tensor.data_ptr())


class Described:
    """A layer as kernels read it.

    Attributes:
        block: the layer; None in a copy, whose layers are others.
        arrays: its `LAYER`; None where a part is not one that kernels know. kept: what the addresses in it are of.
    """

    def __init__(self, block: nn.Module | None = None, config: StackConfig | None = None) -> None:
        self.block, self.watch, self.arrays, self.kept = block, Watch(), None, list[Any]()
        if block is not None and config is not None:
            self.arrays = self._look(block, config)

    def fits(self, block: nn.Module) -> bool:
        """Return whether this is what the layer is now."""
        return self.block is block and self.watch.is_same()

    def __reduce__(self) -> Any:
        return Described, ()

    def _look(self, block: nn.Module, config: StackConfig) -> Any:
        modules, linears = list(block.modules()), outermost(block)
        watch = self.watch
        watch.layers = [vars(block)]
        watch.hooks = [hooks for each in modules for hooks in (each._forward_hooks, each._forward_pre_hooks)]
        watch.children = [each._modules for each in modules]
        watch.made_of = [dict(children) for children in watch.children]
        weights: list[Any] = [linear.packed for linear in linears]
        for linear in linears:
            watch.look_at(vars(linear), "packed")
        for norm in (each for each in modules if isinstance(each, NORMS)):
            for name in ("weight", "bias"):
                watch.look_at(norm._parameters, name)
                watch.look_into(norm._parameters.get(name))
        for tensor in (x for weight in weights if isinstance(weight, KernelWeight) for x in weight.tensors):
            watch.look_into(tensor)
        known = all(isinstance(weight, KernelWeight) for weight in weights) and not any(map(is_shared, linears))
        return self._layer(block, config) if known and _is_ours(block) else None

    def _layer(self, block: Any, config: StackConfig) -> Any:
        """Return the `LAYER` of a `Block` or `ParallelBlock`."""
        layer = np.zeros(1, LAYER)
        attention, ffn, cross = block.attention, block.ffn, getattr(block, "cross", None)
        layer["parallel"] = config.residual == "parallel"
        for name in ("attention", "cross", "ffn"):
            norm, after = (getattr(block, f"{name}_{each}", nn.Identity()) for each in ("norm", "after_norm"))
            place = "pre" if config.residual == "parallel" else config.norm_place
            around = norms_around(place, norm, norm if name == "cross" else after)
            for each, found in zip(("before", "after", "outer"), around, strict=True):
                self._put_norm(layer[f"{name}_norms"][each], found)
        self._put_attention(layer["attention"], config, attention.qkv, attention.out, config.num_kv_heads)
        layer["attention"]["softcap"] = config.score_softcap or 0.0
        self._put_norm(layer["attention"]["q_norm"], attention.q_norm or attention.q_norm_all)
        self._put_norm(layer["attention"]["k_norm"], attention.k_norm or attention.k_norm_all)
        if cross is not None:
            self._put_attention(layer["cross"], config, cross.q, cross.out, config.num_heads)
        layer["ffn"]["gated"], layer["ffn"]["activation"] = config.ffn == "gated", ACTIVATION_CODES[config.activation]
        self._put_matrix(layer["ffn"]["up"], ffn.gate_up if config.ffn == "gated" else ffn.up)
        self._put_matrix(layer["ffn"]["down"], ffn.down)
        return layer

    def _put_attention(self, to: Any, config: StackConfig, qkv: Any, out: Any, kv_heads: int) -> None:
        to["heads"], to["kv_heads"], to["size"] = config.num_heads, kv_heads, config.head_dim
        to["scale"] = config.attention_scale
        self._put_matrix(to["qkv"], qkv)
        self._put_matrix(to["out"], out)

    def _put_matrix(self, to: Any, linear: Any) -> None:
        matrix = linear.packed.matrix
        self.kept.append(matrix)
        to[:] = matrix.record

    def _put_norm(self, to: Any, norm: object) -> None:
        """Describe a norm; anything else is of kind "none"."""
        if not isinstance(norm, NORMS):
            return
        is_layer = isinstance(norm, LayerNorm)
        to["kind"], to["size"], to["eps"] = (
            NORM_CODES["layer" if is_layer else "rms"],
            len(norm.weight),
            float(norm.eps),
        )
        to["offset"] = 0.0 if is_layer else norm.offset
        to["weight"] = self._address(norm.weight)
        to["bias"] = self._address(norm._parameters.get("bias"))

    def _address(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        array = as_array(tensor)
        self.kept.append(array)
        if address(array) != tensor.data_ptr():
            self.watch.copied.append((tensor, state(tensor)))
        return address(array)


def _is_ours(block: nn.Module) -> bool:
    """Return whether every part is this library's own; a norm may be an identity. Someone's wrapper does not go into a kernel."""
    package = "plainformer.model."
    return all(
        (type(part).__module__.startswith(package) or (path.endswith("norm") and type(part) is nn.Identity))
        and "forward" not in vars(part)
        for path, part in block.named_modules()
    )
