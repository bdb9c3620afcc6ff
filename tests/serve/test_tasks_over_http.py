"""Every task over HTTP answers what its own call answers; schemas, lists, streams; entities, explanations and what-ifs."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import soundfile
from PIL import Image

import plainformer
from plainformer.explanation import Request, what_if
from plainformer.tasks import ALIASES, TASKS
from plainformer.tasks.results import plain
from tests.support.serving import Running, events_of

TEXT = "the cat sat on the mat"


def _picture() -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _recording() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).standard_normal(8000) * 0.1, 16000, format="WAV")
    return file.getvalue()


CASES: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("text-generation", "chat", "the cat", {"max_new_tokens": 7}),
    ("text-generation", "chat", [{"role": "user", "content": "the cat"}], {"do_sample": True, "seed": 3}),
    ("text-generation", "chat", ["the cat", "the dog"], {"num_beams": 2, "max_new_tokens": 4}),
    ("text2text-generation", "text2text", "the cat", {"max_new_tokens": 5}),
    ("text-classification", "text-classification", TEXT, {}),
    ("text-classification", "text-classification", [TEXT, {"text": TEXT, "pair": "the dog"}], {"truncate": True}),
    ("zero-shot-classification", "text-classification", TEXT, {"labels": ["a", "b"], "entailment_label": "positive"}),
    ("token-classification", "token-classification", TEXT, {"aggregation": "simple"}),
    ("question-answering", "question-answering", {"question": "who sat?", "context": TEXT}, {"top_k": 2}),
    ("abstractive-question-answering", "chat", {"question": "who?", "context": TEXT}, {"max_new_tokens": 4}),
    ("multiple-choice", "multiple-choice", {"prompt": "the", "choices": ["cat", "dog"]}, {}),
    ("fill-mask", "fill-mask", "the [MASK] sat", {"top_k": 3}),
    ("feature-extraction", "embedding", [TEXT, "the dog"], {"normalize": True}),
    ("image-classification", "image-classification", {"data": base64.b64encode(_picture()).decode()}, {}),
    ("audio-classification", "audio-classification", {"data": base64.b64encode(_recording()).decode()}, {}),
    ("automatic-speech-recognition", "speech", {"data": base64.b64encode(_recording()).decode()}, {"timestamps": True}),
]


def _own(item: Any) -> Any:
    """An input as the library takes it."""
    if (isinstance(item, list) and not isinstance(item[0], dict)) or (isinstance(item, list) and "role" not in item[0]):
        return [_own(one) for one in item]
    if isinstance(item, dict) and "data" in item:
        return base64.b64decode(item["data"])
    return (item["text"], item["pair"]) if isinstance(item, dict) and "pair" in item else item


def _near(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for name, value in expected.items():
            _near(found[name], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _near(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("task", "model", "inputs", "options"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)]
)
def test_answers_are_the_librarys(
    house: Running, tiny: Callable[[str], Path], task: str, model: str, inputs: Any, options: dict[str, Any]
) -> None:
    body = {"model": model, "inputs": inputs, "options": options}
    found = house.ask(f"/v1/tasks/{task}", body)
    own = plainformer.load(str(tiny(model)), task=task, threads=1)
    expected = json.loads(json.dumps(plain(own(_own(inputs), **options))))
    assert found["model"] == model and found["task"] == task
    _near(found["results"], expected)
    schema = house.client.get(f"/v1/tasks/{task}/schema", params={"model": model}).json()
    jsonschema.validate(body, schema)


def test_the_list_and_the_schemas_of_tasks(house: Running) -> None:
    rows = {row["id"]: row for row in house.client.get("/v1/tasks").json()["data"]}
    assert set(rows) == set(TASKS) and "chat" in rows["text-generation"]["models"]
    for name in [*TASKS, *ALIASES]:
        schema = house.client.get(f"/v1/tasks/{name}/schema").json()
        jsonschema.Draft202012Validator.check_schema(schema)
        assert all(one.get("description") for one in schema["properties"]["options"]["properties"].values())
    writing = house.client.get("/v1/tasks/text-generation/schema").json()["properties"]["options"]["properties"]
    assert writing["num_beams"]["default"] == 1 and "beam" in writing["length_penalty"]["x-modes"]
    house.refused("/v1/tasks/nothing", {"inputs": "x"}, 404, "task_not_found")


def test_aliases_and_the_first_model_that_can(house: Running) -> None:
    assert house.ask("/v1/tasks/ner", {"inputs": TEXT})["task"] == "token-classification"
    house.refused("/v1/tasks/ner", {"model": "smol", "inputs": TEXT}, 400, "wrong_task")


@pytest.mark.parametrize("wrong", [
    {"inputs": 5}, {"inputs": []}, {"inputs": {"text": "a"}}, {"inputs": TEXT, "options": {"top_kk": 1}}, {},
    {"inputs": TEXT, "options": {"max_length": 0}}, {"inputs": TEXT, "options": []}, {"inputs": [TEXT, None]},
])  # fmt: skip
def test_what_is_refused(house: Running, wrong: Any) -> None:
    house.refused("/v1/tasks/text-classification", {"model": "text-classification", **wrong})


def test_a_required_option_is_asked_for(house: Running) -> None:
    error = house.refused("/v1/tasks/zero-shot-classification", {"model": "text-classification", "inputs": TEXT})
    assert "labels" in error["message"]


def test_a_stream_of_a_task(house: Running) -> None:
    body = {"model": "smol", "inputs": "The quick brown fox", "options": {"max_new_tokens": 6}}
    *pieces, last, done = events_of(house.post("/v1/tasks/text-generation?stream=1", body).text)
    result = json.loads(last)["results"]
    assert "".join(json.loads(one)["text"] for one in pieces) == result["text"] and done == "[DONE]"
    assert house.ask("/v1/tasks/text-generation", body)["results"] == result
    house.refused("/v1/tasks/ner?stream=1", {"inputs": TEXT})


def test_the_library_default_holds_here(house: Running) -> None:
    """64 new tokens, the likeliest: what `task(x)` does; the routes of OpenAI have OpenAI's defaults."""
    found = house.ask("/v1/tasks/text-generation", {"model": "chat", "inputs": "the cat"})["results"]
    assert found["new_tokens"] <= 64


