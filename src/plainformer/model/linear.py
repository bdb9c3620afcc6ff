"""The one door to matrix products: what a linear computes with is decided when a model is prepared, never in `forward`.

Contract: a `Linear` and a `LinearGroup` answer the same whichever backend they have, up to floating-point order;
`state_dict()`, `load_state_dict()`, `.to()` and `.train()` see plain weights always.

Backends:
    plain   `F.linear` on an ordinary weight; the only one that trains.
    fused   a group's weights joined in one, one product for q, k, v or for gate and up.
    transposed  (fused and) turned over, so that even one token streams the weight with all threads.
    int8    (fused and) rounded to eight bits, one scale for each output; only when it is asked for.
    onednn  (fused and) reordered into the blocked layout that oneDNN's kernels want, so that no call reorders it again.

Shapes: ... any leading dimensions, I inputs, O outputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainformer.errors import UsageError

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


class TransposedWeight:
    """Weights (O, I), joined and turned over, (I, O), for few rows cut along the inputs into parts. Inference only.

    With one row, torch's ordinary product runs on one thread. Here P parts of the inputs, two for each thread, are each
    multiplied by their rows of the weight - long runs of memory, read once, in order - and the P partial results are
    added. Many rows are an ordinary product. `dense()` gives back the very same numbers.
    """

    FEW_ROWS = 32

    def __init__(self, weights: Sequence[Tensor], bias_O: Tensor | None) -> None:
        # Turned over on the way into place: joining first would leave a hole in the heap for each layer.
        turned = [weight_OI.detach().t() for weight_OI in weights]
        self.weight_IO = turned[0].contiguous() if len(turned) == 1 else torch.cat(turned, dim=1)
        self.in_size, self.out_size = self.weight_IO.shape
        most = 2 * torch.get_num_threads()
        self.parts = next(parts for parts in range(most, 0, -1) if self.in_size % parts == 0)
        self.weight_PIO = self.weight_IO.view(self.parts, -1, self.out_size)
        self.bias_O = None if bias_O is None else bias_O.detach()

    def __call__(self, x: Tensor) -> Tensor:
        _refuse_gradient(x)
        if x.numel() == self.in_size:  # one token, where each call into torch counts
            y = torch.bmm(x.reshape(self.parts, 1, -1), self.weight_PIO).sum(0, keepdim=True)
            if self.bias_O is not None:
                y += self.bias_O
            return y if x.dim() == 3 else y.view(*x.shape[:-1], self.out_size)
        x_RI = x.reshape(-1, self.in_size)
        if len(x_RI) > self.FEW_ROWS:
            y_RO = x_RI @ self.weight_IO if self.bias_O is None else torch.addmm(self.bias_O, x_RI, self.weight_IO)
        else:
            x_PRI = x_RI.view(len(x_RI), self.parts, -1).transpose(0, 1)
            y_RO = torch.bmm(x_PRI, self.weight_PIO).sum(0)
            if self.bias_O is not None:
                y_RO += self.bias_O
        return y_RO.view(*x.shape[:-1], self.out_size)

    def dense(self) -> Tensor:
        """The weight as an ordinary (O, I) tensor, a copy."""
        return self.weight_IO.t().contiguous()


class Int8Weight:
    """Weights (O, I), joined and rounded to 8 bits with one scale for each output (fbgemm). CPU, fp32 inputs, inference only.

    Inputs are rounded too, each row by its own largest entry, so that a row's answer does not depend on its neighbours.
    fbgemm adds pairs of products in 16 bits, which overflow with more than 7-bit inputs on processors without VNNI, and 7
    bits alone lose far too much (docs/decisions.md): so each row goes in twice, as its rounded 7-bit part and as what the
    rounding left, 126 times magnified. Together they hold 14 bits, and the weights are still read once.
    """

    LEVELS = 63  # of an input on each side of zero
    FINER = 126  # what is left of rounding is at most half a step

    def __init__(self, weights: Sequence[Tensor], bias_O: Tensor | None) -> None:
        weight_OI = torch.cat([weight.detach() for weight in weights])
        self.out_size, self.in_size = weight_OI.shape
        scales_O = weight_OI.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        rounded = (weight_OI / scales_O[:, None]).round_().to(torch.int8)
        zeros = torch.zeros(self.out_size, dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # that quantised tensor types will go: fbgemm takes no other yet
            weight = torch._make_per_channel_quantized_tensor(rounded, scales_O.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(weight, None)
        self.shares = torch.tensor([1.0, 1 / self.FINER]) / self.LEVELS  # of the two parts, before a row's scale
        self.bias_O = None if bias_O is None else bias_O.detach()

    def __call__(self, x: Tensor) -> Tensor:
        _refuse_gradient(x)
        x_RI = x.reshape(-1, self.in_size)
        scale_R1 = torch.linalg.vector_norm(x_RI, math.inf, dim=-1, keepdim=True)
        steps_RI = x_RI * (self.LEVELS / scale_R1).nan_to_num_(posinf=0.0)
        whole_RI = steps_RI.round()
        both = torch.cat((whole_RI, (steps_RI - whole_RI) * self.FINER))
        y_2RO = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            both, 1.0, self.LEVELS + 1, self.packed
        )
        if len(x_RI) == 1:
            y_RO = (scale_R1 * self.shares) @ y_2RO
        else:
            first_RO, second_RO = y_2RO.chunk(2)
            y_RO = torch.add(first_RO, second_RO, alpha=1 / self.FINER).mul_(scale_R1 / self.LEVELS)
        if self.bias_O is not None:
            y_RO += self.bias_O
        return y_RO.view(*x.shape[:-1], self.out_size)

    def dense(self) -> Tensor:
        """An error: what the weights were before is lost."""
        raise UsageError(
            "this model's weights were rounded to 8 bits when it was loaded with quantize='int8'",
            "load it without quantize=... to save, move, cast or train it",
        )


def can_quantize(weight: Tensor) -> bool:
    """Whether fbgemm can take this weight: fp32 on a CPU, with a build that has it."""
    return on_cpu_in_fp32(weight) and "fbgemm" in torch.backends.quantized.supported_engines


def _refuse_gradient(x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise UsageError(
            "a gradient was asked of a model that is prepared for inference",
            "call model.train() or load with prepare=False, which keep plain weights",
        )


def on_cpu_in_fp32(weight: Tensor) -> bool:
    """Where another layout than the plain one can pay."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN can take this weight: fp32 on a CPU, with a build that has it."""
    return on_cpu_in_fp32(weight) and torch.backends.mkldnn.is_available()


PackedWeight = OneDnnWeight | TransposedWeight | Int8Weight
# The layouts that give the same numbers, of which one may be chosen without asking.
LAYOUTS: dict[str, type[PackedWeight]] = {"onednn": OneDnnWeight, "transposed": TransposedWeight}


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
        self.product = lambda x: F.linear(x, weight, bias)

    def pack(self, layout: type[PackedWeight]) -> None:
        """One weight in another layout for all parts; the parts' own weights are released."""
        self.packed = self.product = layout(*self.unjoined())
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
