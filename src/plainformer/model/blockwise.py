"""Attention of a long input that looks back, a block of queries at a time: the same bits wherever the input was cut.

A prompt may be read at once or in chunks, whose keys a cache holds. Blocks begin at multiples of `BLOCK`, and each looks at the
keys up to its own end: every call has the size that it has in any other division into chunks of whole blocks.

Shapes: B batch, T positions (queries), S keys, H heads, K key-value heads (K divides H), G heads that share keys, E channels of
a head, N queries of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from plainformer.model.flow import Mask

BLOCK = 64
Attend = Callable[[Tensor, Tensor, Tensor, Mask], Tensor]


def goes_by_blocks(q_BHTE: Tensor, mask: Mask) -> bool:
    """Return whether an input is cut into blocks: of several positions that look back, on a CPU, without a gradient."""
    return mask.looks_back and q_BHTE.size(2) > 1 and q_BHTE.device.type == "cpu" and not torch.is_grad_enabled()


def attend_by_blocks(
    attend: Attend, q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Mask, past: int, groups: int
) -> Tensor:
    """Return context vectors, (B, H, T, E).

    Args:
        attend: computes a block. past: positions before the first query, also those that a cache does not hold any more.
        groups: G, to make the queries of heads that share keys rows of one product; 1: `attend` knows what shares.
    """
    batch, heads, queries, size = q_BHTE.shape
    context_BTHE = q_BHTE.new_empty(batch, queries, heads, size)
    for start, stop in blocks(past, queries):
        last = k_BKSE.size(2) - queries + stop
        first = 0 if mask.window is None else max(last - (stop - start) - mask.window + 1, 0)
        own = q_BHTE[:, :, start:stop].reshape(batch, heads // groups, -1, size)
        keys, values = k_BKSE[:, :, first:last], v_BKSE[:, :, first:last]
        if mask.bias is None:
            bias = _last(mask, stop - start, last - first, k_BKSE.size(2), groups, q_BHTE.dtype)
        else:
            bias = _part(mask.bias, slice(start, stop), slice(first, last), groups)
        context = attend(own, keys, values, Mask(bias))
        context_BTHE[:, start:stop] = context.reshape(batch, heads, -1, size).transpose(1, 2)
    return context_BTHE.transpose(1, 2)


def blocks(past: int, queries: int) -> Iterator[tuple[int, int]]:
    """Yield the ends of each block among the queries, which follow `past` positions."""
    start = 0
    while start < queries:
        stop = min(start + BLOCK - (past + start) % BLOCK, queries)
        yield start, stop
        start = stop


def _last(mask: Mask, queries: int, keys: int, longest: int, groups: int, dtype: torch.dtype) -> Tensor:
    """Return what hides later keys from some last queries, (1, 1, G * N, S), those of one head after another.

    A part of one table, for all blocks and layers: queries and keys are counted from the end.
    """
    table_GNS = mask.blocks.get(groups)
    if table_GNS is None or table_GNS.size(2) < keys:
        table_GNS = mask.blocks[groups] = _looking_back(longest, dtype).repeat(groups, 1, 1)
    part_GNS = table_GNS[:, BLOCK - queries :, table_GNS.size(2) - keys :]
    return part_GNS.flatten(0, 1)[None, None]


def _part(bias: Tensor, queries: slice, keys: slice, groups: int) -> Tensor:
    """Return some queries' and keys' part of a bias, (B or 1, K or 1, G * N, S), those of one head after another."""
    bias = bias if bias.dim() == 4 else bias[None, None]
    part = bias[..., keys] if bias.size(2) == 1 else bias[:, :, queries, keys]
    if groups == 1 or part.shape[1:3] == (1, 1):
        return part
    return part.repeat(1, 1, groups, 1) if part.size(1) == 1 else part.unflatten(1, (-1, groups)).flatten(2, 3)


def _looking_back(keys: int, dtype: torch.dtype) -> Tensor:
    """Return (N, S): zeros, and the lowest number where a key comes after a query; the last key is the last query's own."""
    bias_NS = torch.zeros(BLOCK, max(keys, BLOCK), dtype=dtype)
    bias_NS[:, -BLOCK:].masked_fill_(torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu(1), lowest(dtype))
    return bias_NS[:, -keys:]


def lowest(dtype: torch.dtype) -> float:
    """Return the lowest finite number that bf16 has too, which autocast may make of a mask."""
    return max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min)
