"""Requests of an engine against the library's own calls: the same result, text for text and bit for bit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from plainformer.errors import UsageError
from plainformer.serve.engine import Engine
from tests.support.engine import LONG, Models, engine_of, read

CHAT = [{"role": "user", "content": "the cat sat"}]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": dict(do_sample=True, temperature=1.5, seed=7, top_p=0.9),
    "scored": dict(do_sample=True, seed=3, top_k=20, output_scores=True),
    "penalised": dict(repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=4),
    "choices": dict(choices=["the cat", "a dog", "nothing"]),
    "json": dict(json_schema='{"type": "object", "properties": {"a": {"type": "integer"}}}', do_sample=True, seed=1),
    "copies": dict(do_sample=True, seed=5, num_return_sequences=3),
    "alternatives": dict(num_alternatives=3),
    "beams": dict(num_beams=3, num_return_sequences=2),
    "contrastive": dict(penalty_alpha=0.6, top_k=4),
    "lookup": dict(prompt_lookup=2),
    "guided": dict(guidance_scale=1.5),
    "dola": dict(dola_layers="low"),
    "healed": dict(heal=True),
    "prefixed": dict(answer_prefix="Well, "),
    "int8": dict(cache_kind="int8"),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_is_the_librarys(models: Models, way: str) -> None:
    task, options = models["chat"], {"max_new_tokens": 12, **WAYS[way]}
    with engine_of(task) as engine:
        for prompt in ("the cat ", LONG * 3, CHAT):
            expected = task(prompt, **options)
            events, outcome = read(engine.generate("a", prompt, options))
            assert outcome.result == expected
            answers = (expected, *expected.alternatives)
            assert outcome.answers == answers
            for index, answer in enumerate(answers):
                own = [event for event in events if event.index == index]
                assert "".join(event.text for event in own) == answer.text
                assert (own[-1].reason, own[-1].stop_string) == (answer.stop_reason, answer.stop_string)
                assert tuple(token for event in own for token in event.token_ids) == answer.token_ids


def test_a_stop_string_is_never_shown(models: Models) -> None:
    task = models["chat"]
    text = task("the cat ", max_new_tokens=12).text
    with engine_of(task) as engine:
        for stop in ([text[3:6]], [text[-2:], "zzz"], [text + "zzz"]):
            expected = task("the cat ", max_new_tokens=12, stop=stop)
            events, outcome = read(engine.generate("a", "the cat ", {"max_new_tokens": 12, "stop": stop}))
            assert outcome.result == expected
            assert "".join(event.text for event in events) == expected.text
            assert events[-1].stop_string == expected.stop_string


def test_log_probabilities_are_the_models_own(models: Models) -> None:
    task = models["chat"]
    options = dict(max_new_tokens=8, do_sample=True, seed=3, temperature=0.5, top_k=3)
    with engine_of(task) as engine:
        events, outcome = read(engine.generate("a", "the cat ", options, logprobs=4))
        _, other = read(engine.generate("a", "the cat ", {**options, "num_beams": 1}, logprobs=0))
    assert outcome.scores is not None and other.scores is not None
    scores = outcome.scores[0]
    assert [score for event in events for score in event.scores or ()] == list(scores)
    assert [score.id for score in scores] == list(outcome.result.token_ids)
    assert all(score.top[0][1] >= score.logprob and len(score.top) == 4 for score in scores)
    assert [score.logprob for score in other.scores[0]] == [score.logprob for score in scores]


def test_asynchronous_readers(models: Models) -> None:
    task = models["chat"]

    async def main() -> None:
        with engine_of(task) as engine:
            requests = [engine.generate("a", f"the cat {number} ", {"max_new_tokens": 9}) for number in range(6)]
            await asyncio.gather(*(request.started() for request in requests[:2]))
            texts = await asyncio.gather(*map(_text, requests[:3]))
            outcomes = [await request.outcome() for request in requests]
            assert texts == [outcome.result.text for outcome in outcomes[:3]]
            assert [outcome.result for outcome in outcomes] == [
                task(f"the cat {number} ", max_new_tokens=9) for number in range(6)
            ]
            with pytest.raises(UsageError, match="event loop"):
                engine.generate("a", "the cat ", {}).result()

    asyncio.run(main())


async def _text(request: Any) -> str:
    return "".join([event.text async for event in request])


def test_several_equal_answers_are_computed_once(models: Models) -> None:
    task = models["chat"]
    with engine_of(task) as engine:
        events, outcome = read(engine.generate("a", "the cat ", {"max_new_tokens": 8}, n=3))
    assert outcome.answers == (task("the cat ", max_new_tokens=8),) * 3
    assert outcome.usage.new_tokens == outcome.result.new_tokens
    for index in range(3):
        assert "".join(event.text for event in events if event.index == index) == outcome.result.text


def test_a_prompt_in_ids(models: Models) -> None:
    task = models["chat"]
    ids = task.tokenizer.encode("the cat ").input_ids
    with engine_of(task) as engine:
        found = engine.generate("a", ids, {"max_new_tokens": 8}).result(20)
    assert found.result == task("the cat ", max_new_tokens=8)


def test_a_drawn_answer_tells_its_seed(models: Models) -> None:
    task = models["chat"]
    with engine_of(task) as engine:
        first = engine.generate("a", "the cat ", {"max_new_tokens": 8, "do_sample": True}).result(20)
        second = engine.generate("a", "the cat ", {"max_new_tokens": 8, "do_sample": True}).result(20)
    assert first.seed is not None and first.seed != second.seed
    assert task("the cat ", max_new_tokens=8, do_sample=True, seed=first.seed) == first.result


@pytest.mark.parametrize("wrong", [{}, "code-completion", [1], {"c": "code-completion"}])
def test_what_is_no_model(wrong: Any) -> None:
    with pytest.raises(UsageError, match="load"):
        Engine(wrong)


def test_options_that_are_none(models: Models) -> None:
    options: Any = {"max_rows": 2}
    with pytest.raises(UsageError, match="EngineOptions"):
        Engine({"a": models["chat"]}, options)
    with pytest.raises(UsageError, match="are free here"):
        engine_of(models["chat"], kv_memory_bytes=1 << 60)


def test_an_engine_is_started_once(models: Models) -> None:
    with engine_of(models["chat"]) as engine, pytest.raises(UsageError, match="another Engine"):
        engine.start()
    with pytest.raises(UsageError, match="another Engine"):
        engine.start()


def test_a_program_may_end_in_the_middle() -> None:
    script = (
        "import plainformer as pf; engine = pf.Engine({'a': pf.load('code-completion')}).start(); "
        "engine.generate('a', 'import', {'max_new_tokens': 500, 'eos_ids': []})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
