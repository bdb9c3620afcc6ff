"""The key-value cache: growth, cropping, and how much memory it says it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plainformer.errors import UsageError
from plainformer.generation.cache import cache as cache_module
from plainformer.generation.cache.cache import SLACK, KeyValueCache
from plainformer.generation.search import generate
from plainformer.generation.sessions import session as session_module
from plainformer.loading import load_model
from plainformer.model.transformer import Transformer
from tests.support import models as make
from tests.support.close import apart, close
from tests.support.generation import ENDS, batch, pair, prompts


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
        cache.advance(size)
    assert cache.length == 9
    assert all(store.capacity == 16 for layer in cache.layers for store in (layer.keys, layer.values))


def test_growth_ends_where_the_need_does(folder: Path) -> None:
    """A buffer does not grow beyond what is expected; where more is written after all, it doubles as before."""
    config = load_model(folder / "gpt2", backend="plain").config
    cache = KeyValueCache(config, batch_size=1, capacity=10)
    cache.expect(13)
    sizes = []
    for count in (10, 1, 2, 1, 12, 1):
        for layer in range(2):
            cache.update(layer, torch.zeros(1, 4, count, 8), torch.zeros(1, 4, count, 8))
        sizes.append({store.capacity for layer in cache.layers for store in (layer.keys, layer.values)})
    assert sizes == [{10}, {13}, {13}, {26}, {26}, {52}]
    cache.expect(60)
    cache.layers[0].keys.grow(27, 53)
    assert cache.layers[0].keys.capacity == 60


@pytest.mark.parametrize("kind", ["full", "int8"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_a_generation_has_room_for_its_own_tokens_alone(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt and budget, where doubling gave nearly twice as much; a conversation that goes on grows by its turns."""
    monkeypatch.setattr(session_module, "FIRST_ROOM", 2)
    model, ids, cache, length = pair(name).ours, text(30), KeyValueCache(pair(name).ours.config, 1, 4, kind=kind), 0
    for new in (40, 11, 25):
        found = generate(model, ids, max_new_tokens=new, eos_ids=(), cache=cache)
        again = generate(model, ids, max_new_tokens=new, eos_ids=(), cache_kind=kind)
        assert kind == "int8" or found.token_ids == again.token_ids
        assert found.cache is cache
        length = ids.size(1) + new
        for layer in cache.layers:
            limit = length if layer.window is None else min(length, 2 * (layer.window - 1 + SLACK))
            assert layer.keys.capacity <= limit and layer.values.capacity <= limit
        ids = torch.cat((ids, torch.tensor([found.token_ids[0]]), text(3)), dim=1)


@torch.no_grad()
def test_any_capacity_gives_the_same_logits(folder: Path) -> None:
    model = load_model(folder / "gpt2", backend="plain")
    ids = torch.arange(5, 25)[None]
    whole = model(ids).logits
    for capacity in (1, 7, 64):
        cache = KeyValueCache(model.config, 1, capacity)
        parts = [model(ids[:, start : start + 3], cache=cache).logits for start in range(0, 20, 3)]
        close(torch.cat(parts, dim=1), whole)
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
    close(found, expected)
    cache.crop(0)
    assert cache.length == 0
    for length in (-1, 1):
        with pytest.raises(UsageError, match="length="):
            cache.crop(length)


def test_memory_bytes(folder: Path) -> None:
    config = load_model(folder / "gpt2", backend="plain").config
    per_position = 2 * 2 * 3 * 4 * 8  # keys and values, layers, rows, heads, channels
    cache = KeyValueCache(config, 3, 10)
    assert cache.memory_bytes() == per_position * 10 * 4
    assert KeyValueCache(config, 3, 10, dtype=torch.bfloat16).memory_bytes() == per_position * 10 * 2
    assert cache.used_bytes() == 0
    for layer in range(2):
        cache.update(layer, torch.zeros(3, 4, 11, 8), torch.zeros(3, 4, 11, 8))
    assert cache.memory_bytes() == per_position * 20 * 4
    assert cache.used_bytes() == per_position * 11 * 4
    small = KeyValueCache(config, 3, 10, kind="int8")
    small.update(0, torch.zeros(3, 4, 4, 8), torch.zeros(3, 4, 4, 8))
    assert small.used_bytes() == 2 * 3 * 4 * 4 * (8 + 4)  # a byte each, and a scale for each vector


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
    assert cache.used_bytes() == 2 * 2 * 4 * (9 + 1) * 8 * 4
    model(decoder_input_ids=torch.tensor([[7]]), encoder_output=memory, cache=cache)
    again = cache.cross(0)
    assert again is not None and again[0] is kept[0]


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="no decoder"):
        KeyValueCache(load_model(folder / "bert", backend="plain").config, 1)
    config = load_model(folder / "gpt2", backend="plain").config
    for rows, capacity in ((0, 4), (1, 0)):
        with pytest.raises(UsageError, match="at least 1"):
            KeyValueCache(config, rows, capacity)


