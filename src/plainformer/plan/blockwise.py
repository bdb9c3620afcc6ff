"""Attention of prompts by blocks of queries, as `model/blockwise.py` does it on a CPU. No torch.

Letters as in `layers.py`; G heads share keys.
"""

from __future__ import annotations

from plainformer.plan.layers import MASKS, Flow, Heads, Mask, attend, attend_eagerly
from plainformer.plan.operations import Operations
from plainformer.plan.tape import Value

BLOCK = 64


def attend_by_blocks(
    ops: Operations, heads: Heads, flow: Flow, mask: Mask, own: tuple[int, int, int], softcap: float | None
) -> Value:
    """Return the context; the last block, which sees all keys, is the largest."""
    H, K, S = own
    queries, width = min(BLOCK, flow.queries), heads.q.width
    groups = 1 if softcap is not None else H // K
    count = heads.q.numbers // flow.queries * queries
    context = ops.new(heads.q.numbers, width)
    bias = _bias(ops, flow, mask, S, groups, queries, width)
    own_q = ops.new(count, width) if groups > 1 else Value(count, width, heads.q.storage, None)
    part = Flow(flow.rows, groups * queries, [], [])
    block = Heads(own_q, heads.k, heads.v, heads.apart, heads.by_head)
    del own_q
    if softcap is not None:
        result = attend_eagerly(ops, block, part, Mask(bias), own, softcap, 0.0)
    else:
        result = attend(ops, block, part, Mask(bias), (H // groups, K, S), 0.0)
    del result, block, bias
    return context


def _bias(ops: Operations, flow: Flow, mask: Mask, S: int, groups: int, queries: int, width: int) -> Value:
    """Return what a block's scores get: part of one table for all blocks, or of the layer's mask."""
    if mask.bias is not None:
        each = mask.bias.numbers // (flow.length * S)  # for how many rows and heads it differs
        return ops.new(each * groups * queries * S, width) if groups > 1 else mask.bias.seen_as(strided=True)
    if groups not in flow.tables:
        with ops.named(MASKS):
            flow.tables[groups] = ops.new(groups * BLOCK * max(S, BLOCK), width)
    return flow.tables[groups].seen_as(strided=True)
