"""The one door to matrix products: what a linear computes with is decided when a model is prepared, never in `forward`.

Contract: a `Linear` and a `LinearGroup` answer the same whichever backend they have, up to floating-point order;
`state_dict()`, `load_state_dict()`, `.to()` and `.train()` see plain weights always.

Backends:
    plain   `F.linear` on an ordinary weight; the only one that trains.
    fused   a group's weights joined into one: one product for q, k, v or for gate and up.
    packed  (fused and) in another layout, with a product of its own: see `model/fast/packed.py`.

Where processes share a model, a linear has some rows of its weight, or some columns. What they have to tell each other is
installed from outside (`parallel/tensor.py`) and is not part of a product, which may be exchanged:

    enter   x → x before a linear of some rows: what the ranks' gradients of x are is added up.
    leave   y → the sum of all ranks' y, after a linear of some columns; its bias, which is whole, is added after that.

Shapes: ... any leading dimensions, I inputs, O outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainformer.model.unpacking import Unpacking

Product = Callable[[Tensor], Tensor]


class PackedWeight(Protocol):
    """A weight (O, I) in another layout, with its product. For inference alone; `model/fast/packed.py` has them."""

    bias_O: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b, (..., I) → (..., O)."""

    def dense(self) -> Tensor:
        """Return the weight as an ordinary (O, I) tensor."""


class Leave(Protocol):
    """Adds up what the ranks have of one output, each from its columns of a weight."""

    def __call__(self, y: Tensor) -> Tensor:
        """Return the sum over ranks; its gradient is that of each rank's y."""

    def largest(self, x: Tensor) -> Tensor:
        """Return the largest of all ranks' numbers, entry by entry."""

    def draws(self) -> AbstractContextManager[None]:
        """Return a context in which this rank draws numbers of its own."""


# Makes one packed weight of the weights to join, the bias of all, and what joins it with other ranks' columns.
Layout = Callable[[Sequence[Tensor], Tensor | None, Leave | None], PackedWeight]


class _Prepared(Unpacking):
    """What `Linear` and `LinearGroup` share: one product, of all their weights joined, may compute for them.

    `names`, `sizes`: each weight's name in this module, and its number of outputs. `product` None is the plain path.
    """

    names: list[str]
    sizes: list[int]
    packed: PackedWeight | None = None
    product: Product | None = None
    enter: Callable[[Tensor], Tensor] | None = None
    leave: Leave | None = None

    def parts(self) -> list[Linear]:
        raise NotImplementedError

    def unjoined(self) -> tuple[list[Tensor], Tensor | None]:
        """Return the plain weights, and one bias for all; none where it is added after `leave`."""
        parts = self.parts() if self.leave is None else []
        biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
        bias_O = torch.cat(biases) if len(biases) > 1 else biases[0] if biases else None
        return [part.weight for part in self.parts()], bias_O

    def pack(self, layout: Layout) -> None:
        """Compute with another layout of the weights; the plain ones are released."""
        weights, bias_O = self.unjoined()
        self.packed = self.product = layout(weights, bias_O, self.leave)
        for part in self.parts():
            part.weight = None  # type: ignore[assignment]
        self._share("bias", bias_O)

    def unpack(self) -> None:
        """Compute with plain weights again; does nothing where they are plain."""
        if self.packed is not None:
            self._share("weight", self.packed.dense())
            self._share("bias", self.packed.bias_O)
        self.packed = self.product = None

    def _share(self, name: str, joined: Tensor | None) -> None:
        """Make the parts' parameters views of a joined one: no memory is added, and an edit of theirs is one of it."""
        if joined is not None:
            for part, rows in zip(self.parts(), joined.detach().split(self.sizes), strict=True):
                setattr(part, name, nn.Parameter(rows, requires_grad=False))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            for name, rows in zip(self.names, self.packed.dense().split(self.sizes), strict=True):
                destination[prefix + name] = rows


class Linear(_Prepared):
    """y = x Wᵀ + b: (..., I) → (..., O); and what an adapter adds, while one is trained (`model/lora.py`).

    Attributes:
        cut: which dimension of the weight is divided among ranks, the first index that is here and the one after the last;
            None: all is here.
    """

    weight: Tensor  # None while packed
    cut: tuple[int, int, int] | None = None

    def __init__(self, in_size: int, out_size: int, bias: bool = True) -> None:
        super().__init__()
        self.in_size, self.names, self.sizes = in_size, ["weight"], [out_size]
        self.weight = nn.Parameter(torch.empty(out_size, in_size))
        self.bias = nn.Parameter(torch.empty(out_size)) if bias else None
        self.adapter: nn.Module | None = None

    def parts(self) -> list[Linear]:
        return [self]

    def forward(self, x: Tensor) -> Tensor:
        if self.enter is not None:
            x = self.enter(x)
        bias = self.bias if self.leave is None else None
        y = F.linear(x, self.weight, bias) if self.product is None else self.product(x)
        y = y if self.adapter is None else y + self.adapter(x)
        if self.leave is None:
            return y
        y = self.leave(y)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class LinearGroup(_Prepared):
    """Linears that read the same x, with one name each: q, k, v, or gate, up. (..., I) → one (..., O) for each name.

    The parts are plain `Linear` modules, which load, save and train by themselves. Preparing joins their weights.
    """

    def __init__(self, in_size: int, sizes: dict[str, int], bias: bool) -> None:
        super().__init__()
        self.in_size, self.names, self.sizes = in_size, [f"{name}.weight" for name in sizes], list(sizes.values())
        for name, size in sizes.items():
            self.add_module(name, Linear(in_size, size, bias))

    def parts(self) -> list[Linear]:
        return list(self._modules.values())  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.enter is not None:
            x = self.enter(x)
        if self.product is None:
            return tuple([part(x) for part in self.parts()])
        return torch.split_with_sizes(self.product(x), self.sizes, dim=-1)

    def fuse(self) -> None:
        """Compute with one plain weight for all parts."""
        weights, bias_O = self.unjoined()
        weight_OI = torch.cat(weights)
        self._share("weight", weight_OI)
        self._share("bias", bias_O)
        self.product = functools.partial(F.linear, weight=weight_OI, bias=bias_O)


def outermost(model: nn.Module) -> list[Linear | LinearGroup]:
    """Return every group, and every linear that is not part of a group."""
    found = [module for module in model.modules() if isinstance(module, Linear | LinearGroup)]
    inside = {id(part) for module in found if isinstance(module, LinearGroup) for part in module.parts()}
    return [module for module in found if id(module) not in inside]


def is_shared(module: Linear | LinearGroup) -> bool:
    """Return whether other processes have other rows or columns of a weight."""
    return module.enter is not None or module.leave is not None