WINDOWED = pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3", "qwen2-window", "smollm3-window", "phi3"])
WINDOW = 3


def text(length: int, seed: int = 0, rows: int = 1) -> Tensor:
    return torch.randint(5, 99, (rows, length), generator=torch.Generator().manual_seed(seed))


@WINDOWED
@pytest.mark.parametrize("slack", [0, 2, SLACK])
@torch.no_grad()
def test_windows_let_go(name: str, slack: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A windowed layer holds at most 2 * (window - 1 + SLACK) positions, and the logits are those of uncached runs."""
    monkeypatch.setattr(cache_module, "SLACK", slack)
    model, ids = pair(name).ours, text(200, rows=2)
    whole = model(ids).logits
    cache = KeyValueCache(model.config, 2, 3)
    kept = WINDOW - 1 + slack
    pieces, start, sizes = [], 0, [5, 1, 1, 40, 2, 9, 1, 1, 1, 30]
    while start < 200:
        size = sizes.pop(0) if sizes else 1
        pieces.append(model(ids[:, start : start + size], cache=cache).logits)
        start += size
        for layer in cache.layers:
            assert layer.held <= (cache.length if layer.window is None else 2 * kept)
            assert layer.window is None or layer.keys.capacity <= 2 * kept
    close(torch.cat(pieces, dim=1), whole)
    assert {layer.window for layer in cache.layers} <= {None, WINDOW} and WINDOW in {x.window for x in cache.layers}


@WINDOWED
@torch.no_grad()
def test_windows_and_crops(name: str) -> None:
    """Up to SLACK positions can be taken back at any length, and what follows is as if they had never been."""
    model, ids = pair(name).ours, text(300)
    cache = KeyValueCache(model.config, 1, 8)
    length = 0
    for step, (more, back) in enumerate([(40, 30), (1, SLACK), (90, 1), (60, SLACK), (3, SLACK), (40, 17)]):
        found = model(ids[:, length : length + more], cache=cache).logits
        length += more
        close(found, model(ids[:, :length]).logits[:, -more:])
        for size in (back - back // 2, back // 2):
            model(text(size, step), cache=cache) if size else None
        cache.crop(length)
    model(text(200), cache=cache)
    assert not cache.can_crop(length)
    with pytest.raises(UsageError, match="no longer kept"):
        cache.crop(length)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma2", "qwen3", "bart", "t5"])
@pytest.mark.parametrize("kind", ["full", "int8"])
@torch.no_grad()
def test_sharing_is_expanding(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`share` and `reorder` give what a cache of repeated rows gives, also past a window, with padding, and in chunks."""
    monkeypatch.setattr(cache_module, "SLACK", 1)
    both = pair(name)
    model, copies, generator = both.ours, 3, torch.Generator().manual_seed(0)
    ids, mask = text(7, rows=2), torch.ones(2, 30, dtype=torch.bool)
    memory = model.encode(text(6, 1, 2), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])) if both.encodes else None
    if memory is None:
        mask[1, :3] = False

    def run(tokens: Tensor, cache: KeyValueCache, rows: int, wide: bool) -> Tensor:
        real = mask[:, : cache.length + tokens.size(1)].repeat_interleave(rows // 2, 0)
        if memory is None:
            return model(tokens, real, cache=cache).logits
        seen = type(memory)(*(x.repeat_interleave(copies, 0) for x in (memory.last_hidden_state, memory.real_BT)))
        return model(
            decoder_input_ids=tokens,
            decoder_attention_mask=real,
            encoder_output=seen if wide else memory,
            cache=cache,
        ).logits

    shared, plain = KeyValueCache(model.config, 2, 4, kind=kind), KeyValueCache(model.config, 6, 4, kind=kind)
    run(ids, shared, 2, False)
    shared.share(copies)
    run(ids.repeat_interleave(copies, 0), plain, 6, True)
    for step in range(12):
        tokens = torch.randint(5, 99, (6, 2 if step == 4 else 1), generator=generator)
        close(run(tokens, shared, 6, False), run(tokens, plain, 6, True), rel=1e-5 if kind == "full" else 0.02)
        index = torch.randint(0, copies, (2, copies), generator=generator) + torch.tensor([[0], [copies]])
        shared.reorder(index.flatten())
        plain.reorder(index.flatten())
    with pytest.raises(UsageError, match="share a prompt already"):
        shared.share(2)
    assert KeyValueCache(model.config, 2, 7).memory_bytes() < plain.memory_bytes()


@torch.no_grad()
def test_eight_bits() -> None:
    """Each number is off by at most 1/254 of its vector's largest; a quarter of the memory and the scales; it generates."""
    both = pair("llama")
    config = both.ours.config
    assert config.decoder is not None
    shape = (2, config.decoder.num_kv_heads, 50, config.decoder.head_dim)
    cache, full = KeyValueCache(config, 2, 60, kind="int8"), KeyValueCache(config, 2, 60)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, 50)[:, None]
    x[0, 0, 3] = 0
    keys, values = cache.update(0, x, -x)
    assert ((keys - x).abs() <= x.abs().amax(-1, keepdim=True) / 254 * 1.0001).all()
    assert torch.equal(values, -keys)
    heads = config.decoder.head_dim
    assert cache.memory_bytes() / full.memory_bytes() == pytest.approx((heads + 4) / (4 * heads))
    ids = text(60)
    rounded = both.ours(ids, cache=KeyValueCache(config, 1, 2, kind="int8")).logits
    assert 0 < apart(rounded, both.ours(ids).logits) < 0.05
    for name in ("llama", "mistral", "bart"):
        model = pair(name).ours
        inputs = batch(pair(name), prompts(pair(name), (5, 9)))
        for mode in ({}, {"num_beams": 3}, {"do_sample": True, "seed": 1, "num_return_sequences": 2}):
            found = generate(model, **inputs, **mode, cache_kind="int8", max_new_tokens=9, eos_ids=())
            assert all(len(row) == 9 for row in found.token_ids)


