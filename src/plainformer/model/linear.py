"""The one door to matrix products: what a linear computes with is decided when a model is prepared, never in `forward`.

Contract: a `Linear` and a `LinearGroup` answer the same whichever backend they have, up to floating-point order;
`state_dict()`, `load_state_dict()`, `.to()` and `.train()` see plain weights always.

Backends:
    plain   `F.linear` on an ordinary weight; the only one that trains.
    fused   a group's weights joined into one: one product for q, k, v or for gate and up.
    packed  (fused and) in another layout, with a product of its own: see `model/fast/packed.py`.

Shapes: ... any leading dimensions, I inputs, O outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]


class PackedWeight(Protocol):
    """A weight (O, I) in another layout, with its product. For inference alone; `model/fast/packed.py` has them."""

    bias_O: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b, (..., I) → (..., O)."""

    def dense(self) -> Tensor:
        """Return the weight as an ordinary (O, I) tensor."""


# Makes one packed weight of the weights to join, and the bias of all.
Layout = Callable[[Sequence[Tensor], Tensor | None], PackedWeight]


class _Prepared(nn.Module):
    """What `Linear` and `LinearGroup` share: plain parameters that may have been swapped for a packed weight."""

    packed: PackedWeight | None = None

    def unjoined(self) -> tuple[list[Tensor], Tensor | None]:
        """The plain weights, and one bias for all."""
        raise NotImplementedError

    def pack(self, layout: Layout) -> None:
        raise NotImplementedError

    def unpack(self) -> None:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.unpack()  # moving or casting a blocked layout would leave it where it is
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> Any:
        if mode:
            self.unpack()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)


class Linear(_Prepared):
    """y = x Wᵀ + b: (..., I) → (..., O)."""

    def __init__(self, in_size: int, out_size: int, bias: bool = True) -> None:
        super().__init__()
        self.in_size, self.out_size = in_size, out_size
        self.weight: Tensor | None = nn.Parameter(torch.empty(out_size, in_size))
        self.bias = nn.Parameter(torch.empty(out_size)) if bias else None
        self.product: Product = self._plain

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)

    def _plain(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.linear(x, self.weight, self.bias)

    def unjoined(self) -> tuple[list[Tensor], Tensor | None]:
        assert self.weight is not None
        return [self.weight], self.bias

    def pack(self, layout: Layout) -> None:
        """Swap the weight for another layout; the plain one is released."""
        self.packed = self.product = layout(*self.unjoined())
        self.weight = None

    def unpack(self) -> None:
        """Back to a plain weight; does nothing on a plain linear."""
        if self.packed is not None:
            self.weight = nn.Parameter(self.packed.dense(), requires_grad=False)
        self.packed, self.product = None, self._plain

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            destination[prefix + "weight"] = self.packed.dense()


class LinearGroup(_Prepared):
    """Linears that read the same x, with one name each: q, k, v, or gate, up. (..., I) → one (..., O) for each name.

    The parts are plain `Linear` modules, which load, save and train by themselves. Preparing joins their weights.
    """

    def __init__(self, in_size: int, sizes: dict[str, int], bias: bool) -> None:
        super().__init__()
        self.sizes = list(sizes.values())
        self.names = list(sizes)
        for name, size in sizes.items():
            self.add_module(name, Linear(in_size, size, bias))
        self.product: Product | None = None

    def parts(self) -> list[Linear]:
        return [getattr(self, name) for name in self.names]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.product is None:
            return tuple(part(x) for part in self.parts())
        return torch.split_with_sizes(self.product(x), self.sizes, dim=-1)

    def unjoined(self) -> tuple[list[Tensor], Tensor | None]:
        weights = [part.weight for part in self.parts()]
        biases = [part.bias for part in self.parts()]
        bias = None if biases[0] is None else torch.cat([b for b in biases if b is not None])
        return [w for w in weights if w is not None], bias

    def fuse(self) -> None:
        """One plain weight for all parts; each part's parameters become views of it, so no memory is added."""
        weights, bias = self.unjoined()
        weight = torch.cat(weights)
        self._share(weight, bias)
        self.product = functools.partial(F.linear, weight=weight, bias=bias)

    def pack(self, layout: Layout) -> None:
        """One weight in another layout for all parts; the parts' own weights are released."""
        weights, bias = self.unjoined()
        self.packed = self.product = layout(weights, bias)
        self._share_bias(bias)
        for part in self.parts():
            part.weight = None

    def unpack(self) -> None:
        """Back to separate plain parts."""
        if self.packed is not None:
            self._share(self.packed.dense(), self.packed.bias_O)
        self.packed = self.product = None

    def _share(self, weight: Tensor, bias: Tensor | None) -> None:
        for part, rows in zip(self.parts(), weight.detach().split(self.sizes), strict=True):
            part.weight = nn.Parameter(rows, requires_grad=False)
        self._share_bias(bias)

    def _share_bias(self, bias: Tensor | None) -> None:
        """The parts' biases become views of the one for all, so that an edit of theirs is one of it."""
        if bias is not None:
            for part, values in zip(self.parts(), bias.detach().split(self.sizes), strict=True):
                part.bias = nn.Parameter(values, requires_grad=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            for name, rows in zip(self.names, self.packed.dense().split(self.sizes), strict=True):
                destination[f"{prefix}{name}.weight"] = rows


def outermost(model: nn.Module) -> Iterable[Linear | LinearGroup]:
    """Every group, and every linear that is not part of a group."""
    inside = {id(part) for module in model.modules() if isinstance(module, LinearGroup) for part in module.parts()}
    for module in model.modules():
        if isinstance(module, Linear | LinearGroup) and id(module) not in inside:
            yield module
