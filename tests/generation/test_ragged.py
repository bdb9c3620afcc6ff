"""Rows of different lengths, decoded together, get the very bits that each gets alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from plainformer.config import NormConfig, RelativeBias, RopeConfig
from plainformer.errors import UsageError
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.cache.paged import BLOCK, BlockPool, blocks_for
from plainformer.generation.prompt import Prompt
from plainformer.generation.ragged import Ragged, RaggedRow
from plainformer.generation.sessions.session import Session
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.transformer import Transformer
from tests.support.step import make

RMS = NormConfig(kind="rms", bias=False)
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"norm": RMS, "ffn": "gated", "activation": "silu", "num_kv_heads": 2, "qkv_bias": False, "out_bias": False,
              "ffn_bias": False, "rope": (RopeConfig(theta=1e4, dim=6),) * 2},
    "neox": {"residual": "parallel", "rope": (RopeConfig(theta=1e4, dim=2),) * 2},
    "gemma": {"norm": dataclasses.replace(RMS, weight_offset=1.0), "norm_place": "both", "ffn": "gated", "score_softcap": 5.0,
              "head_dim": 8, "num_kv_heads": 1, "attention_scale": 0.2, "windows": (None, 24),
              "rope": (RopeConfig(theta=1e4, dim=8), RopeConfig(theta=1e3, dim=8))},
    "qwen3": {"norm": RMS, "qk_norm": "head", "rope": (RopeConfig(theta=1e4, dim=6), None)},
    "window": {"windows": (3, 5)},
}  # fmt: skip
BACKENDS = ["plain", "compiled", "int8", "int4"]
LENGTHS = [3, 64, 130, 65, 7, 200]


class Alone:
    """A row decoded by a session of its own."""

    def __init__(self, model: Transformer, ids: Tensor, cache: KeyValueCache | None = None) -> None:
        self.session = Session(model, Prompt(ids[None]), budget=40, cache=cache, prefill_chunk=BLOCK)
        self.logits = self.session.prefill()

    def step(self) -> int:
        token = int(self.logits.argmax())
        self.logits = self.session.decode_step(torch.tensor([token]))
        return token


def _ids(length: int) -> Tensor:
    return torch.randint(50, (length,), generator=torch.Generator().manual_seed(length))


def _join(ragged: Ragged, model: Transformer, ids: Tensor) -> tuple[RaggedRow, Tensor]:
    read = Alone(model, ids)
    return ragged.join(read.session.cache, ragged.pool.take(blocks_for(len(ids) + 40))), read.logits


@torch.inference_mode()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_together_is_alone(name: str, backend: str) -> None:
    """Rows join one after the other, go on together for a while, and leave in another order."""
    model = make(**VARIANTS[name])
    prepare_for_inference(model, backend)
    ragged = Ragged(model, BlockPool(model.config, 40))
    waiting, running = LENGTHS[:], []
    for step in range(30):
        if waiting and step % 2 == 0:
            ids = _ids(waiting.pop(0))
            running.append((*_join(ragged, model, ids), Alone(model, ids)))
            assert torch.equal(running[-1][1], running[-1][2].logits)
        tokens = [alone.step() for _, _, alone in running]
        logits_RV = ragged.step([row for row, _, _ in running], tokens)
        for place, (row, _, alone) in enumerate(running):
            assert torch.equal(logits_RV[place], alone.logits[0]), (step, place, row.length)
        if step in (14, 20, 23):
            row, _, _ = running.pop(step % len(running))
            ragged.pool.give(row.blocks)
    for row, _, _ in running:
        ragged.pool.give(row.blocks)
    assert ragged.pool.free == ragged.pool.total


@torch.inference_mode()
@pytest.mark.parametrize("backend", ["plain", "compiled"])
@pytest.mark.parametrize("name", ["llama", "gemma", "window"])
def test_a_beginning_is_shared(name: str, backend: str) -> None:
    """A prefix from blocks, and what follows it, have the bits of a prompt that was read whole; its blocks serve both rows."""
    model = make(**VARIANTS[name])
    prepare_for_inference(model, backend)
    ragged = Ragged(model, BlockPool(model.config, 20))
    first, second = _ids(210), torch.cat((_ids(210)[:192], _ids(30)))
    one, _ = _join(ragged, model, first)
    shared = one.blocks[:3]
    ragged.pool.keep(shared)
    cache = ragged.load(shared, 3 * BLOCK)
    cache.tokens = second[: 3 * BLOCK].tolist()
    warm, cold = Alone(model, second, cache), Alone(model, second)
    assert torch.equal(warm.logits, cold.logits)
    before = ragged.pool.numbers[shared].clone()
    two = ragged.join(warm.session.cache, [*shared, *ragged.pool.take(2)], filled=3)
    alone = Alone(model, first)
    for _ in range(20):
        tokens = [alone.step(), cold.step()]
        logits_RV = ragged.step([one, two], tokens)
        assert torch.equal(logits_RV[0], alone.logits[0]) and torch.equal(logits_RV[1], cold.logits[0])
    assert torch.equal(ragged.pool.numbers[shared].view(torch.int32), before.view(torch.int32))
    ragged.pool.give(one.blocks)
    assert ragged.pool.free == 20 - 5
    ragged.pool.give(two.blocks)
    assert ragged.pool.free == 20


def test_what_cannot_be_done_is_said() -> None:
    pool = BlockPool(make().config, 3)
    with pytest.raises(UsageError, match="has an encoder"):
        Ragged(make(encoder=True), pool)
    with pytest.raises(UsageError, match="counted from the end"):
        Ragged(make(norm=RMS, relative_bias=RelativeBias(buckets=8, max_distance=16)), pool)
    model = make()
    ragged = Ragged(model, pool)
    with pytest.raises(UsageError, match="one row"):
        ragged.join(KeyValueCache(model.config, 2), [])
    with pytest.raises(UsageError, match="keys as they are"):
        ragged.join(KeyValueCache(model.config, 1, kind="int8"), [])
    row = ragged.join(Alone(model, _ids(64)).session.cache, pool.take(1))
    with pytest.raises(UsageError, match="65 positions do not fit into 1 block of 64"):
        ragged.step([row], [1])