class Columns:
    """Counts the columns that a model's forward pass is given."""

    def __init__(self, model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.total, forward = 0, model.forward

        def counting(input_ids: Tensor, *rest: Any, **named: Any) -> Any:
            self.total += input_ids.size(1)
            return forward(input_ids, *rest, **named)

        monkeypatch.setattr(model, "forward", counting)

    def taken(self) -> int:
        total, self.total = self.total, 0
        return total


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma2"])
@pytest.mark.parametrize("mode", [{}, {"do_sample": True, "seed": 4}])
def test_going_on_from_a_cache(name: str, mode: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A next turn runs only what is new, and answers as without; also after another history, longer or shorter."""
    model = pair(name).ours
    columns = Columns(model, monkeypatch)
    options: dict[str, Any] = {**mode, "max_new_tokens": 5, "eos_ids": ()}
    history = text(9)
    turn = generate(model, history, **options)
    assert turn.cache is not None and turn.cache.length == 9 + 4 and columns.taken() == 13
    for more in (3, 1):
        history = torch.cat((history, torch.tensor([turn.token_ids[0]]), text(more, more)), dim=1)
        expected = generate(model, history, **options).token_ids
        assert columns.taken() == history.size(1) + 4
        turn = generate(model, history, cache=turn.cache, **options)
        assert turn.token_ids == expected
        assert columns.taken() == 1 + more + 4  # the last token of the turn before, what was said, and 4 of 5 new ones
    assert turn.cache is not None
    for other in (history[:, :6], torch.cat((history[:, :10], text(4, 9)), dim=1), text(20, 8), history):
        expected = generate(model, other, **options).token_ids
        columns.taken()
        turn = generate(model, other, cache=turn.cache, prefill_chunk=2, **options)
        assert turn.token_ids == expected
        assert turn.cache is not None and turn.cache.tokens == [*other[0].tolist(), *turn.token_ids[0][:-1]]
        if other is history:
            assert columns.taken() == history.size(1) + 4  # nothing is the same
    long = text(40, 5)
    again = generate(model, long, cache=generate(model, long, **{**options, "max_new_tokens": 20}).cache, **options)
    assert again.token_ids == generate(model, long, **options).token_ids


def test_a_window_that_has_moved_on_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SLACK", 2)
    model = pair("mistral").ours
    columns = Columns(model, monkeypatch)
    first = generate(model, text(30), max_new_tokens=9, eos_ids=())
    columns.taken()
    found = generate(model, text(30)[:, :12], cache=first.cache, max_new_tokens=4, eos_ids=())
    assert columns.taken() == 12 + 3
    assert found.token_ids == generate(model, text(30)[:, :12], max_new_tokens=4, eos_ids=()).token_ids


def test_wrong_uses_of_a_cache(folder: Path) -> None:
    model, row = pair("llama").ours, text(5)
    cache = generate(model, row, max_new_tokens=2).cache
    assert cache is not None
    two = generate(model, row.expand(2, -1), max_new_tokens=2)
    assert two.cache is None and generate(pair("bart").ours, row, max_new_tokens=2).cache is None
    with pytest.raises(UsageError, match="one prompt of a decoder with one row"):
        generate(model, row.expand(2, -1), cache=cache)
    with pytest.raises(UsageError, match="one prompt of a decoder with one row"):
        generate(model, row, cache=cache, num_return_sequences=2, do_sample=True)
    with pytest.raises(UsageError, match="one prompt of a decoder with one row"):
        generate(pair("bart").ours, row, cache=cache)
    with pytest.raises(UsageError, match="no effect in beam mode"):
        generate(model, row, cache=cache, num_beams=2)
    filled = KeyValueCache(model.config, 1)
    model(row, cache=filled)
    with pytest.raises(UsageError, match="does not know which tokens"):
        generate(model, row, cache=filled)
    for other in (
        KeyValueCache(model.config, 2),
        KeyValueCache(load_model(folder / "gpt2", backend="plain").config, 1),
    ):
        with pytest.raises(UsageError, match=r"does not know which tokens|this cache has 2 layers"):
            generate(model, row, cache=other)


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2", "bart", "t5"])
def test_prefill_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of any size, down to one token: the same answers, alone and padded, where early chunks are all padding."""
    monkeypatch.setattr(cache_module, "SLACK", 1)
    both = pair(name)
    inputs = batch(both, prompts(both, (21, 2, 9)), "right", 3)
    if both.encodes:
        inputs["decoder_input_ids"] = text(7, rows=3)
    for mode in ({"output_scores": True}, {"num_beams": 3, "num_return_sequences": 2}):
        options: dict[str, Any] = {**mode, "max_new_tokens": 6, "eos_ids": ENDS}
        expected = generate(both.ours, **inputs, **options)
        for chunk in (1, 2, 5, 20, 21, 100):
            found = generate(both.ours, **inputs, **options, prefill_chunk=chunk)
            assert found.token_ids == expected.token_ids
            if expected.scores is None:
                assert found.log_probabilities is not None and expected.log_probabilities is not None
                for ours, theirs in zip(found.log_probabilities, expected.log_probabilities, strict=True):
                    close(ours, theirs, rel=2e-5)
            else:
                close(found.scores, expected.scores, rel=2e-5)


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("passes", [1, 3])
def test_a_cache_after_an_interruption(name: str, passes: int) -> None:
    """A step that some layers hold and others do not is never gone on from."""
    model, row = pair(name).ours, text(9)
    first = generate(model, row, max_new_tokens=6, eos_ids=())
    again = torch.cat((row, torch.tensor(first.token_ids), text(4)), dim=1)
    expected = generate(model, again, max_new_tokens=6, eos_ids=()).token_ids
    left = [passes]

    def interrupt(*_: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    assert model.decoder is not None
    hook = model.decoder.layers[-1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(model, again, max_new_tokens=6, eos_ids=(), cache=first.cache)
    hook.remove()
    assert generate(model, again, max_new_tokens=6, eos_ids=(), cache=first.cache).token_ids == expected
