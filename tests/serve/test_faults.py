"""What goes wrong around a server: clients that leave, that do not read, a queue that is full, the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support import serving
from tests.support.models import save
from tests.support.serving import PROGRAM, Running, error_of, events_of, until

# Long enough answers that a test can come between: the tiny model writes some hundred tokens a second.
LONG: dict[str, Any] = {
    "model": "chat",
    "prompt": "the cat sat",
    "max_tokens": 600,
    "min_tokens": 600,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("chat", tmp_path_factory.mktemp("long") / "chat", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def small(folder: Path, tiny: Callable[[str], Path]) -> Iterator[Running]:
    """A server with little room: four rows, a short queue, readers that may stall for a moment."""
    limits = (
        "--max-rows",
        "4",
        "--max-queue",
        "6",
        "--stall-timeout",
        "1.5",
        "--kv-memory",
        "24MB",
        "--queue-timeout",
        "30",
    )
    with Running(f"chat={folder}", f"embedding={tiny('embedding')}", *limits) as running:
        yield running


def idle(server: Running) -> bool:
    names = ("requests_running", "requests_waiting", "requests_paused", "streams_open", "rows_running")
    return not any(server.metric(name) for name in names)


def test_aborted_requests_leave_nothing(small: Running) -> None:
    """Two hundred requests of every kind, cut at random moments: queued, being read, being written, streamed or not."""
    rng = random.Random(0)
    before = len(os.listdir(f"/proc/{small.process.pid}/fd"))

    async def cut(client: httpx.AsyncClient, number: int) -> None:
        body = {**LONG, "stream": number % 2 == 0, "temperature": (0, 1)[number % 3 == 0]}
        body |= [{}, {"n": 3}, {"num_beams": 2}, {"regex": "[a-z ]*"}, {"prompt": "the cat " * 90}][number % 5]
        if body.get("num_beams"):
            body["temperature"] = None
        try:
            async with (
                asyncio.timeout(rng.random() * 0.4),
                client.stream("POST", "/v1/completions", json=body) as response,
            ):
                async for _ in response.aiter_bytes():
                    pass
        except (TimeoutError, httpx.HTTPError):
            pass

    async def every() -> None:
        limits = httpx.Limits(max_connections=12)
        async with httpx.AsyncClient(base_url=small.url, timeout=30, trust_env=False, limits=limits) as client:
            numbers = iter(range(200))

            async def some() -> None:
                for number in numbers:
                    await cut(client, number)

            await asyncio.gather(*(some() for _ in range(10)))

    asyncio.run(every())
    until(lambda: idle(small), 5)
    until(lambda: small.metric("kv_blocks_used") == 0, 2)
    until(lambda: len(os.listdir(f"/proc/{small.process.pid}/fd")) <= before + 2, 8)
    assert small.metric("cancelled_total", why="disconnect") > 50
    small.ask("/v1/completions", {**LONG, "max_tokens": 2, "min_tokens": 0})


def test_a_request_is_cancelled_by_its_id(small: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(small.post, "/v1/completions", {**LONG, "n": 1}, headers={"x-request-id": "stop-me"})
        until(lambda: small.client.delete("/v1/requests/stop-me").status_code == 200)
        error_of(waiting.result(), 409, "cancelled")
    error_of(small.client.delete("/v1/requests/stop-me"), 404, "request_not_found")


def test_a_full_queue_and_the_clients_own_retries(small: Running) -> None:
    statuses: list[int] = []
    errors: list[Any] = []

    def one() -> None:
        response = small.post("/v1/completions", {**LONG, "max_tokens": 300, "min_tokens": 300})
        statuses.append(response.status_code)
        if response.status_code == 429:
            errors.append((error_of(response, 429, "overloaded"), response.headers["retry-after"]))

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    with openai.OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=8) as client:
        assert client.completions.create(model="chat", prompt="x", max_tokens=2).choices
    for thread in threads:
        thread.join()
    assert errors and set(statuses) == {200, 429}
    assert small.metric("rejected_total") >= len(errors)


def test_a_slow_reader_holds_up_nobody(small: Running) -> None:
    body = json.dumps({**LONG, "max_tokens": 2000, "min_tokens": 2000, "stream": True, "logprobs": 5}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    slow = []
    for _ in range(3):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", small.port))
        connection.sendall(head.encode() + body)
        slow.append(connection)
    before = small.rss()
    until(lambda: small.metric("requests_paused") > 0, 20)
    fast = small.ask("/v1/completions", {**LONG, "max_tokens": 50, "min_tokens": 50})
    assert fast["usage"]["completion_tokens"] == 50
    until(
        lambda: (
            small.metric("cancelled_total", why="stalled") >= 1 or small.metric("cancelled_total", why="stall") >= 1
        ),
        20,
    )
    assert small.rss() - before < 20 * 2**20
    for connection in slow:
        connection.close()
    until(lambda: idle(small), 10)


def test_an_error_in_a_stream_is_its_last_event(small: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(
            small.post, "/v1/completions", {**LONG, "stream": True}, headers={"x-request-id": "cut-me"}
        )
        until(lambda: small.client.delete("/v1/requests/cut-me").status_code == 200)
        response = stream.result()
    if response.status_code == 200:
        last = events_of(response.text)[-1]
        assert set(json.loads(last)["error"]) == {"message", "type", "param", "code"}
    with openai.OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=0) as client:
        given: Any = dict(LONG, stream=True, extra_headers={"x-request-id": "cut-me-too"})
        given["extra_body"] = {"min_tokens": given.pop("min_tokens")}
        chunks = client.completions.create(**given)
        with pytest.raises(openai.APIError, match="ended"):
            for place, _ in enumerate(chunks):
                if place == 3:
                    small.client.delete("/v1/requests/cut-me-too")


def test_a_deadline_ends_an_answer_as_it_is(small: Running) -> None:
    found = small.ask("/v1/completions", {**LONG, "max_tokens": 3000, "min_tokens": 3000, "max_time": 0.3})
    assert found["choices"][0]["finish_reason"] == "length" and found["plainformer"]["stop_reasons"] == ["time"]


def test_what_runs_beside_explanations_stays_the_same(small: Running) -> None:
    body = {**LONG, "max_tokens": 120, "min_tokens": 120}
    alone = small.ask("/v1/completions", body)["choices"][0]["text"]
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(small.ask, "/v1/completions", body) for _ in range(3)]
        for _ in range(3):
            small.ask("/v1/whatif", {"model": "chat", "input": "the cat", "change": "mask-head=0.1"})
            small.ask("/v1/explain", {"model": "chat", "input": "the cat", "attention": True})
        assert all(one.result()["choices"][0]["text"] == alone for one in streams)


def test_many_streams_equal_their_answers_alone(small: Running) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1, "seed": 5},
        {"regex": "[a-m ]*"},
        {"stop": "#"},
        {"logprobs": 2},
        {"n": 2, "seed": 1, "temperature": 1},
    ]
    bodies = [
        {**LONG, "prompt": "the dog " * (1 + n % 7), "max_tokens": 40, "min_tokens": 0, **kinds[n % 6]}
        for n in range(24)
    ]
    alone = [small.ask("/v1/completions", body)["choices"] for body in bodies]

    def streamed(body: dict[str, Any]) -> list[str]:
        with openai.OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=20) as client:
            texts = [""] * body.get("n", 1)
            given = {name: value for name, value in body.items() if name not in ("min_tokens", "regex")}
            extra = {name: body[name] for name in ("regex",) if name in body}
            for chunk in client.completions.create(**given, extra_body=extra, stream=True):
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
            return texts

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(streamed, bodies))
    assert found == [[choice["text"] for choice in choices] for choices in alone]


# Ten thousand take three minutes: PLAINFORMER_SERVE_REQUESTS=10000.
MANY = int(os.environ.get("PLAINFORMER_SERVE_REQUESTS", "800"))


@pytest.mark.slow
def test_memory_is_flat_over_many_requests(folder: Path, tiny: Callable[[str], Path]) -> None:
    """Twelve kinds of request, a third of them cut: at the end no more memory than after the first fifth."""
    chat = {**LONG, "max_tokens": 4, "min_tokens": 0}
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", chat),
        ("/v1/completions", {**chat, "stream": True}),
        ("/v1/completions", {**chat, "temperature": 1, "n": 2}),
        ("/v1/completions", {**chat, "regex": "[a-z]*"}),
        ("/v1/completions", {**chat, "num_beams": 2, "temperature": None}),
        ("/v1/completions", {**chat, "logprobs": 3, "prompt": "the cat " * 20}),
        ("/v1/chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}),
        ("/v1/embeddings", {"model": "embedding", "input": ["the cat", "the dog"]}),
        ("/v1/tokenize", {"model": "chat", "text": "the cat"}),
        ("/v1/tasks/feature-extraction", {"model": "embedding", "inputs": "the cat"}),
        ("/v1/completions", {**chat, "max_token": 3}),
        ("/v1/completions", {**chat, "max_tokens": 400, "min_tokens": 400}),
    ]

    async def every(client: httpx.AsyncClient, numbers: Iterator[int]) -> None:
        for number in numbers:
            path, body = kinds[number % len(kinds)]
            seconds = 0.03 if number % 3 == 0 else 20
            with contextlib.suppress(TimeoutError, httpx.HTTPError):
                async with asyncio.timeout(seconds):
                    await client.post(path, json=body)

    async def some(server: Running, count: int) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False) as client:
            numbers = iter(range(count))
            await asyncio.gather(*(every(client, numbers) for _ in range(8)))

    with Running(f"chat={folder}", f"embedding={tiny('embedding')}", "--kv-memory", "24MB") as server:
        asyncio.run(some(server, MANY // 5))
        early = server.rss()
        asyncio.run(some(server, MANY - MANY // 5))
        until(lambda: idle(server), 10)
        assert server.rss() <= early * 1.02 + (4 if MANY >= 10_000 else 16) * 2**20


# ---- the end ------------------------------------------------------------------------------------------------------------


def stream(server: Running, tokens: int) -> Iterator[str]:
    """The lines of a stream, read in a thread."""
    with server.client.stream(
        "POST", "/v1/completions", json={**LONG, "max_tokens": tokens, "min_tokens": tokens, "stream": True}
    ) as response:
        yield from response.iter_lines()


def test_the_end_lets_streams_come_to_theirs(folder: Path) -> None:
    with Running(f"chat={folder}", "--kv-memory", "64MB") as server, ThreadPoolExecutor(16) as pool:
        streams = [pool.submit(list, stream(server, 150)) for _ in range(16)]
        until(lambda: server.metric("streams_open") >= 12, 20)
        server.process.send_signal(signal.SIGTERM)
        ends = [[line for line in one.result() if line][-1] for one in streams]
        assert all(end == "data: [DONE]" for end in ends), ends
        assert server.wait() == 0
        assert "Traceback" not in server.log and "Task was destroyed" not in server.log


def test_the_end_of_streams_that_take_too_long(folder: Path) -> None:
    with (
        Running(f"chat={folder}", "--kv-memory", "64MB", "--drain-timeout", "0.4") as server,
        ThreadPoolExecutor(4) as pool,
    ):
        streams = [pool.submit(list, stream(server, 3500)) for _ in range(4)]
        until(lambda: server.metric("streams_open") == 4, 20)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        ends = [[line for line in one.result() if line][-1] for one in streams]
        assert server.wait() == 0 and time.monotonic() - started < 6
        assert all('"error"' in end and "draining" in end for end in ends), ends
        assert "Traceback" not in server.log


def test_a_second_signal_ends_at_once(folder: Path) -> None:
    with Running(f"chat={folder}", "--kv-memory", "64MB") as server, ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(lambda: list(stream(server, 3500)))
        until(lambda: server.metric("streams_open") == 1, 20)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)  # at once: the same
        time.sleep(0.7)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.url}/health", timeout=2, trust_env=False)  # nobody listens any more
        server.process.send_signal(signal.SIGINT)
        assert server.wait(10) == 130
        assert streaming.exception() is not None


def test_a_signal_while_it_loads_ends_it(folder: Path) -> None:
    process = subprocess.Popen([*PROGRAM, f"chat={folder}", "--port", "0"], stderr=subprocess.PIPE, text=True)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)
    assert process.stderr is not None and "Traceback" not in process.stderr.read()


DYING = """
from plainformer.cli.main import main
from plainformer.serve.engine.scheduler import Scheduler

own, count = Scheduler._decode, 0

def dying(self):
    global count
    count += 1
    if count > 60:
        raise RuntimeError("a fault of the test")
    return own(self)

Scheduler._decode = dying
main()
"""


def test_a_dead_engine_ends_the_process(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "PROGRAM", [sys.executable, "-c", DYING, "serve"])
        with Running(f"chat={folder}", "--kv-memory", "64MB") as server:
            response = None
            for _ in range(20):
                try:
                    response = server.post("/v1/completions", {**LONG, "max_tokens": 30, "min_tokens": 30})
                except httpx.HTTPError:
                    break
                if response.status_code != 200:
                    break
            assert response is None or response.status_code in (200, 500)
            assert server.wait(20) == 70
