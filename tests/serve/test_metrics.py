"""/metrics, read by Prometheus' own parser: the numbers are those that clients counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.serving import Running, models, until


@pytest.fixture(scope="module")
def server(tiny: Callable[[str], Path]) -> Iterator[Running]:
    with Running(*models(tiny, "chat", "embedding"), "--log", "json") as running:
        yield running


def test_totals_are_what_clients_counted(server: Running) -> None:
    prompt = new = requests = 0
    names = ("prompt_tokens_total", "generated_tokens_total", "finished_total")
    before = {name: server.metric(name, model="chat") for name in names}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for number in range(4):
            found = client.completions.create(
                model="chat", prompt="the cat " * (number + 1), max_tokens=3 + number, temperature=0
            )
            prompt, new, requests = (
                prompt + found.usage.prompt_tokens,
                new + found.usage.completion_tokens,
                requests + 1,
            )
        *_, last = client.completions.create(
            model="chat", prompt="x", max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
        prompt, new, requests = prompt + last.usage.prompt_tokens, new + last.usage.completion_tokens, requests + 1
        client.embeddings.create(model="embedding", input="the cat")
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="chat", prompt="x", max_tokens=-1)
    until(lambda: server.metric("requests_total", route="/v1/completions", status="200") == requests)
    grown = {name: server.metric(name, model="chat") - before[name] for name in names}
    assert grown == {"prompt_tokens_total": prompt, "generated_tokens_total": new, "finished_total": requests}
    assert server.metric("requests_total", route="/v1/completions", status="400") == 1
    assert server.metric("requests_total", route="/v1/embeddings", model="embedding", status="200") == 1
    assert server.metric("errors_total", type="invalid_request_error") == 1
    assert server.metric("request_seconds_count", route="/v1/completions") == requests + 1
    assert server.metric("time_to_first_token_seconds_count", model="chat") >= requests
    assert server.metric("inter_token_seconds_count") > 0 and server.metric("batch_rows_count") > 0
    assert server.metric("unit_seconds_count") > 0
    for name in ("requests_running", "requests_waiting", "requests_paused", "streams_open", "kv_blocks_used"):
        assert server.metric(name) == 0
    assert server.metric("kv_blocks_total") > 0


def test_the_page_is_prometheus(server: Running) -> None:
    page = server.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(page.text))
    ours = [family for family in families if family.name.startswith("plainformer_")]
    assert len(ours) > 20 and all(family.documentation and ":" not in family.name for family in ours)
    labels = {value for family in ours for sample in family.samples for value in sample.labels.values()}
    server.client.get("/v1/models/" + "x" * 50)
    server.client.get("/nothing/at/all")
    later = {
        v
        for f in text_string_to_metric_families(server.client.get("/metrics").text)
        for s in f.samples
        for v in s.labels.values()
    }
    assert later - labels <= {
        "/v1/models/{model:path}",
        "unknown",
        "404",
        "/metrics",
        "200",
    }  # nothing that a client made up


def test_health_and_readiness(server: Running) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/ready").json()["models"] == ["chat", "embedding"]
    assert server.client.get("/v1/health").status_code == 200
    assert "{" in server.log and '"route": "/v1/completions"' in server.log
