"""Weights in the layouts that inference wants, each with its product: what `Linear.pack` puts in place of a plain weight.

    onednn    reordered into the blocked layout that oneDNN's kernels want, so that no call reorders it again.
    compiled  as they are; few rows are multiplied by custom kernels, which read the weight once with all threads.
    int8      the same with weights rounded to eight bits, one scale for each output; only on request.
    int4      in blocks of 32 numbers that were rounded to four bits, and are multiplied as whole numbers; only on request.

A file's own blocks (GGUF) stay as they are: `BlockWeight`.

Shapes: ... any leading dimensions, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plainformer.errors import UsageError, opt
from plainformer.model.fast.ahead import NotYet
from plainformer.model.fast.blocks import Blocks, rounded, to_4_bits, to_8_bits
from plainformer.model.fast.compiled import (
    FEW_ROWS,
    Matrix,
    address,
    as_array,
    follow_torch_threads,
    kernels,
    paths,
    quantised,
    state,
)
from plainformer.model.fast.records import BLOCKS, INT8, NUMBERS
from plainformer.model.linear import Layout, Leave


class OneDnnWeight:
    """Weights (O, I), joined, in oneDNN's blocked layout: fp32, CPU, inference only. `dense()` gives the same numbers back.

    `rows`: the number of tokens that the layout is chosen for; any may come.
    """

    def __init__(
        self, weights: Sequence[Tensor], bias_O: Tensor | None, leave: Leave | None = None, rows: int = 1
    ) -> None:
        self.rows = rows
        self.packed = torch.ops.mkldnn._reorder_linear_weight(_joined(weights), rows)
        self.bias_O = None if bias_O is None else bias_O.detach()

    def __call__(self, x: Tensor) -> Tensor:
        _refuse_gradient(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias_O, "none", [], "")

    def dense(self) -> Tensor:
        """Return the weight as an ordinary (O, I) tensor, a copy."""
        return self.packed.to_dense()

    def __reduce__(self) -> Any:
        # torch can neither copy nor pickle a blocked tensor. As an array: a tensor sent to a process has to outlive that.
        return _reordered, (self.dense().numpy(), self.bias_O, self.rows)


def _reordered(weight_OI: Any, bias_O: Tensor | None, rows: int) -> OneDnnWeight:
    return OneDnnWeight([torch.from_numpy(weight_OI)], bias_O, rows=rows)


class KernelWeight:
    """A weight (O, I), its scales and its bias, as the kernels read them: few rows are multiplied by these, many by torch."""

    def __init__(self, stored_OI: Tensor, scales_O: Tensor | None, bias_O: Tensor | None) -> None:
        self.stored_OI, self.scales_O = stored_OI, scales_O
        self.out_size, self.in_size = stored_OI.shape
        self.bias_O = None if bias_O is None else bias_O.detach()
        self._matrix: Matrix | None = None
        self._made_of: object = None

    @property
    def matrix(self) -> Matrix:
        """What a kernel reads, made again after a change.

        torch moves a weight to other memory when another process is sent it, and the old is gone; a bias may be edited.
        """
        made_of = [state(tensor) for tensor in self.tensors]
        if self._matrix is None or self._made_of != made_of:
            self._matrix, self._made_of = self._made(), made_of
        return self._matrix

    @property
    def tensors(self) -> list[Tensor | None]:
        """What the matrix is made of."""
        return [self.stored_OI, self.bias_O]

    def _made(self) -> Matrix:
        kind = INT8 if self.stored_OI.dtype == torch.int8 else NUMBERS
        return self._matrix_of(kind, as_array(self.stored_OI))

    def _matrix_of(self, kind: int, weight: Any) -> Matrix:
        scales, bias = (None if x is None else as_array(x) for x in (self.scales_O, self.bias_O))
        return Matrix(kind, (self.in_size, self.out_size), weight, scales, bias)

    def __call__(self, x: Tensor) -> Tensor:
        _refuse_gradient(x)
        few = (
            _is_step(x) and x.numel() <= FEW_ROWS * self.in_size and x.dtype == torch.float32
        )  # autocast gives other types
        if not few or (module := paths.current()) is None:
            return self.many_rows(x)
        return self._multiplied(x, module)

    def _multiplied(self, x: Tensor, module: ModuleType) -> Tensor:
        follow_torch_threads()
        y, given = x.new_empty(*x.shape[:-1], self.out_size), as_array(x)
        try:
            module.multiply(self.matrix.address, y.numel() // self.out_size, address(given), y.data_ptr(), 0, 0)
        except NotYet:
            return self.many_rows(x)
        return y

    def many_rows(self, x: Tensor) -> Tensor:
        """Return the product as torch computes it."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matrix": None}  # else a copy would hold its weight twice


class CompiledWeight(KernelWeight):
    """Weights (O, I), joined, as they are. Inference only. `dense()` gives back the very same numbers.

    torch's ordinary product of one row runs on one thread; the kernel reads the weight once, with all threads.
    """

    def __init__(self, weights: Sequence[Tensor], bias_O: Tensor | None, leave: Leave | None = None) -> None:
        super().__init__(_joined(weights).contiguous(), None, bias_O)

    def many_rows(self, x: Tensor) -> Tensor:
        return multiply_many(x, self.stored_OI, self.bias_O)

    def dense(self) -> Tensor:
        """Return the weight as an ordinary (O, I) tensor."""
        return self.stored_OI


