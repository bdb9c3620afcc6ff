"""The cache's bytes, counted from the configuration, are those of the cache after a generation: equal, in every mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.config import HeadConfig, ModelConfig, StackConfig, TokenFrontend
from plainformer.generation.cache import cache as cache_module
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.search import generate
from plainformer.generation.sessions import session as session_module
from plainformer.model.transformer import Transformer
from plainformer.plan import cache as plan_module
from plainformer.plan.cache import CacheUse, cache_bytes
from tests.support.memory import peak_bytes
from tests.support.models import CONFIGS, make

FAMILIES = tuple(CONFIGS)
# name → options of a generation, and what they say of the cache
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({}, {}),
    "int8": ({"cache_kind": "int8"}, {"kind": "int8"}),
    "samples": ({"do_sample": True, "num_return_sequences": 3}, {"copies": 3}),
    "beams": ({"num_beams": 4}, {"copies": 4}),
    "beams-int8": ({"num_beams": 3, "cache_kind": "int8"}, {"copies": 3, "kind": "int8"}),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 5}, {"copies": 5, "runs_last": True}),
    "in-chunks": ({"prefill_chunk": 5}, {"chunk": 5}),
}


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[KeyValueCache]:
    """Every cache that a session makes from here on."""
    made: list[KeyValueCache] = []

    class Kept(KeyValueCache):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            made.append(self)

    monkeypatch.setattr(session_module, "KeyValueCache", Kept)
    return made


def room(monkeypatch: pytest.MonkeyPatch, slack: int, first: int) -> None:
    """Small bounds, so that windows move on and buffers grow within a few tokens."""
    monkeypatch.setattr(cache_module, "SLACK", slack)
    monkeypatch.setattr(plan_module, "SLACK", slack)
    monkeypatch.setattr(session_module, "FIRST_ROOM", first)
    monkeypatch.setattr(plan_module, "FIRST_ROOM", first)


def test_the_bounds_are_those_of_generation() -> None:
    assert plan_module.SLACK == cache_module.SLACK
    assert plan_module.FIRST_ROOM == session_module.FIRST_ROOM


def expected(model: Transformer, rows: int, length: int, new: int, said: dict[str, Any]) -> CacheUse:
    both = model.encoder is not None
    more = {name: value for name, value in said.items() if name != "runs_last"}
    steps = new if "runs_last" in said else None
    prompt, encoder = (1, length) if both else (length, 0)
    return CacheUse(prompts=rows, prompt=prompt, new=new, steps=steps, encoder=encoder, **more)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_after_a_generation(
    name: str, mode: str, small: bool, caches: list[KeyValueCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (options, said) = make(name), MODES[mode]
    if small:
        room(monkeypatch, slack=2, first=3)
    assert model.config.decoder is not None
    for rows, length, new in ((1, 7, 1), (2, 30, 40), (1, 90, 25)):
        ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(0))
        generate(model, ids, max_new_tokens=new, eos_ids=(), **options)
        found = cache_bytes(model.config.decoder, expected(model, rows, length, new, said))
        assert found.full == caches[-1].memory_bytes(), (rows, length, new)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_drafts_of_another_model(name: str, caches: list[KeyValueCache]) -> None:
    """Both models have a cache of one row, as in greedy decoding."""
    model, draft = make(name), make(name, seed=1)
    assert model.config.decoder is not None
    generate(model, torch.arange(5, 40)[None], max_new_tokens=30, eos_ids=(), draft_model=draft)
    found = cache_bytes(model.config.decoder, CacheUse(prompt=35, new=30)).full
    assert [cache.memory_bytes() for cache in caches] == [found, found]


def test_half_precision(caches: list[KeyValueCache]) -> None:
    model = make("llama").to(torch.bfloat16)
    assert model.config.decoder is not None
    generate(model, torch.arange(5, 40)[None], max_new_tokens=30, eos_ids=())
    assert cache_bytes(model.config.decoder, CacheUse(prompt=35, new=30, number=2)).full == caches[-1].memory_bytes()


def config(windows: tuple[int | None, ...], kv_heads: int = 2) -> ModelConfig:
    stack = StackConfig(
        frontend=TokenFrontend(vocab_size=20, embedding_size=8),
        hidden_size=8,
        num_layers=len(windows),
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=6,
        ffn_size=8,
        windows=windows,
        direction="causal",
    )
    return ModelConfig("test", decoder=stack, head=HeadConfig("causal_lm", out_size=20))


@given(
    windows=st.lists(st.sampled_from([None, 1, 3, 9]), min_size=1, max_size=3),
    prompts=st.integers(1, 3),
    prompt=st.integers(1, 60),
    new=st.integers(1, 40),
    copies=st.integers(1, 3),
    kind=st.sampled_from(["full", "int8"]),
    chunk=st.sampled_from([None, 1, 7]),
)
@settings(max_examples=200, deadline=None)
def test_any_lengths_and_windows(
    windows: list[int | None], prompts: int, prompt: int, new: int, copies: int, kind: str, chunk: int | None
) -> None:
    """The cache itself, filled as a session fills it; its buffers grow, and its windows move on."""
    slack, first = 2, 4
    whole = config(tuple(windows))
    assert whole.decoder is not None
    use = CacheUse(prompts=prompts, prompt=prompt, new=new, copies=copies, kind=kind, chunk=chunk)
    with pytest.MonkeyPatch.context() as patch:
        room(patch, slack, first)
        found = cache_bytes(whole.decoder, use)
        own = min(new, first)
        cache = KeyValueCache(whole, prompts, prompt + (own if copies == 1 else 0), kind=kind)
        cache.expect(prompt + new)

        def fill(rows: int, count: int) -> None:
            for layer in range(len(windows)):
                x = torch.zeros(rows, 2, count, 6)
                cache.update(layer, x, x)

        for begin in range(0, prompt, chunk or prompt):
            fill(prompts, min(chunk or prompt, prompt - begin))
        assert found.prefilled == cache.memory_bytes()
        if copies > 1:
            cache.share(copies, own, new)
        for _ in range(new - 1):
            fill(prompts * copies, 1)
        assert found.full == cache.memory_bytes()


@pytest.mark.parametrize("kind", ["full", "int8"])
def test_the_moment_of_growth(kind: str) -> None:
    """While a buffer grows, the old one is there too: one buffer of one layer at a time, not the whole cache."""
    whole = config((None, None, None))
    assert whole.decoder is not None
    prompt, rows, caches = 500, 4, []
    found = cache_bytes(whole.decoder, CacheUse(prompts=rows, prompt=prompt, new=258, kind=kind))

    def run() -> None:
        caches.append(cache := KeyValueCache(whole, rows, prompt + 256, kind=kind))
        cache.expect(prompt + 258)
        for layer in cache.layers:
            for store in (layer.keys, layer.values):
                store.grow(prompt + 256, prompt + 257)

    peak = peak_bytes(run)
    assert caches[0].memory_bytes() == found.full
    assert peak == found.full + found.growth
    assert found.growth <= found.full / 6


def test_a_part_of_the_layers() -> None:
    """A stage of a pipeline holds the cache of its own layers."""
    whole = config((None, 3, None, 3))
    assert whole.decoder is not None
    use = CacheUse(prompts=2, prompt=100, new=300)
    parts = [cache_bytes(whole.decoder, use, part).full for part in (range(1), range(1, 3), range(3, 4))]
    assert sum(parts) == cache_bytes(whole.decoder, use).full
