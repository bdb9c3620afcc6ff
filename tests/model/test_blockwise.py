"""Attention of prompts by blocks: the numbers of attention at once, and the same bits wherever a prompt is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from plainformer.generation.prompt import Prompt
from plainformer.generation.sessions.session import Session
from plainformer.model.attention import attend
from plainformer.model.blockwise import BLOCK, attend_by_blocks, blocks
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.flow import Mask
from plainformer.model.position import visible
from plainformer.model.transformer import Transformer
from tests.support.close import close
from tests.support.models import make

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "mistral": {"sliding_window": 70},
    "gemma2": {"sliding_window": 100},
}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("window", [None, 40, 100])
@pytest.mark.parametrize("bias", ["none", "rows", "heads", "padding"])
@pytest.mark.parametrize(("past", "count"), [(0, 1), (0, 64), (0, 200), (64, 130), (37, 100), (100, 3)])
def test_numbers(past: int, count: int, bias: str, window: int | None) -> None:
    """Of grouped heads, with a window, with a bias that is one for all rows or not, after keys of a cache or none."""
    q, k, v = random(2, 4, count, 8), random(2, 2, past + count, 8), random(2, 2, past + count, 8)
    seen = visible(count, past + count, True, window, q.device)
    added = torch.zeros(count, past + count) if seen is None else torch.where(seen, 0.0, -1e30)
    if bias == "none" and (window is None or window >= past + count):
        mask = Mask(causal=True, looks_back=True, window=window)
    else:
        shapes = {"rows": (2, 1), "heads": (1, 4), "padding": (2, 1), "none": (1, 1)}
        added = added + (random(*shapes[bias], count, past + count) if bias != "none" else 0)
        if bias == "padding":
            added[1, ..., : min(past, 5)] = -1e30
        mask = Mask(added.expand(*shapes[bias], -1, -1), looks_back=True, window=window)
    wide_k, wide_v = (x.repeat_interleave(2, 1) for x in (k, v))
    exact = F.scaled_dot_product_attention(q.double(), wide_k.double(), wide_v.double(), added.double(), scale=0.3)

    def once(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask) -> torch.Tensor:
        return attend(q, k, v, mask, 0.3)

    for groups in (1, 2):
        close(attend_by_blocks(once, q, k, v, mask, past, groups), exact.float())


def test_blocks_begin_at_multiples() -> None:
    assert list(blocks(0, 150)) == [(0, 64), (64, 128), (128, 150)]
    assert list(blocks(50, 100)) == [(0, 14), (14, 78), (78, 100)]
    assert list(blocks(64, 64)) == [(0, 64)]


def prefilled(model: Transformer, ids: torch.Tensor, chunk: int | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits after a prompt, and the keys and values that it left."""
    session = Session(model, Prompt(ids), budget=8, prefill_chunk=chunk)
    with torch.inference_mode():
        logits = session.prefill()
        layers = session.cache.layers
        return logits, [
            store.read(layer.held - 60, layer.held) for layer in layers for store in (layer.keys, layer.values)
        ]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
@pytest.mark.parametrize("backend", ["auto", "int8"])
@pytest.mark.parametrize("length", [258, 300])
@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_has_the_same_bits_wherever_it_is_cut(name: str, length: int, backend: str) -> None:
    """Grouped heads, windows that a cache slides, scores with a cap; chunks of whole blocks, the last of two tokens or more."""
    model = make(name, **MODELS[name], max_position_embeddings=512, n_positions=512)
    prepare_for_inference(model, backend)
    ids = torch.randint(5, 40, (1, length), generator=torch.Generator().manual_seed(0))
    whole, kept = prefilled(model, ids, None)
    for chunk in (BLOCK, 2 * BLOCK):
        logits, held = prefilled(model, ids, chunk)
        assert torch.equal(logits, whole)
        assert all(torch.equal(a, b) for a, b in zip(held, kept, strict=True))
