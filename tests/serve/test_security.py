"""Who may call, what a request may hold, and that nothing of it reaches files, the network, code or the log."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support import ROOT
from tests.support.serving import PROGRAM, Running, error_of, models, until

KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def strict(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a key and narrow limits."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "key").write_text(KEY + "\n")
    (folder / "metrics").write_text("metrics-key")
    limits = (
        "--max-body",
        "20KB",
        "--max-upload",
        "2000000",
        "--body-timeout",
        "1.5",
        "--max-connections",
        "8",
        "--max-messages",
        "3",
    )
    limits += (
        "--max-depth",
        "12",
        "--max-header",
        "4096",
        "--max-inputs",
        "4",
        "--max-documents",
        "4",
        "--max-audio-seconds",
        "1",
    )
    limits += ("--max-input-tokens", "30", "--max-schema", "1KB", "--keep-alive", "1")
    names = models(tiny, "chat", "embedding", "speech", "token-classification")
    who = (
        "--api-key-file",
        str(folder / "key"),
        "--metrics-key-file",
        str(folder / "metrics"),
        "--allowed-host",
        "box.local",
    )
    with Running(*names, *limits, *who, "--cors-origin", "https://app.example") as running:
        running.client.headers["authorization"] = f"Bearer {KEY}"
        yield running


CHAT: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}

# ---- keys ---------------------------------------------------------------------------------------------------------------


def test_the_key(strict: Running) -> None:
    error = strict.refused(
        "/v1/chat/completions", CHAT, 401, "invalid_api_key", headers={"authorization": "Bearer wrong"}
    )
    assert error["type"] == "authentication_error" and KEY not in error["message"]
    strict.refused("/v1/chat/completions", CHAT, 401, headers={"authorization": ""})
    strict.refused("/v1/chat/completions", CHAT, 401, headers={"authorization": "Bearer clé".encode()})
    strict.ask("/v1/chat/completions", CHAT, headers={"authorization": "", "x-api-key": KEY})
    for path in ("/health", "/ready"):
        assert strict.client.get(path, headers={"authorization": ""}).status_code == 200
    for path in ("/v1/models", "/openapi.json", "/nothing"):
        assert strict.client.get(path, headers={"authorization": ""}).status_code == 401
    with (
        openai.OpenAI(base_url=f"{strict.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_metrics_may_have_a_key_of_their_own(strict: Running) -> None:
    assert strict.client.get("/metrics").status_code == 401
    page = strict.client.get("/metrics", headers={"authorization": "Bearer metrics-key"})
    assert page.status_code == 200 and KEY not in page.text and "metrics-key" not in page.text


def test_the_key_is_nowhere_in_the_log(strict: Running) -> None:
    strict.client.get(f"/v1/models?key={KEY}")
    assert KEY not in strict.log and "/v1/models" in strict.log


@pytest.mark.parametrize(("arguments", "said"), [
    (["--host", "0.0.0.0"], "there is no API key"),
    (["--host", "::"], "there is no API key"),
    (["--api-key-file", "/nowhere"], "cannot be read"),
    (["--port", "70000"], "--port 70000"),
    (["--max-body", "much"], "--max-body"),
    (["--cors-origin", "app.example"], "is not the origin of a page"),
    (["a=x", "a=y"], "two models are called 'a'"),
    (["x", "--task", "y=fill-mask"], "which is not a model here"),
])  # fmt: skip
def test_what_does_not_start(arguments: list[str], said: str) -> None:
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


# ---- hosts and origins --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "status"), [
    ("evil.example", 403), ("evil.example:80", 403), ("localhost.evil.example", 403), ("", 403), ("127.0.0.1.evil.example", 403),
    ("localhost", 200), ("LOCALHOST:1", 200), ("127.0.0.1:99", 200), ("[::1]:8000", 200), ("192.168.0.3", 200),
    ("box.local:1", 200),
])  # fmt: skip
def test_hosts(strict: Running, host: str, status: int) -> None:
    assert strict.client.get("/health", headers={"host": host}).status_code == status


def test_a_page_of_another_origin_may_not_call(strict: Running, house: Running) -> None:
    evil, good = {"origin": "https://evil.example"}, {"origin": "https://app.example"}
    strict.refused("/v1/chat/completions", CHAT, 403, "origin_not_allowed", headers=evil)
    strict.refused("/v1/chat/completions", CHAT, 403, headers={"origin": "null"})
    assert strict.client.get("/health", headers={"origin": strict.url}).status_code == 200  # its own pages
    answer = strict.post("/v1/chat/completions", CHAT, headers=good)
    assert answer.headers["access-control-allow-origin"] == "https://app.example" and "*" not in str(answer.headers)
    assert "access-control-allow-credentials" not in answer.headers
    preflight = {**good, "access-control-request-method": "POST", "authorization": ""}
    found = strict.client.options("/v1/chat/completions", headers=preflight)
    assert found.status_code == 204 and "authorization" in found.headers["access-control-allow-headers"]
    found = strict.client.options("/v1/chat/completions", headers={**preflight, **evil})
    assert found.status_code == 403 and "access-control-allow-origin" not in found.headers
    plain = house.client.get("/health")
    assert not [name for name in plain.headers if name.startswith("access-control")]
    assert plain.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_what_a_page_could_send_unasked_is_not_read(house: Running, kind: str) -> None:
    response = house.client.post("/v1/chat/completions", content=json.dumps(CHAT), headers={"content-type": kind})
    error_of(response, 415)


# ---- limits -------------------------------------------------------------------------------------------------------------


def test_limits_of_what_a_request_holds(strict: Running) -> None:
    chat, embed = "/v1/chat/completions", "/v1/embeddings"
    assert "--max-messages" in strict.refused(chat, {**CHAT, "messages": CHAT["messages"] * 4})["message"]
    nested: Any = {}
    for _ in range(12):
        nested = {"a": nested}
    assert "nested" in strict.refused(chat, {**CHAT, "metadata": nested}, 400, "invalid_json")["message"]
    schema = {"type": "json_schema", "json_schema": {"schema": {"description": "x" * 1100}}}
    assert (
        "--max-schema"
        in strict.refused(chat, {**CHAT, "response_format": schema}, 400, "unsupported_schema")["message"]
    )
    assert "--max-schema" in strict.refused(chat, {**CHAT, "regex": "x" * 1100})["message"]
    assert "--max-inputs" in strict.refused(embed, {"model": "embedding", "input": ["x"] * 5})["message"]
    assert (
        "--max-input-tokens"
        in strict.refused(embed, {"model": "embedding", "input": ["the cat sat on the mat"] * 4})["message"]
    )
    assert (
        "--max-inputs"
        in strict.refused("/v1/tasks/feature-extraction", {"model": "embedding", "inputs": ["x"] * 5})["message"]
    )
    assert "--max-documents" in strict.refused("/v1/entities", {"documents": ["x"] * 5})["message"]
    wave = (
        b"RIFF"
        + (36 + 96000).to_bytes(4, "little")
        + b"WAVEfmt "
        + (16).to_bytes(4, "little")
        + (1).to_bytes(2, "little")
    )
    wave += (1).to_bytes(2, "little") + (16000).to_bytes(4, "little") + (32000).to_bytes(4, "little") + b"\x02\0\x10\0"
    wave += b"data" + (96000).to_bytes(4, "little") + bytes(96000)
    form = strict.client.post("/v1/audio/transcriptions", data={"model": "speech"}, files={"file": ("a.wav", wave)})
    assert "longer than 1 seconds" in error_of(form, 400)["message"]


def raw(server: Running, data: bytes, seconds: float = 10.0) -> bytes:
    """What a server answers to bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(data)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"


