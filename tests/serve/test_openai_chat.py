"""Chats, as OpenAI's own client sees them; and the same answers as the library's own calls."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

import plainformer
from tests.support.serving import Running, events_of

HI = [{"role": "user", "content": "What is the capital of France?"}]


def test_an_answer_is_the_librarys(client: openai.OpenAI, smol: Any) -> None:
    own = smol(HI, max_new_tokens=20)
    found = client.chat.completions.create(model="smol", messages=HI, temperature=0, max_tokens=20)
    (choice,) = found.choices
    assert choice.message.content == own.text and choice.message.role == "assistant"
    assert choice.finish_reason == {"eos": "stop"}.get(own.stop_reason, own.stop_reason)
    assert found.usage.completion_tokens == own.new_tokens and found.usage.prompt_tokens == own.prompt_tokens
    assert found.usage.total_tokens == own.new_tokens + own.prompt_tokens
    assert found.model_extra["plainformer"]["stop_reasons"] == [own.stop_reason]


def test_drawn_answers_come_with_their_seed(client: openai.OpenAI, smol: Any) -> None:
    first = client.chat.completions.create(model="smol", messages=HI, max_tokens=12, temperature=0.9, top_p=0.9)
    seed = first.model_extra["plainformer"]["seed"]
    again = client.chat.completions.create(
        model="smol", messages=HI, max_tokens=12, temperature=0.9, top_p=0.9, seed=seed
    )
    own = smol(HI, max_new_tokens=12, do_sample=True, temperature=0.9, top_p=0.9, seed=seed)
    assert first.choices[0].message.content == again.choices[0].message.content == own.text


@pytest.mark.parametrize("stop", [None, "pital of", " France", "is Paris.zzz"])
def test_a_stream_is_the_answer(client: openai.OpenAI, smol: Any, stop: str | None) -> None:
    given: dict[str, Any] = dict(model="smol", messages=HI, temperature=0, max_tokens=20)
    given |= {} if stop is None else {"stop": stop}
    whole = client.chat.completions.create(**given)
    chunks = list(client.chat.completions.create(**given, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert text == smol(HI, max_new_tokens=20, **({} if stop is None else {"stop": stop})).text
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == whole.choices[0].finish_reason and set(reasons[:-1]) == {None}
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": False}, {}])
def test_usage_in_streams(client: openai.OpenAI, options: dict[str, bool]) -> None:
    given: dict[str, Any] = dict(model="smol", messages=HI, temperature=1, seed=5, n=3, max_tokens=6)
    whole = client.chat.completions.create(**given)
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options=options))
    last = chunks[-1]
    if options.get("include_usage"):
        assert last.choices == [] and last.usage is not None
        assert last.usage.completion_tokens == whole.usage.completion_tokens
        assert last.usage.prompt_tokens == whole.usage.prompt_tokens  # counted once, whatever n
        assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])
    else:
        assert last.choices and all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_several_answers(client: openai.OpenAI, smol: Any) -> None:
    given: dict[str, Any] = dict(model="smol", messages=HI, temperature=1.2, seed=11, max_tokens=8)
    whole = client.chat.completions.create(**given, n=3)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert client.chat.completions.create(**given).choices[0].message.content == texts[0]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**given, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    greedy = client.chat.completions.create(model="smol", messages=HI, temperature=0, n=2, max_tokens=4)
    assert greedy.choices[0].message.content == greedy.choices[1].message.content


def test_log_probabilities(client: openai.OpenAI, smol: Any) -> None:
    given: dict[str, Any] = dict(model="smol", messages=HI, temperature=0, max_tokens=9, logprobs=True, top_logprobs=3)
    (choice,) = client.chat.completions.create(**given).choices
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens) == choice.message.content.encode()
    assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob for token in tokens)
    streamed = [t for chunk in client.chat.completions.create(**given, stream=True) if chunk.choices[0].logprobs
                for t in chunk.choices[0].logprobs.content]  # fmt: skip
    assert streamed == tokens
    prompt = smol.tokenizer.chat_prompt(HI).text
    scored = smol.score(prompt + choice.message.content).tokens[-len(tokens) :]
    assert [token.token for token in tokens] == [token.text for token in scored]
    assert [token.logprob for token in tokens] == pytest.approx([token.log_probability for token in scored], abs=1e-4)
    plain = client.chat.completions.create(**{**given, "top_logprobs": 0}).choices[0].logprobs.content
    assert [one.logprob for one in plain] == [one.logprob for one in tokens] and plain[0].top_logprobs == []


def test_a_cached_beginning_changes_no_bit(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 12 + "And then?"}]
    given: dict[str, Any] = dict(
        model="smol", messages=long, temperature=0, max_tokens=5, logprobs=True, top_logprobs=1
    )
    cold, warm = client.chat.completions.create(**given), client.chat.completions.create(**given)
    assert warm.usage.prompt_tokens_details.cached_tokens >= 64 > cold.usage.prompt_tokens_details.cached_tokens
    assert warm.choices == cold.choices


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit(house: Running, name: str) -> None:
    body = {"model": "smol", "messages": HI, "temperature": 0}
    found = house.ask("/v1/chat/completions", {**body, name: 3})
    assert found["usage"]["completion_tokens"] == 3 and found["choices"][0]["finish_reason"] == "length"
    for wrong in (0, -1, 1.5, "3", True, 10**19):
        assert house.refused("/v1/chat/completions", {**body, name: wrong})["param"] == name
    assert (
        house.ask("/v1/chat/completions", {**body, name: None, "max_new_tokens": 2})["usage"]["completion_tokens"] == 2
    )
    house.refused("/v1/chat/completions", {**body, "max_tokens": 3, "max_completion_tokens": 4})
    house.ask("/v1/chat/completions", {**body, "max_tokens": 3, "max_completion_tokens": 3})


def test_a_last_message_of_the_assistant_goes_on(client: openai.OpenAI, smol: Any) -> None:
    messages: Any = [*HI, {"role": "assistant", "content": "The capital of"}]
    found = client.chat.completions.create(model="smol", messages=messages, temperature=0, max_tokens=8)
    own = smol(HI, answer_prefix="The capital of", max_new_tokens=8)
    assert "The capital of" + found.choices[0].message.content == own.text
    chunks = client.chat.completions.create(model="smol", messages=messages, temperature=0, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == found.choices[0].message.content


class Capital(BaseModel):
    city: str
    country: str


def test_json_of_a_schema(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model="smol", messages=HI, response_format=Capital, temperature=0, max_tokens=80
    )
    choice = found.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(choice.message.parsed, Capital)
    shape: Any = {"type": "json_object"}
    free = client.chat.completions.create(
        model="smol", messages=HI, response_format=shape, temperature=0, max_tokens=60
    )
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(free.choices[0].message.content), dict)
    assert "length" in (free.choices[0].finish_reason, choice.finish_reason) or choice.message.parsed


def test_a_schema_that_cannot_be_kept_is_refused(house: Running) -> None:
    body: dict[str, Any] = {"model": "smol", "messages": HI, "max_tokens": 5}

    def shaped(schema: Any) -> dict[str, Any]:
        return {**body, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}

    error = house.refused(
        "/v1/chat/completions", shaped({"type": "object", "unevaluatedItems": 5, "$dynamicRef": "#x"})
    )
    assert error["param"] == "response_format"
    house.refused(
        "/v1/chat/completions", shaped({"type": "object", "description": "x" * 70_000}), 400, "unsupported_schema"
    )
    house.refused("/v1/chat/completions", {**body, "response_format": {"type": "json_schema", "schema": {}}})
    house.refused("/v1/chat/completions", {**body, "response_format": {"type": "yaml"}})


def test_samplers_beside_temperature_0_are_named(house: Running) -> None:
    found = house.ask(
        "/v1/chat/completions", {"messages": HI, "temperature": 0, "top_p": 0.5, "seed": 3, "max_tokens": 2}
    )
    assert found["plainformer"]["warnings"] == ["top_p has no effect with temperature 0"]
    neutral = {
        "messages": HI,
        "temperature": 0,
        "top_p": 1,
        "presence_penalty": 0,
        "logit_bias": {},
        "n": 1,
        "stop": None,
    }
    assert house.ask("/v1/chat/completions", {**neutral, "max_tokens": 2})["plainformer"]["warnings"] == []


def test_penalties_and_biases_are_the_librarys(house: Running, smol: Any) -> None:
    body = {"model": "smol", "messages": HI, "temperature": 0, "max_tokens": 12}
    found = house.ask("/v1/chat/completions", {**body, "frequency_penalty": 1.5, "presence_penalty": 0.5})
    own = smol(HI, max_new_tokens=12, frequency_penalty=1.5, presence_penalty=0.5)
    assert found["choices"][0]["message"]["content"] == own.text
    banned = smol(HI, max_new_tokens=1).token_ids[0]
    biased = house.ask("/v1/chat/completions", {**body, "logit_bias": {str(banned): -100}})
    own = smol(HI, max_new_tokens=12, sequence_bias={(banned,): -100.0})
    assert biased["choices"][0]["message"]["content"] == own.text


def test_whole_characters_alone(house: Running) -> None:
    answer = "🙂 中文 é́ 👩‍👩‍👧"
    body = {
        "model": "smol",
        "messages": HI,
        "choices": [answer, answer + "!"],
        "temperature": 0,
        "max_tokens": 60,
        "stream": True,
    }
    page = house.post("/v1/chat/completions", body).text
    *events, done = events_of(page)
    deltas = [json.loads(one)["choices"][0]["delta"].get("content", "") for one in events]
    assert "".join(deltas).startswith(answer) and "\ufffd" not in page and done == "[DONE]"


def test_messages_in_parts_and_roles(house: Running, smol: Any) -> None:
    parts = [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of France?"}]
    found = house.ask(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 6}
    )
    assert found["choices"][0]["message"]["content"] == smol(HI, max_new_tokens=6).text
    body = {"messages": [{"role": "developer", "content": "Be brief."}, *HI], "temperature": 0, "max_tokens": 6}
    own = smol([{"role": "system", "content": "Be brief."}, *HI], max_new_tokens=6).text
    assert house.ask("/v1/chat/completions", body)["choices"][0]["message"]["content"] == own
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]
    assert house.refused("/v1/chat/completions", {"messages": picture})["param"] == "messages"


def test_a_model_that_rewrites_text_answers_too(house: Running, tiny: Any) -> None:
    found = house.ask("/v1/chat/completions", {"model": "text2text", "messages": HI, "temperature": 0, "max_tokens": 8})
    own = plainformer.load(str(tiny("text2text")), threads=1)(HI[0]["content"], max_new_tokens=8)
    assert found["choices"][0]["message"]["content"] == own.text


def test_the_default_is_to_draw(house: Running) -> None:
    found = house.ask("/v1/chat/completions", {"model": "smol", "messages": HI, "max_tokens": 3})
    assert isinstance(found["plainformer"]["seed"], int)
    assert (
        house.ask("/v1/chat/completions", {"messages": HI, "temperature": 0, "max_tokens": 3})["plainformer"]["seed"]
        is None
    )
