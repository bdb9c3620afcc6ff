"""Tasks of every kind beside each other: encoders in groups, encoder-decoders, speech, two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plainformer
from plainformer.errors import InputError, UsageError
from plainformer.tasks.results import plain
from tests.support import models as make
from tests.support.engine import LONG, Models, engine_of, read, until

TEXTS = ["the cat sat", "a", "who is in france? not the dog", "the dog", LONG[:30]]


def close(first: Any, second: Any) -> bool:
    """Whether two results agree but for the last bits of their numbers."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(close(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(close, first, second))
    if isinstance(first, float):
        return abs(first - second) < 1e-5
    return bool(first == second)


@pytest.mark.parametrize("name", ["text-classification", "token-classification", "embedding", "fill-mask"])
def test_many_small_requests_are_the_librarys(models: Models, name: str) -> None:
    task = models[name]
    texts = [f"{text} [MASK]" if name == "fill-mask" else text for text in TEXTS * 8]
    with engine_of(task) as engine:
        requests = [engine.run("a", text) for text in texts]
        whole = engine.run("a", texts).result(30).result
        found = [request.result(30).result for request in requests]
    assert type(whole) is type(task(texts)) and close(plain(whole), plain(task(texts)))
    for text, one in zip(texts, found, strict=True):
        assert close(plain(one), plain(task(text)))


def test_requests_of_one_kind_run_together(models: Models) -> None:
    task, runs = models["embedding"], []
    with engine_of(task) as engine:
        engine.observers.append(lambda seen: runs.append(seen.label) if seen.name == "unit_seconds" else None)
        asked = engine.exclusive(lambda: [engine.run("a", text) for text in TEXTS * 4]).result(10).result
        for request in asked:
            request.result(10)
    assert 1 <= runs.count("batch") < 15


def test_alone_to_the_bit(models: Models) -> None:
    task = models["embedding"]
    with engine_of(task, exact_batches=True) as engine:
        requests = [engine.run("a", text) for text in TEXTS * 3]
        for text, request in zip(TEXTS * 3, requests, strict=True):
            assert torch.equal(request.result(20).result.vector, task(text).vector)


def test_an_error_is_of_its_own_request(models: Models) -> None:
    task = models["text-classification"]
    with engine_of(task) as engine:
        requests = [engine.run("a", text) for text in ("the cat", "the dog " * 40, "a")]
        listed = engine.run("a", ["a", "the dog " * 40], {"on_error": "skip"})
        assert close(plain(requests[0].result(10).result), plain(task("the cat")))
        with pytest.raises(InputError):
            requests[1].result(10)
        assert requests[2].result(10).result.label == task("a").label
        assert "skipped" in listed.result(10).result[1].to_dict()
        with pytest.raises(UsageError):
            engine.run("a", "the cat", {"top_q": 3})
        with pytest.raises(InputError):
            engine.run("a", 5).result(10)


def test_another_task_on_the_same_weights(models: Models) -> None:
    task = models["text-classification"]
    with engine_of(task) as engine:
        asked = {"query": "the cat", "documents": ["a dog", "the cat sat"]}
        with pytest.raises(UsageError, match="text-ranking"):
            engine.run("a", "the cat", task="fill-mask")
        assert "text-ranking" in engine.models["a"].tasks and engine.models["a"].kind == "encoder"
        with pytest.raises(UsageError, match="no single score"):  # three labels: the task's own word
            engine.run("a", asked, task="text-ranking")


def test_an_encoder_decoder_beside_streams(models: Models) -> None:
    chat, writer = models["chat"], models["text2text"]
    with engine_of(chat, writer) as engine:
        streams = [engine.generate("a", f"{place} ", {"max_new_tokens": 40, "eos_ids": []}) for place in range(3)]
        ways: list[dict[str, Any]] = [{}, {"num_beams": 3}, {"do_sample": True, "seed": 4}, {"stop": ["e"]}]
        asked = [(way, engine.generate("b", "the cat sat", {"max_new_tokens": 10, **way})) for way in ways]
        run = engine.run("b", ["the cat", "a dog"], {"max_new_tokens": 6})
        for way, request in asked:
            events, outcome = read(request)
            assert outcome.result == writer("the cat sat", max_new_tokens=10, **way)
            assert "".join(event.text for event in events) == outcome.result.text
        assert run.result(20).result == writer(["the cat", "a dog"], max_new_tokens=6)
        for place, stream in enumerate(streams):
            assert stream.result(20).result == chat(f"{place} ", max_new_tokens=40, eos_ids=[])
        until(lambda: engine.gauges()["kv_blocks_used"] == 0)


def test_two_models(models: Models, tmp_path: Path) -> None:
    first = models["chat"]
    second: Any = plainformer.load(str(make.save("chat", tmp_path, seed=3)))
    options = {"max_new_tokens": 20, "eos_ids": []}
    with engine_of(first, second) as engine:
        requests = [(name, engine.generate(name, f"{place} ", options)) for place in range(6) for name in "ab"]
        for place, (name, request) in enumerate(requests):
            task = first if name == "a" else second
            assert request.result(20).result == task(f"{place // 2} ", **options)


def test_speech_beside_streams(models: Models, tmp_path: Path) -> None:
    make.whisper(tmp_path)
    speech, chat = make.load(tmp_path), models["chat"]

    def clip(seconds: float) -> dict[str, Any]:
        return {"array": np.sin(np.arange(int(16000 * seconds)) / 20).astype(np.float32), "sampling_rate": 16000}

    with engine_of(chat, speech) as engine:
        streams = [engine.generate("a", f"{place} ", {"max_new_tokens": 30, "eos_ids": []}) for place in range(3)]
        clips = [engine.run("b", clip(share), {"max_new_tokens": 8}) for share in (1.0, 0.5)]
        left = engine.run("b", clip(1.0), {"max_new_tokens": 8})
        left.cancel()
        for share, request in zip((1.0, 0.5), clips, strict=True):
            assert request.result(20).result == speech(clip(share), max_new_tokens=8)
        for place, stream in enumerate(streams):
            assert stream.result(20).result == chat(f"{place} ", max_new_tokens=30, eos_ids=[])
        until(lambda: engine.gauges()["requests_running"] == 0)
