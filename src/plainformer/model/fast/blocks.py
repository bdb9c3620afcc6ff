"""Weights in blocks of few bits: how they lie in memory, what numbers they are, and how numbers are rounded to them.

Shapes: O outputs, I inputs, W bytes of a row, N blocks, M numbers of a block, R rows of an input.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plainformer.model.fast.ahead import NotYet
from plainformer.model.fast.compiled import follow_torch_threads, quantised

# What the kernels read as it lies in a file, and what they call it. F32: numbers as they are, beside others in blocks.
KIND_CODES = {
    name: code for code, name in enumerate(("F32", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"))
}
BLOCK = 32  # numbers of an input that are rounded with one scale, and of a weight that we round
# Large enough that numpy's overhead vanishes, small enough for a cache: 6 times faster than the library's 16 rows.
CHUNK_ELEMENTS = 1 << 17


def dequantise(stored: Any, kind: str, shape: tuple[int, ...]) -> Tensor:
    """Return the fp32 numbers of blocks, uint8 in an array of any shape, straight into the result.

    A cache-sized piece at a time: the `gguf` library alone needs twice the memory.
    """
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[number]
    result = torch.empty(shape, dtype=torch.float32)
    blocks = stored.reshape(-1, block_bytes)
    flat = result.view(-1).numpy()
    step = CHUNK_ELEMENTS // block_elements
    with np.errstate(all="ignore"):  # garbage scales are inf or nan, as in every other reader of the format
        for first in range(0, len(blocks), step):
            # Blocks are independent, so that a piece can be shown to the library as one long row.
            piece = gguf.dequantize(blocks[first : first + step].reshape(1, -1), number)
            flat[first * block_elements : first * block_elements + piece.size] = piece.reshape(-1)
    return result


@dataclass(frozen=True, eq=False)
class Blocks:
    """A weight (O, I) in blocks.

    Attributes:
        kind: one of `KIND_CODES`. stored_OW: its bytes, row by row, which may be a file's own pages.
        in_size: numbers of a row; the last block may have more, which are zero.
    """

    kind: str
    stored_OW: Tensor
    in_size: int

    @classmethod
    def plain(cls, weight_OI: Tensor) -> Blocks:
        """Return fp32 numbers as they are."""
        return cls("F32", weight_OI.detach().contiguous().view(torch.uint8), weight_OI.size(1))

    def __len__(self) -> int:
        return len(self.stored_OW)

    def rows(self, start: int, stop: int) -> Blocks:
        """Return some of the rows."""
        return Blocks(self.kind, self.stored_OW[start:stop], self.in_size)

    def segment(self) -> list[int]:
        """Return what the kernels know of it: address, rows, bytes from one to the next, kind."""
        return [self.stored_OW.data_ptr(), len(self), self.stored_OW.stride(0), KIND_CODES[self.kind]]

    def dense(self) -> Tensor:
        """Return the numbers, (O, I), fp32: those that every reader of the format computes, bit for bit."""
        if self.kind == "F32":
            return self.stored_OW.view(torch.float32)
        if not len(self):
            return torch.empty(0, self.in_size)
        if (module := quantised()) is not None:
            follow_torch_threads()
            y_OI = torch.empty(len(self), self.in_size)
            with suppress(NotYet):
                module.widen(np.array([self.segment()]), y_OI.numpy())
                return y_OI
        whole = -(-self.in_size // BLOCK) * BLOCK
        return dequantise(self.stored_OW.numpy(), self.kind, (len(self), whole))[:, : self.in_size]

    def lookup(self, ids: Tensor) -> Tensor:
        """Return some of the rows as numbers: (...,) → (..., I)."""
        some = F.embedding(ids.flatten(), self.stored_OW)
        return Blocks(self.kind, some, self.in_size).dense().view(*ids.shape, self.in_size)


def rounded(x: Tensor) -> Tensor:
    """Return an input as the kernels round it, (..., I): eight bits for each number, one scale for 32 of them."""
    size = x.size(-1)
    blocks = F.pad(x, (0, -size % BLOCK)).unflatten(-1, (-1, BLOCK))
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    turned = torch.where(scales > 0, 1 / scales, 0)
    return ((blocks * turned).round_() * scales).flatten(-2)[..., :size]


def to_8_bits(weight_OI: Tensor) -> Blocks:
    """Round a weight to Q8_0 blocks: the largest of 32 numbers is 127."""
    blocks_NM = _in_blocks(weight_OI)
    scales_N1 = (blocks_NM.abs().amax(1, keepdim=True) / 127).half()
    turned = torch.where(scales_N1 > 0, 1 / scales_N1.float(), 0)
    bytes_NM = (blocks_NM * turned).round_().clamp_(-127, 127).to(torch.int8).view(torch.uint8)
    return _stored("Q8_0", [scales_N1, bytes_NM], weight_OI)


# Parts of the range from a block's smallest number to its largest that are tried for its 16 levels.
SHRINKS = [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.8]


def to_4_bits(weight_OI: Tensor) -> Blocks:
    """Round a weight to Q4_1 blocks: 16 levels, from a minimum on in steps of a scale.

    Of several ranges, and the straight line through what they give (least squares), the one whose squared error is least.
    """
    x_NM = _in_blocks(weight_OI)
    low_N1, high_N1 = x_NM.amin(1, keepdim=True), x_NM.amax(1, keepdim=True)
    best_N1 = torch.full_like(low_N1, torch.inf)
    found = [torch.zeros_like(low_N1), torch.zeros_like(low_N1)]
    for part in SHRINKS:
        middle, span = (high_N1 + low_N1) / 2, (high_N1 - low_N1) * part
        scale, minimum = span / 15, middle - span / 2
        levels = _levels(x_NM, scale, minimum)
        scale, minimum = _line(levels, x_NM, scale, minimum)
        error_N1 = (_levels(x_NM, scale, minimum) * scale + minimum - x_NM).square().sum(1, keepdim=True)
        better = error_N1 < best_N1
        best_N1 = torch.where(better, error_N1, best_N1)
        found = [torch.where(better, new, old) for new, old in zip((scale, minimum), found, strict=True)]
    scale, minimum = found
    levels = _levels(x_NM, scale, minimum).to(torch.uint8)
    return _stored("Q4_1", [scale.half(), minimum.half(), levels[:, :16] | levels[:, 16:] << 4], weight_OI)


def _in_blocks(weight_OI: Tensor) -> Tensor:
    padded = F.pad(weight_OI.detach().float(), (0, -weight_OI.size(1) % BLOCK))
    return padded.reshape(-1, BLOCK)


def _levels(x_NM: Tensor, scale_N1: Tensor, minimum_N1: Tensor) -> Tensor:
    turned = torch.where(scale_N1 > 0, 1 / scale_N1, 0)
    return ((x_NM - minimum_N1) * turned).round_().clamp_(0, 15)


def _line(levels_NM: Tensor, x_NM: Tensor, scale_N1: Tensor, minimum_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the line through numbers and their levels, as half precision holds it; the given one where levels are all one."""
    mean_l, mean_x = levels_NM.mean(1, keepdim=True), x_NM.mean(1, keepdim=True)
    spread = (levels_NM - mean_l).square().sum(1, keepdim=True)
    slope = ((levels_NM - mean_l) * (x_NM - mean_x)).sum(1, keepdim=True) / spread
    fits = (spread > 0) & (slope > 0)
    scale = torch.where(fits, slope, scale_N1).half().float()
    return scale, torch.where(fits, mean_x - scale * mean_l, minimum_N1).half().float()


def _stored(kind: str, fields: list[Tensor], weight_OI: Tensor) -> Blocks:
    """Return blocks of these fields, one after the other."""
    bytes_NW = torch.cat([each.contiguous().view(torch.uint8) for each in fields], dim=1)
    return Blocks(kind, bytes_NW.view(len(weight_OI), -1), weight_OI.size(1))