def test_bodies_that_are_too_large(strict: Running) -> None:
    before = strict.rss()
    assert b" 413 " in raw(strict, HEAD.encode() + b"Content-Length: 1000000000\r\n\r\n{").split(b"\r\n")[0]
    connection = http.client.HTTPConnection("127.0.0.1", strict.port, timeout=10)
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        while sent < 10**9:
            sent += 2**16
            yield b" " * 2**16

    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with contextlib.suppress(OSError):  # it hangs up
        connection.request("POST", "/v1/chat/completions", body(), headers, encode_chunked=True)
    assert sent < 2**27
    strict.refused("/v1/chat/completions", {**CHAT, "user": "x" * 30_000}, 413, "body_too_large")
    packed = gzip.compress(json.dumps(CHAT).encode())
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    error_of(strict.client.post("/v1/chat/completions", content=packed, headers=headers), 415, "unsupported_encoding")
    strict.ask("/v1/chat/completions", CHAT)
    assert strict.rss() - before < 20 * 2**20


def test_requests_that_never_come(strict: Running) -> None:
    started = time.monotonic()
    found = raw(strict, HEAD.encode() + b"Content-Length: 100\r\n\r\n{")
    assert b" 408 " in found.split(b"\r\n")[0] and b'"body_timeout"' in found
    found = raw(strict, HEAD.encode()[:40])
    assert b" 408 " in found.split(b"\r\n")[0]
    assert raw(strict, b"").startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 9
    assert raw(strict, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10_000 + b"\r\n\r\n").startswith(
        b"HTTP/1.1 4"
    )


