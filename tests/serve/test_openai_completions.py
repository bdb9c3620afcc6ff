"""Completions, as OpenAI's own client sees them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.support.serving import Running, events_of

PROMPT = "The quick brown fox"


@pytest.mark.parametrize("stop", [None, "over the", "lazy dog.zzz", ["x", " the lazy"]])
def test_whole_streamed_and_the_librarys(client: openai.OpenAI, smol: Any, stop: Any) -> None:
    given: dict[str, Any] = dict(model="smol", prompt=PROMPT, temperature=0, max_tokens=12)
    given |= {} if stop is None else {"stop": stop}
    whole = client.completions.create(**given)
    text = "".join(chunk.choices[0].text for chunk in client.completions.create(**given, stream=True))
    own = smol(PROMPT, max_new_tokens=12, **({} if stop is None else {"stop": stop}))
    assert text == whole.choices[0].text == own.text
    assert whole.usage.completion_tokens == own.new_tokens


def test_prompts_of_every_kind_in_order(house: Running, smol: Any) -> None:
    ids = smol.tokenizer.encode(PROMPT).input_ids
    body = {"model": "smol", "temperature": 0, "max_tokens": 4}
    alone = [house.ask("/v1/completions", {**body, "prompt": one})["choices"][0]["text"] for one in (PROMPT, "Once")]
    assert house.ask("/v1/completions", {**body, "prompt": ids})["choices"][0]["text"] == alone[0]
    assert house.ask("/v1/completions", {**body, "prompt": [ids]})["choices"][0]["text"] == alone[0]
    several = house.ask("/v1/completions", {**body, "prompt": [PROMPT, "Once"], "n": 2})
    assert [one["text"] for one in several["choices"]] == [alone[0], alone[0], alone[1], alone[1]]
    assert [one["index"] for one in several["choices"]] == [0, 1, 2, 3]
    page = house.post("/v1/completions", {**body, "prompt": [PROMPT, "Once"], "n": 2, "stream": True}).text
    texts = [""] * 4
    for event in events_of(page)[:-1]:
        for choice in json.loads(event)["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [one["text"] for one in several["choices"]]


@pytest.mark.parametrize("count", [0, 2])
def test_log_probabilities(client: openai.OpenAI, smol: Any, count: int) -> None:
    given: dict[str, Any] = dict(model="smol", prompt=PROMPT, temperature=0, max_tokens=8, logprobs=count)
    choice = client.completions.create(**given).choices[0]
    found = choice.logprobs
    assert "".join(found.tokens) == choice.text and found.text_offset[0] == 0
    assert [choice.text[at:].startswith(token) for at, token in zip(found.text_offset, found.tokens, strict=True)]
    own = smol.score(PROMPT + choice.text).tokens[len(smol.tokenizer.encode(PROMPT)) :]
    alike = [(a, b) for a, b in zip(found.tokens, own, strict=False) if a == b.text]  # the last may be cut otherwise
    assert len(alike) >= len(found.tokens) - 2
    chances = [one.log_probability for _, one in alike]
    assert found.token_logprobs[: len(chances)] == pytest.approx(chances, abs=1e-4)
    assert found.top_logprobs is None if count == 0 else all(len(one) == count for one in found.top_logprobs)
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**given, stream=True)]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [one for chunk in chunks if chunk for one in getattr(chunk, name)] == getattr(found, name)


def test_echo(house: Running, smol: Any) -> None:
    body = {"model": "smol", "prompt": PROMPT, "temperature": 0, "max_tokens": 3}
    plain = house.ask("/v1/completions", body)["choices"][0]["text"]
    echoed = house.ask("/v1/completions", {**body, "echo": True, "logprobs": 0})["choices"][0]
    assert echoed["text"] == PROMPT + plain
    scored = smol.score(PROMPT).tokens
    assert echoed["logprobs"]["token_logprobs"][: len(scored)] == [one.log_probability for one in scored]
    assert echoed["logprobs"]["text_offset"][len(scored)] == len(PROMPT)
    page = house.post("/v1/completions", {**body, "echo": True, "stream": True}).text
    assert "".join(json.loads(one)["choices"][0]["text"] for one in events_of(page)[:-1]) == PROMPT + plain


def test_what_is_not_supported_is_said(house: Running) -> None:
    body = {"model": "smol", "prompt": PROMPT, "max_tokens": 2}
    for name, value in (("suffix", "x"), ("best_of", 3), ("echoes", True)):
        assert house.refused("/v1/completions", {**body, name: value})["param"] == name
    house.ask("/v1/completions", {**body, "suffix": None, "best_of": 1, "user": "me", "store": True})
    house.refused("/v1/completions", {**body, "prompt": ""})
    house.refused("/v1/completions", {**body, "prompt": []})
    house.refused("/v1/completions", {**body, "prompt": [10**9]})


def test_the_library_options_by_their_names(house: Running, smol: Any) -> None:
    body = {"model": "smol", "prompt": "A number: ", "temperature": 0, "max_tokens": 10}
    found = house.ask("/v1/completions", {**body, "regex": "[0-9]{3}"})["choices"][0]
    assert found["text"] == smol("A number: ", max_new_tokens=10, regex="[0-9]{3}").text
    beams = house.ask("/v1/completions", {"model": "smol", "prompt": PROMPT, "max_tokens": 6, "num_beams": 3, "n": 2})
    own = smol(PROMPT, max_new_tokens=6, num_beams=3, num_return_sequences=2)
    assert [one["text"] for one in beams["choices"]] == [own.text, own.alternatives[0].text]
    for name, value in (("stop_when", 1), ("processors", []), ("draft_model", "/etc/passwd"), ("cache", {})):
        house.refused("/v1/completions", {**body, name: value}, 400, "unknown_field")


def test_too_long_is_refused_never_cut(house: Running) -> None:
    prompt = "hello " * 9000
    error = house.refused("/v1/completions", {"model": "smol", "prompt": prompt}, 400, "context_length_exceeded")
    assert "maximum context length is 8192 tokens" in error["message"] and "9001" in error["message"].replace(",", "")
    messages = [{"role": "user", "content": prompt}]
    house.refused("/v1/chat/completions", {"model": "smol", "messages": messages}, 400, "context_length_exceeded")
    body = {"model": "smol", "prompt": PROMPT, "max_tokens": 10**9}
    assert house.refused("/v1/completions", body, 400, "context_length_exceeded")["param"] == "prompt"
