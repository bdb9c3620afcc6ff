"""A first count of an inference, until `inference.py` is there."""

from __future__ import annotations

import math

from plainformer.config.local import Local
from plainformer.plan.lengths import lengths
from plainformer.plan.result import ACTIVATIONS, CACHE, LOGITS, WEIGHTS, Item, Phase
from plainformer.plan.workload import Workload

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


def inference_phases(here: Local, workload: Workload, *, on_gpu: bool = False) -> tuple[Phase, ...]:
    del on_gpu
    count = sum(math.prod(part.local_shape) for part in here.parts.values())
    stack = here.model.main_stack
    at = lengths(here.config, workload)
    weights = Item(WEIGHTS, count * _BYTES[workload.dtype or "fp32"], workload.dtype or "fp32")
    size = 2 if workload.dtype in ("bf16", "fp16") else 4
    tokens = at.decoder + at.new
    cache = (
        2 * workload.rows * stack.num_kv_heads * stack.head_dim * tokens * size * len(here.layers.get("decoder", ()))
    )
    n = workload.batch * max(at.decoder, at.encoder)
    act = n * (3 * stack.hidden_size + 3 * stack.ffn_size) * size
    logits = workload.rows * here.model.head.out_size * 4
    first = (weights, Item(CACHE, cache), Item(ACTIVATIONS, act), Item(LOGITS, logits))
    if not cache:
        return (Phase("forward", first),)
    return (Phase("prefill", first), Phase("decode", (weights, Item(CACHE, cache), Item(LOGITS, logits))))