class Int8Weight(KernelWeight):
    """Weights (O, I), joined and rounded to 8 bits with one scale for each output; inputs stay as they are. CPU, inference only.

    A quarter of the memory is what a decoding step then reads. Many rows are multiplied by the weight made wide again, a
    piece at a time.
    """

    PIECE = 2**20  # weights that are made wide at a time: they stay in the processor's cache

    def __init__(self, weights: Sequence[Tensor], bias_O: Tensor | None, leave: Leave | None = None) -> None:
        weight_OI = _joined(weights)
        widest_O = weight_OI.abs().amax(1)
        if leave is not None:  # other ranks have the other columns: one scale for a whole row, as in one process
            widest_O = leave.largest(widest_O)
        scales_O = widest_O.clamp_min(torch.finfo(torch.float32).tiny) / 127
        super().__init__((weight_OI / scales_O[:, None]).round_().to(torch.int8), scales_O, bias_O)

    def many_rows(self, x: Tensor) -> Tensor:
        assert self.scales_O is not None
        pieces = self.stored_OI.split(max(self.PIECE // self.in_size, 1))
        scales = self.scales_O.split(len(pieces[0]))
        parts = [
            multiply_many(x, piece * scale_O[:, None], None) for piece, scale_O in zip(pieces, scales, strict=True)
        ]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return y if self.bias_O is None else y.add_(self.bias_O)

    def dense(self) -> Tensor:
        """Raise: what the weights were before is lost."""
        raise UsageError(
            f"this model's weights were rounded to 8 bits when it was loaded with {opt('quantize', 'int8')}",
            f"load it without {opt('quantize')} to save, move, cast or train it",
        )


class BlockWeight(KernelWeight):
    """Weights (O, I) in blocks of few bits, one below the other, each of its own kind. CPU, inference only.

    Each input is rounded to eight bits, one scale for 32 numbers, however many rows there are: a row gets one answer. Few rows
    are multiplied as whole numbers; for many, the weight is made wide again, a piece at a time.
    """

    FEW = 64  # rows: beyond, products of wide numbers are faster
    PIECE = 2**20  # weights that are made wide at a time: they stay in the processor's cache

    def __init__(self, parts: Sequence[Blocks], bias_O: Tensor | None) -> None:
        self.parts, self.scales_O = tuple(parts), None
        self.out_size, self.in_size = sum(map(len, parts)), parts[0].in_size
        self.bias_O = None if bias_O is None else bias_O.detach()
        self._matrix: Matrix | None = None
        self._made_of: object = None

    @property
    def tensors(self) -> list[Tensor | None]:
        return [*(part.stored_OW for part in self.parts), self.bias_O]

    def _made(self) -> Matrix:
        return self._matrix_of(BLOCKS, np.array([part.segment() for part in self.parts]))

    def __call__(self, x: Tensor) -> Tensor:
        _refuse_gradient(x)
        x = x.float()  # autocast gives other types
        few = 0 < x.numel() <= self.FEW * self.in_size
        # As soon as there are kernels, also within a sequence: torch, which makes the weight wide each time, is far slower.
        if not few or quantised() is None or (module := kernels()) is None:
            return self.many_rows(x)
        return self._multiplied(x, module)

    def many_rows(self, x: Tensor) -> Tensor:
        made, narrow = [], rounded(x)
        for part in self.parts:
            step = max(self.PIECE // self.in_size, 1)
            for first in range(0, len(part), step):
                piece = part.rows(first, min(first + step, len(part)))
                made.append(multiply_many(x if part.kind == "F32" else narrow, piece.dense(), None))
        y = torch.cat(made, dim=-1)
        return y if self.bias_O is None else y.add_(self.bias_O)

    def dense(self) -> Tensor:
        """Return the weight as an ordinary (O, I) tensor, a copy: what the file says, exactly."""
        return torch.cat([part.dense() for part in self.parts])


class Int4Weight(BlockWeight):
    """Weights (O, I), joined and rounded to blocks of 4 bits; inputs to 8. CPU, inference only."""

    def __init__(self, weights: Sequence[Tensor], bias_O: Tensor | None, leave: Leave | None = None) -> None:
        super().__init__([self.rounded(weight) for weight in weights], bias_O)

    rounded = staticmethod(to_4_bits)

    def dense(self) -> Tensor:
        """Raise: what the weights were before is lost."""
        raise UsageError(
            f"this model's weights were rounded to 4 bits when it was loaded with {opt('quantize', 'int4')}",
            f"load it without {opt('quantize')} to save, move, cast or train it",
        )


class Int4HeadWeight(Int4Weight):
    """What scores words in a model of `Int4Weight`: with 8 bits, in which llama.cpp keeps it too, or nearly."""

    rounded = staticmethod(to_8_bits)


def _is_step(x: Tensor) -> bool:
    """Return whether each row has one position: what a prompt's tokens are multiplied by does not depend on how many they are."""
    return x.dim() < 2 or x.size(-2) == 1


def multiply_many(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return x Wᵀ + b: a prompt, or an encoder's input.

    By oneDNN where it is there, which gives a row the same bits among any others, and is sooner than torch's own product
    (1.1 to 1.5 times with 8 to 512 rows on AVX2 and AVX-512); not a single row, with which it is neither.
    """
    fits = x.device.type == "cpu" and x.dtype == weight_OI.dtype == torch.float32 and x.numel() > x.size(-1) > 0
    if fits and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")
    return F.linear(x, weight_OI, bias_O)


def _joined(weights: Sequence[Tensor]) -> Tensor:
    return weights[0].detach() if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])


def _refuse_gradient(x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise UsageError(
            "a gradient was asked of a model that is prepared for inference",
            f"call model.train() or load with {opt('prepare', False)}, which keep plain weights",
        )


# What changes the answers, and is taken on request alone.
ROUNDED: dict[str, Layout] = {"int8": Int8Weight, "int4": Int4Weight}
LAYOUTS: dict[str, Layout] = {"onednn": OneDnnWeight, "compiled": CompiledWeight, **ROUNDED}
