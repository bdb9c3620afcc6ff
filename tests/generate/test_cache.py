"""The key-value cache: growth, cropping, and how much memory it says it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plainformer.errors import UsageError
from plainformer.generate.cache import KeyValueCache
from plainformer.loading import load_model
from tests.tasks import make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cache")
    make.gpt2(root / "gpt2")
    make.bart(root / "bart")
    make.bert(root / "bert", "BertModel")
    return root


def test_growth_keeps_what_is_there(folder: Path) -> None:
    """Capacity doubles, layer by layer, and every earlier key and value stays."""
    config = load_model(folder / "gpt2", backend="plain").config
    cache = KeyValueCache(config, batch_size=2, capacity=2)
    generator = torch.Generator().manual_seed(0)
    written: list[list[torch.Tensor]] = [[], []]
    for size in (1, 2, 1, 5):
        for layer in range(2):
            new = torch.randn(2, 4, size, 8, generator=generator)
            written[layer].append(new)
            keys, values = cache.update(layer, new, -new)
            assert torch.equal(keys, torch.cat(written[layer], dim=2))
            assert torch.equal(values, -torch.cat(written[layer], dim=2))
        cache.length += size
    assert cache.length == 9
    assert all(store.capacity == 16 for layer in cache.layers for store in (layer.keys, layer.values))


@torch.no_grad()
def test_any_capacity_gives_the_same_logits(folder: Path) -> None:
    model = load_model(folder / "gpt2", backend="plain")
    ids = torch.arange(5, 25)[None]
    whole = model(ids).logits
    for capacity in (1, 7, 64):
        cache = KeyValueCache(model.config, 1, capacity)
        parts = [model(ids[:, start : start + 3], cache=cache).logits for start in range(0, 20, 3)]
        assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
        assert cache.length == 20


@torch.no_grad()
def test_crop_goes_back(folder: Path) -> None:
    """After a crop, other tokens follow as if the forgotten ones had never been."""
    model = load_model(folder / "gpt2", backend="plain")
    prompt, wrong, right = torch.arange(5, 12)[None], torch.tensor([[90, 91, 92]]), torch.tensor([[50, 60]])
    cache = KeyValueCache(model.config, 1, 4)
    model(prompt, cache=cache)
    model(wrong, cache=cache)
    cache.crop(7)
    found = model(right, cache=cache).logits
    expected = model(torch.cat((prompt, right), dim=1)).logits[:, -2:]
    assert torch.allclose(found, expected, atol=1e-5)
    cache.crop(0)
    assert cache.length == 0
    for length in (-1, 1):
        with pytest.raises(UsageError, match="cannot crop"):
            cache.crop(length)


def test_memory_bytes(folder: Path) -> None:
    config = load_model(folder / "gpt2", backend="plain").config
    per_position = 2 * 2 * 3 * 4 * 8  # keys and values, layers, rows, heads, channels
    cache = KeyValueCache(config, 3, 10)
    assert cache.memory_bytes() == per_position * 10 * 4
    assert KeyValueCache(config, 3, 10, dtype=torch.bfloat16).memory_bytes() == per_position * 10 * 2
    for layer in range(2):
        cache.update(layer, torch.zeros(3, 4, 11, 8), torch.zeros(3, 4, 11, 8))
    assert cache.memory_bytes() == per_position * 20 * 4


@torch.no_grad()
def test_cross_attention_counts_and_is_computed_once(folder: Path) -> None:
    model = load_model(folder / "bart", backend="plain")
    memory = model.encode(torch.arange(5, 14)[None])
    cache = KeyValueCache(model.config, 1, 8)
    before = cache.memory_bytes()
    assert cache.cross(0) is None
    model(decoder_input_ids=torch.tensor([[2]]), encoder_output=memory, cache=cache)
    kept = cache.cross(0)
    assert kept is not None and kept[0].size(2) == 9
    assert cache.memory_bytes() == before + 2 * 2 * 4 * 9 * 8 * 4
    model(decoder_input_ids=torch.tensor([[7]]), encoder_output=memory, cache=cache)
    again = cache.cross(0)
    assert again is not None and again[0] is kept[0]


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="no decoder"):
        KeyValueCache(load_model(folder / "bert", backend="plain").config, 1)
    config = load_model(folder / "gpt2", backend="plain").config
    for batch, capacity in ((0, 4), (1, 0)):
        with pytest.raises(UsageError, match="at least 1"):
            KeyValueCache(config, batch, capacity)