def test_a_list_of_prompts_does_not_wait_for_others(house: Running) -> None:
    """Each joins the batch by itself: a long answer is still being written when the list's are there."""
    body = {"model": "smol", "prompt": "Once", "max_tokens": 400, "temperature": 0, "stream": True}
    with house.client.stream("POST", "/v1/completions", json=body) as other:
        lines = other.iter_lines()
        next(lines)
        options = {"max_new_tokens": 3}
        found = house.ask(
            "/v1/tasks/text-generation", {"model": "smol", "inputs": ["a", "The cat"], "options": options}
        )
        assert [one["new_tokens"] for one in found["results"]] == [3, 3]
        assert house.metric("requests_running") >= 1


def test_entities(house: Running, tiny: Callable[[str], Path]) -> None:
    from plainformer.entities import Document, analyse

    task = plainformer.load(str(tiny("token-classification")), threads=1)
    documents = [TEXT, {"name": "second", "text": "the dog looked at the cat"}]
    found = house.ask("/v1/entities", {"model": "token-classification", "documents": documents, "required": ["cat"]})
    own = analyse(
        task, [Document("document 1", TEXT), Document("second", "the dog looked at the cat")], required=["cat"]
    )
    _near({k: v for k, v in found.items() if k != "model"}, json.loads(json.dumps(own.to_dict())))
    similar = house.ask(
        "/v1/entities", {"documents": documents, "required": ["feline"], "similar": "minilm", "threshold": 0.1}
    )
    assert similar["ranking"]
    house.refused("/v1/entities", {"documents": documents, "similar": "minilm"})
    house.refused("/v1/entities", {"documents": documents, "threshold": 0.5})
    assert house.ask("/v1/entities", {"documents": [" "]})["phrases"] == []


def test_explanations(house: Running, tiny: Callable[[str], Path]) -> None:
    found = house.ask("/v1/explain", {"model": "chat", "input": "the cat", "attention": "0.1", "lens": True})[
        "explanation"
    ]
    assert found["ref"] == "chat" and len(found["pieces"]) == 7 and found["attention"] and found["lens"]
    steps = house.ask("/v1/explain/steps", {"model": "chat", "input": "the cat", "steps": 3})["trace"]
    own = plainformer.load(str(tiny("chat")), threads=1)("the cat", max_new_tokens=3)
    assert steps["about"]["texts"] == [own.text] and str(tiny("chat")) not in json.dumps(steps)
    changed = house.ask("/v1/whatif", {"model": "chat", "input": "the cat", "change": "mask-head=0.1"})["difference"]
    expected = what_if(plainformer.load(str(tiny("chat")), threads=1), Request("the cat"), "mask-head=0.1")
    assert changed["kl_divergence"] == pytest.approx(expected.kl_divergence, rel=1e-4)
    house.refused("/v1/whatif", {"model": "chat", "input": "the cat", "change": "mask-head=99.0"})
    house.refused("/v1/explain", {"model": "chat", "input": "the cat", "attention": "nothing"})
    house.refused("/v1/explain/steps", {"model": "embedding", "input": "the cat"})
