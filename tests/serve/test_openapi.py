"""/openapi.json is right, and nothing that follows from it makes the server fail: a fuzzer and hand-made bodies, never a 5xx."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plainformer.serve.api.routes import ROUTES
from tests.support.serving import Running

schemathesis = pytest.importorskip("schemathesis")
OPERATIONS = [(route.method, route.path.replace(":path", "")) for route in ROUTES if route.method != "DELETE"]
EXAMPLES = 8


@pytest.fixture(scope="module")
def page(house: Running) -> dict[str, Any]:
    found: dict[str, Any] = house.client.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def described(page: dict[str, Any], house: Running) -> Any:
    """The page for schemathesis; without the large models and long answers, which would take long to fuzz."""
    small = json.loads(json.dumps(page))
    for operations in small["paths"].values():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                fields = content["schema"]["properties"]
                names = [
                    "chat",
                    "text2text",
                    "embedding",
                    "token-classification",
                    "text-classification",
                    "ranker",
                    "nothing",
                ]
                fields["model"] = {"enum": names}
                for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
                    if name in fields:
                        fields[name] = {"type": "integer", "minimum": -1, "maximum": 12}
    return schemathesis.openapi.from_dict(small)


def check(house: Running, method: str, path: str, **given: Any) -> None:
    response = house.client.request(method, path, **given)
    assert response.status_code < 500 or response.status_code == 501, (response.status_code, response.text, given)
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and "Traceback" not in error["message"]


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[f"{m} {p}" for m, p in OPERATIONS])
def test_a_fuzzer_never_sees_the_server_fail(house: Running, described: Any, method: str, path: str) -> None:
    operation = described[path][method]

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy())
    def run(case: Any) -> None:
        if "audio" in path:
            given = case.body if isinstance(case.body, dict) else {}
            files = {"file": ("a.wav", str(given.pop("file", "")).encode("utf-8", "replace"))}
            data = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
            check(house, method, path, data=data, files=files)
            return
        kwargs = case.as_transport_kwargs(base_url=house.url)
        kept = ("method", "url", "json", "data", "headers", "params")
        kwargs = {name: kwargs[name] for name in kept if kwargs.get(name) is not None}
        headers = {n: v for n, v in dict(kwargs.pop("headers", {})).items() if n.lower() != "content-length"}
        if isinstance(kwargs.get("data"), bytes | str):
            kwargs["content"] = kwargs.pop("data")
        check(house, kwargs.pop("method"), kwargs.pop("url"), headers=headers, **kwargs)

    run()


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    2**63,
    2**70,
    "",
    "x",
    "\u0000",
    "\U0001f600" * 3,
    "مرحبا",
    [],
    [None],
    [[]],
    {},
    {"a": 1},
]


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/tokenize", "/v1/entities"]
)
def test_odd_values_in_every_field(house: Running, path: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
        "/v1/completions": {"model": "chat", "prompt": "hi", "max_tokens": 2},
        "/v1/embeddings": {"model": "embedding", "input": "hi"},
        "/v1/rerank": {"model": "ranker", "query": "hi", "documents": ["the cat"]},
        "/v1/tokenize": {"model": "chat", "text": "hi"},
        "/v1/entities": {"model": "token-classification", "documents": ["the cat"]},
    }
    table = next(route.table for route in ROUTES if route.path == path)
    assert table is not None
    for name in table.fields:
        for place in range(0, len(ODD), 9):
            check(house, "POST", path, json={**bodies[path], name: ODD[(place + len(name)) % len(ODD)]})


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "nobody"]),
            "content": st.text(max_size=30) | st.none(),
        }
    ),
    max_size=4,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(messages=MESSAGES)
def test_messages_of_any_text(house: Running, messages: list[Any]) -> None:
    check(house, "POST", "/v1/chat/completions", json={"model": "chat", "messages": messages, "max_tokens": 2})


def test_the_page_says_what_there_is(page: dict[str, Any]) -> None:
    assert page["openapi"].startswith("3.1") and len(page["paths"]) == len({route.path for route in ROUTES})
    chat = page["paths"]["/v1/chat/completions"]["post"]
    fields = chat["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"temperature", "tools", "num_beams", "regex", "dry_multiplier", "heal"} <= set(fields)
    assert all(field.get("description") for field in fields.values())
    assert "text/event-stream" in chat["responses"]["200"]["content"]
    names = [operation["operationId"] for path in page["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))


def test_clients_default_bodies_pass(house: Running) -> None:
    """What clients send unasked has no effect, and is not refused."""
    inert = {
        "user": "me",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "n": 1,
    }
    inert |= {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "stop": None,
        "top_p": 1,
        "logprobs": False,
        "tools": [],
    }
    inert |= {
        "seed": None,
        "stream": False,
        "stream_options": None,
        "response_format": {"type": "text"},
        "modalities": ["text"],
    }
    house.ask(
        "/v1/chat/completions",
        {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **inert},
    )
