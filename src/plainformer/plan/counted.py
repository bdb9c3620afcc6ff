"""What each rank of a layout holds, phase by phase. No torch."""

from __future__ import annotations

import math

from plainformer.config.layout import Layout
from plainformer.config.local import Local, local
from plainformer.config.model import ModelConfig
from plainformer.plan.result import (
    ACTIVATIONS,
    CACHE,
    GRADIENTS,
    LOGITS,
    OPTIMIZER,
    WEIGHTS,
    Item,
    Phase,
    RankPlan,
    alike,
)
from plainformer.plan.workload import Workload

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


def rank_plans(config: ModelConfig, workload: Workload, layout: Layout) -> tuple[RankPlan, ...]:
    """Return what the ranks hold; those that hold the same are one."""
    return alike(
        RankPlan((rank,), place_said(layout, rank), phases(config, workload, layout, rank)) for rank in differing(layout)
    )


def differing(layout: Layout) -> list[int]:
    """Return ranks among which every different one is; of many alike the first, the second and the last."""
    def few(count: int) -> list[int]:
        return sorted({0, 1, count - 1} & set(range(count)))

    places = ((pp, dp, tp) for pp in range(layout.pp) for dp in few(layout.dp) for tp in few(layout.tp))
    return [(pp * layout.dp + dp) * layout.tp + tp for pp, dp, tp in places]


def place_said(layout: Layout, rank: int) -> str:
    """Return where a rank is, as far as there is more than one place."""
    place = layout.place(rank)
    sizes = (("stage", place.pp, layout.pp), ("data part", place.dp, layout.dp), ("tensor part", place.tp, layout.tp))
    return ", ".join(f"{name} {index + 1} of {count}" for name, index, count in sizes if count > 1)


def phases(config: ModelConfig, workload: Workload, layout: Layout, rank: int) -> tuple[Phase, ...]:
    here = local(config, layout, rank)
    count = sum(math.prod(part.local_shape) for part in here.parts.values())
    if workload.training:
        return _training(here, workload, count)
    return _inference(here, workload, count)


def _inference(here: Local, workload: Workload, count: int) -> tuple[Phase, ...]:
    stack = here.model.main_stack
    weights = Item(WEIGHTS, count * _BYTES[workload.dtype or "fp32"], workload.dtype or "fp32")
    size = 2 if workload.dtype in ("bf16", "fp16") else 4
    tokens = workload.prompt + workload.new
    cache = 2 * workload.rows * stack.num_kv_heads * stack.head_dim * tokens * size * len(here.layers.get("decoder", ()))
    n = workload.batch * workload.prompt
    act = n * (3 * stack.hidden_size + 3 * stack.ffn_size) * size
    logits = workload.rows * here.model.head.out_size * 4
    return (
        Phase("prefill", (weights, Item(CACHE, cache), Item(ACTIVATIONS, act), Item(LOGITS, logits))),
        Phase("decode", (weights, Item(CACHE, cache), Item(LOGITS, logits))),
    )


def _training(here: Local, workload: Workload, count: int) -> tuple[Phase, ...]:
    stack = here.model.main_stack
    n = workload.batch * workload.length
    layers = sum(map(len, here.layers.values()))
    act = 4 * n * (16 * stack.hidden_size) * layers
    states = (Item(WEIGHTS, 4 * count), Item(GRADIENTS, 4 * count), Item(OPTIMIZER, 8 * count))
    logits = 12 * n * here.model.head.out_size
    return (
        Phase("forward", (*states, Item(ACTIVATIONS, act))),
        Phase("loss", (*states, Item(ACTIVATIONS, act), Item(LOGITS, logits))),
        Phase("step", states),
    )
