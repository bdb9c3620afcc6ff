"""The same tokens and the same bits of their log-probabilities: alone, in a crowd, cold, from the cache, after eviction."""

from __future__ import annotations

from typing import Any

import pytest

import plainformer
from plainformer.serve.engine import Outcome
from tests.support import models as make
from tests.support.engine import LONG, Asked, Models, engine_of, held_up, mixed, read, until

# Families whose attention, positions or windows differ.
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": dict(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=40),
    "gemma2": dict(
        model_type="gemma2", architectures=["Gemma2ForCausalLM"], sliding_window=40, head_dim=8, query_pre_attn_scalar=8
    ),
    "gpt-neox": dict(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"], rotary_pct=0.5),
}


def equal(first: Outcome, second: Outcome) -> bool:
    """Whether two outcomes are the same to the last bit."""
    return (first.result, first.answers, first.scores) == (second.result, second.answers, second.scores)


def test_a_request_is_answered_alike_alone_and_in_a_crowd(models: Models) -> None:
    task = models["chat"]
    watched, others = mixed(40, seed=1), mixed(160, seed=2)
    with engine_of(task) as engine:
        alone = [asked.of(engine).result(30) for asked in watched]
        crowd = [asked.of(engine, client=str(place % 5)) for place, asked in enumerate([*others, *watched])][160:]
        among = [request.result(60) for request in crowd]
        backwards = [asked.of(engine) for asked in reversed([*watched, *others[:40]])][40:]
        reversed_ = [request.result(60) for request in backwards][::-1]
    for asked, first, second, third in zip(watched, alone, among, reversed_, strict=True):
        expected = asked.expected(task)
        assert first.result == second.result == third.result == expected, asked
        assert equal(first, second) and equal(first, third), asked


def test_a_streamed_answer_is_the_whole_one(models: Models) -> None:
    task = models["chat"]
    with engine_of(task) as engine:
        for asked in mixed(28, seed=3):
            events, streamed = read(asked.of(engine))
            whole = asked.of(engine).result(30)
            assert equal(streamed, whole)
            for index, answer in enumerate(whole.answers):
                own = [event for event in events if event.index == index]
                assert "".join(event.text for event in own) == answer.text
                if whole.scores is not None:
                    assert tuple(score for event in own for score in event.scores or ()) == whole.scores[index]


@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 129, 200])
def test_a_beginning_that_was_read_before_changes_no_bit(models: Models, length: int) -> None:
    task = models["chat"]
    count = len(task.tokenizer.encode("").input_ids)
    prompt = (LONG * 4)[: length - count]
    asked = Asked(prompt, {"max_new_tokens": 6, "output_scores": True}, logprobs=5)
    with engine_of(task, prefix_cache="off") as engine:
        cold = asked.of(engine).result(20)
        assert asked.of(engine).result(20).usage.cached_tokens == 0
    with engine_of(task, kv_memory_bytes=1 << 20) as engine:
        first, warm = (asked.of(engine).result(20) for _ in range(2))
        assert first.usage.prompt_tokens == length
        assert warm.usage.cached_tokens == (length - 2) // 64 * 64
        longer = Asked(prompt + " and then", asked.options, logprobs=5).of(engine).result(20)
        total = engine.gauges()["kv_blocks_total"]
        for number in range(total // 3 + 2):  # other prompts take the place of it
            engine.generate("a", f"{number} {LONG * 3}"[:200], {"max_new_tokens": 2}).result(20)
        evicted = asked.of(engine).result(20)
        assert evicted.usage.cached_tokens == 0
    assert longer.usage.cached_tokens == (length // 64 * 64)
    assert longer.result == task(prompt + " and then", **asked.options)
    assert cold.result == task(prompt, **asked.options)
    assert equal(cold, first) and equal(cold, warm) and equal(cold, evicted)


@pytest.mark.parametrize("lengths", [(2, 9, 9, 40, 65), (31, 31, 31), (29, 30, 29, 30, 31, 31, 31)], ids=str)
def test_short_prompts_are_read_together(models: Models, lengths: tuple[int, ...]) -> None:
    task, units = models["chat"], list[str]()
    options = {"max_new_tokens": 5, "output_scores": True}
    asked = [Asked(LONG[place : place + length], options, logprobs=2) for place, length in enumerate(lengths)]
    with engine_of(task) as engine:
        alone = [one.of(engine).result(20) for one in asked]
        engine.observers.append(lambda seen: units.append(seen.label) if seen.name == "unit_seconds" else None)
        with held_up(engine):
            requests = [one.of(engine) for one in asked]
            until(lambda: len(engine._scheduler._mail) == 2 * len(asked))  # all are prepared
        together = [request.result(20) for request in requests]
    assert units.count("prefill") == 1
    for one, first, second in zip(asked, alone, together, strict=True):
        assert first.result == one.expected(task)
        assert equal(first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(models: Models, tmp_path_factory: pytest.TempPathFactory, family: str) -> None:
    changes = {"max_position_embeddings": 1024, **FAMILIES[family]}
    task: Any = plainformer.load(str(make.save("chat", tmp_path_factory.mktemp(family), **changes)))
    asked = mixed(14, seed=4)
    with engine_of(task) as engine:
        crowd = [one.of(engine) for one in [*asked, *asked]]
        found = [request.result(30) for request in crowd]
    for one, first, second in zip(asked, found, found[len(asked) :], strict=False):
        assert first.result == one.expected(task)
        assert equal(first, second)


def test_a_fast_cache_keeps_answers_too(models: Models) -> None:
    task = models["chat"]
    with engine_of(task, prefix_cache="fast") as engine:
        prompt = (LONG * 4)[:100]
        first = engine.generate("a", prompt, {"max_new_tokens": 60, "eos_ids": []}).result(20)
        ids = [*first.result.prompt_ids, *first.result.token_ids]
        turn = engine.generate("a", ids, {"max_new_tokens": 4}).result(20)
    assert turn.usage.cached_tokens == 128
