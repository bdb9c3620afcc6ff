"""The one door to matrix products: what a linear computes with is decided when a model is prepared, never in `forward`.

Contract: a `Linear` and a `LinearGroup` answer the same whichever backend they have, up to floating-point order;
`state_dict()`, `load_state_dict()`, `.to()` and `.train()` see plain weights always.

Backends:
    plain   `F.linear` on an ordinary weight; the only one that trains.
    fused   a group's weights joined in one, one product for q, k, v or for gate and up.
    onednn  (fused and) reordered into the blocked layout that oneDNN's kernels want, so that no call reorders it again.
    compiled  (fused and) few rows multiplied by kernels of our own, that read the weight once with all threads.
    int8    the same with weights rounded to eight bits, one scale for each output; only when it is asked for.

Shapes: ... any leading dimensions, I inputs, O outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainformer.errors import UsageError
from plainformer.model.fast.compiled import FEW_ROWS, affine, as_array, follow_torch_threads, kernels, version

Product = Callable[[Tensor], Tensor]


class OneDnnWeight:
    """Weights (O, I), joined, in oneDNN's blocked layout: fp32, CPU, inference only. `dense()` gives the same numbers back."""

    def __init__(self, weights: Sequence[Tensor], bias_O: Tensor | None) -> None:
        weight_OI = weights[0] if len(weights) == 1 else torch.cat(list(weights))
        # The hint is the batch that the blocked layout is chosen for: one token, the case of decoding.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), 1)
        self.bias_O = None if bias_O is None else bias_O.detach()

    def __call__(self, x: Tensor) -> Tensor:
        _refuse_gradient(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias_O, "none", [], "")

    def dense(self) -> Tensor:
        """The weight as an ordinary (O, I) tensor, a copy."""
        return self.packed.to_dense()

    def __reduce__(self) -> Any:
        # torch can neither copy nor pickle a blocked tensor. As an array: a tensor sent to a process has to outlive that.
        return _reordered, (self.dense().numpy(), self.bias_O)


def _reordered(weight_OI: Any, bias_O: Tensor | None) -> OneDnnWeight:
    return OneDnnWeight([torch.from_numpy(weight_OI)], bias_O)


class _KernelWeight:
    """What the kernels read of a weight (O, I), its scales and its bias."""

    def __init__(self, stored_OI: Tensor, scales_O: Tensor | None, bias_O: Tensor | None) -> None:
        self.stored_OI, self.scales_O = stored_OI, scales_O
        self.out_size, self.in_size = stored_OI.shape
        self.bias_O = None if bias_O is None else bias_O.detach()
        self._matrix: tuple[Any, Any] | None = None
        self._made_of = (0, 0)

    @property
    def matrix(self) -> tuple[Any, Any]:
        """A `kernels.Matrix`, another one after a change.

        torch moves a weight to other memory when another process is sent it, and the old is gone; a bias may be edited.
        """
        made_of = self.stored_OI.data_ptr(), version(self.bias_O)
        if self._matrix is None or self._made_of != made_of:
            self._matrix = as_array(self.stored_OI), affine(self.scales_O, self.bias_O, self.out_size)
            self._made_of = made_of
        return self._matrix

    def takes(self, x: Tensor) -> bool:
        """Whether the kernels are for this input: few rows, in fp32 (autocast gives others)."""
        return x.numel() <= FEW_ROWS * self.in_size and x.dtype == torch.float32 and kernels() is not None

    def few_rows(self, x: Tensor) -> Tensor:
        module = kernels()
        assert module is not None
        y = x.new_empty(*x.shape[:-1], self.out_size)
        follow_torch_threads()
        module.multiply(*self.matrix, as_array(x).reshape(-1, self.in_size), y.numpy().reshape(-1, self.out_size), 0, 0)
        return y

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matrix": None}  # else a copy would hold its weight twice


class CompiledWeight(_KernelWeight):
    """Weights (O, I), joined, as they are, with kernels of our own for few rows and torch's product for many.

    torch's ordinary product of one row runs on one thread; the kernel reads the weight once, with all threads, and for
    up to `FEW_ROWS` rows. Inference only. `dense()` gives back the very same numbers.
    """

    def __init__(self, weights: Sequence[Tensor], bias_O: Tensor | None) -> None:
        weight_OI = weights[0].detach() if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])
        super().__init__(weight_OI.contiguous(), None, bias_O)

    def __call__(self, x: Tensor) -> Tensor:
        _refuse_gradient(x)
        return self.few_rows(x) if self.takes(x) else F.linear(x, self.stored_OI, self.bias_O)

    def dense(self) -> Tensor:
        """The weight as an ordinary (O, I) tensor."""
        return self.stored_OI


class Int8Weight(_KernelWeight):
    """Weights (O, I), joined and rounded to 8 bits with one scale for each output; inputs stay as they are. CPU, inference only.

    A quarter of the memory is what a decoding step then reads. Many rows are multiplied by the weight made wide again, a
    piece at a time.
    """

    PIECE = 2**20  # weights that are made wide at a time: they stay in the processor's cache

    def __init__(self, weights: Sequence[Tensor], bias_O: Tensor | None) -> None:
        weight_OI = torch.cat([weight.detach() for weight in weights])
        scales_O = weight_OI.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        super().__init__((weight_OI / scales_O[:, None]).round_().to(torch.int8), scales_O, bias_O)

    def __call__(self, x: Tensor) -> Tensor:
        _refuse_gradient(x)
        if self.takes(x):
            return self.few_rows(x)
        assert self.scales_O is not None
        pieces = self.stored_OI.split(max(self.PIECE // self.in_size, 1))
        y = torch.cat([F.linear(x, piece.float()) for piece in pieces], dim=-1).mul_(self.scales_O)
        return y if self.bias_O is None else y.add_(self.bias_O)

    def dense(self) -> Tensor:
        """An error: what the weights were before is lost."""
        raise UsageError(
            "this model's weights were rounded to 8 bits when it was loaded with quantize='int8'",
            "load it without quantize=... to save, move, cast or train it",
        )


def _refuse_gradient(x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise UsageError(
            "a gradient was asked of a model that is prepared for inference",
            "call model.train() or load with prepare=False, which keep plain weights",
        )


def on_cpu_in_fp32(weight: Tensor) -> bool:
    """Where another layout than the plain one can pay."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32


PackedWeight = OneDnnWeight | CompiledWeight | Int8Weight
# The layouts that give the same numbers, of which one may be chosen without asking.
LAYOUTS: dict[str, type[PackedWeight]] = {"onednn": OneDnnWeight, "compiled": CompiledWeight}


class _Prepared(nn.Module):
    """What `Linear` and `LinearGroup` share: plain parameters that may have been swapped for a packed weight."""

    packed: PackedWeight | None = None

    def unjoined(self) -> tuple[list[Tensor], Tensor | None]:
        """The plain weights, and one bias for all."""
        raise NotImplementedError

    def pack(self, layout: type[PackedWeight]) -> None:
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

    def pack(self, layout: type[PackedWeight]) -> None:
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

    def pack(self, layout: type[PackedWeight]) -> None:
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


def unprepare(model: nn.Module) -> None:
    """Give every linear its plain weight back."""
    for module in outermost(model):
        module.unpack()