def test_headers_that_drip(strict: Running) -> None:
    with socket.create_connection(("127.0.0.1", strict.port), timeout=10) as connection:
        started = time.monotonic()
        with pytest.raises(OSError):
            for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\n" * 10:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - started < 8


def test_too_many_connections(strict: Running) -> None:
    until(lambda: strict.client.get("/health").status_code == 200)
    many = [socket.create_connection(("127.0.0.1", strict.port), timeout=5) for _ in range(12)]
    refused = [one for one in many if _answered(one).startswith(b"HTTP/1.1 503")]
    assert 3 <= len(refused) <= 5
    for one in many:
        one.close()
    until(lambda: strict.client.get("/health").status_code == 200)


def _answered(connection: socket.socket) -> bytes:
    connection.settimeout(0.3)
    try:
        return connection.recv(1000)
    except TimeoutError:
        return b""


# ---- what a request may name --------------------------------------------------------------------------------------------


def test_no_files_no_urls_no_code(house: Running, tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(b"what-it-says")
    for inputs in (
        str(secret),
        {"path": str(secret)},
        [str(secret)],
        "http://127.0.0.1:9/x.png",
        {"data": str(secret)},
    ):
        for task, model in (
            ("automatic-speech-recognition", "speech"),
            ("image-classification", "image-classification"),
        ):
            error = house.refused(f"/v1/tasks/{task}", {"model": model, "inputs": inputs})
            assert "what-it-says" not in error["message"]
    for options in ({"words": str(secret)}, {"ngram": str(secret)}, {"sampling_rate": 8000}, {"batch_size": 2}):
        house.refused("/v1/tasks/asr", {"model": "speech", "inputs": {"data": ""}, "options": options})
    house.refused("/v1/chat/completions", {"model": str(secret), "messages": CHAT["messages"]}, 404)
    assert "Traceback" not in house.log


def test_log_lines_are_ours(house: Running) -> None:
    house.client.get("/health", headers={"x-request-id": "mine-1"}).raise_for_status()
    assert house.client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    odd = house.client.get("/health", headers={"x-request-id": "a b\tstatus=200"})
    assert odd.headers["x-request-id"].startswith("req-")
    house.client.get("/v1/%0Ainfo%20request=forged%20status=200")
    until(lambda: "route=unknown" in house.log)
    assert "forged" not in house.log
    line = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (info|warning|error) .+")
    assert all(line.fullmatch(one) for one in house.log.splitlines() if "request=" in one)


def test_a_wrong_base_address_works(house: Running) -> None:
    for path in ("/chat/completions", "/v1/chat/completions", "/v1/chat/completions/"):
        house.ask(path, {**CHAT, "temperature": 0})
    error_of(house.client.get("/v1/chat/completions"), 405)
    assert house.client.get("/v1/chat/completions").headers["allow"] == "POST"
    assert "did you mean" in error_of(house.client.post("/v1/chat/completion"), 404)["message"]
    assert "/v1/chat/completions" in error_of(house.client.post("/v1/responses", json={}), 404)["message"]


def test_middleware_is_pure_asgi() -> None:
    """One of Starlette's kind hides disconnects."""
    source = (ROOT / "src/plainformer/serve").rglob("*.py")
    assert not [path for path in source if "BaseHTTPMiddleware" in path.read_text(encoding="utf-8")]


def test_an_origin_that_is_no_address(house: Running) -> None:
    error_of(house.client.get("/v1/models", headers={"origin": "http://["}), 403, "origin_not_allowed")


def test_a_key_that_no_client_could_send(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("schlüssel-von-hier", encoding="utf-8")
    done = subprocess.run(
        [*PROGRAM, "serve", "--api-key-file", str(tmp_path / "key")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "ASCII" in done.stderr


def test_ids_of_others_are_not_in_the_way(house: Running) -> None:
    """A request with several prompts has several works, whose names no client can take."""
    body = {"model": "smol", "prompt": ["Once", "The"], "max_tokens": 4}
    with house.client.stream(
        "POST", "/v1/completions", json={**body, "prompt": "a", "max_tokens": 200, "stream": True},
        headers={"x-request-id": "c.2"},
    ) as other:  # fmt: skip
        next(other.iter_lines())
        house.ask("/v1/completions", body, headers={"x-request-id": "c"})
        assert house.client.delete("/v1/requests/c").status_code == 404


def test_a_long_input_is_not_explained(house: Running) -> None:
    for path, more in (("/v1/explain", {}), ("/v1/explain/steps", {}), ("/v1/whatif", {"change": "mask-head=0.0"})):
        error = house.refused(path, {"model": "smol", "input": "a " * 600, **more})
        assert "--max-explain-tokens" in error["message"]


def test_a_prompt_that_does_not_fit_is_not_scored(house: Running) -> None:
    body = {"model": "smol", "prompt": "a " * 9000, "max_tokens": 1, "echo": True, "logprobs": 0}
    house.refused("/v1/completions", body, 400, "context_length_exceeded")


def test_who_leaves_is_a_line_in_the_log(house: Running) -> None:
    before = len(house.log)
    with contextlib.suppress(Exception):
        body = {"model": "smol", "prompt": "Once", "max_tokens": 400, "temperature": 0}
        house.client.post("/v1/completions", json=body, timeout=0.7)
    until(lambda: "status=499" in house.log[before:])
    assert "Traceback" not in house.log[before:] and "never retrieved" not in house.log[before:]


@pytest.mark.parametrize(("field", "value", "said"), [
    ("prompt", [-1], "less than 0"),
    ("prompt", [1.5], "is not a whole number"),
    ("max_tokens", 10**30, "beyond"),
    ("logit_bias", {"999999": 1}, "logit_bias"),
    ("min_tokens", 3, "more than max_tokens"),
])  # fmt: skip
def test_messages_name_what_was_sent(house: Running, field: str, value: Any, said: str) -> None:
    error = house.refused("/v1/completions", {"model": "smol", "prompt": "a", "max_tokens": 1, field: value})
    assert said in error["message"] and error["param"] == field, error


def test_names_of_tools(house: Running) -> None:
    tools = [{"type": "function", "function": {"name": ""}}]
    error = house.refused("/v1/chat/completions", {**CHAT, "model": "smol", "tools": tools, "tool_choice": "required"})
    assert "tools[0].function.name" in error["message"]
