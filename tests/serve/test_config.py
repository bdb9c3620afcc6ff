"""What a server is told: command line, YAML file, names of models; and the app without a process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import plainformer
import plainformer.serve
from plainformer.cli.serve import bundled, configured
from plainformer.errors import PlainformerError
from plainformer.serve.config import ModelEntry, ServeConfig, ServeOptions, parse_models, read_serve_config
from plainformer.serve.sse import EventStream, event
from tests.support import ROOT
from tests.support.cli import Cli
from tests.support.processes import modules_after


def test_models_of_a_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    found = parse_models(
        ["chat=smollm2", "org/name", str(folder), "x/y.gguf"], ["chat=text-generation", "my-model=fill-mask"]
    )
    assert [(one.name, one.ref, one.task) for one in found] == [
        ("chat", "smollm2", "text-generation"), ("org/name", "org/name", None), ("my-model", str(folder), "fill-mask"),
        ("y", "x/y.gguf", None)
    ]  # fmt: skip
    assert parse_models(["a"], ["ner"]) == (ModelEntry("a", "a", "ner"),)


@pytest.mark.parametrize(
    ("models", "tasks"), [(["a=x", "b=y"], ["ner"]), (["a=x"], ["b=ner"]), (["a b=x"], []), ([], ["ner"])]
)
def test_models_that_cannot_be(models: list[str], tasks: list[str]) -> None:
    with pytest.raises(PlainformerError):
        configured(models, tasks, None, {}, {})


YAML = """
models:
  chat: smollm2-135m-instruct
  vectors: {ref: all-minilm-l6-v2, task: feature-extraction, quantize: int8}
load: {threads: 2}
port: 9000
max_rows: 8
kv_memory: 1GB
cors_origin: ["https://app.example"]
"""


def test_a_file_and_what_is_typed_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(YAML)
    made = configured(["chat=other"], [], str(path), {"port": 0}, {})
    assert [(one.name, one.ref) for one in made.models] == [("vectors", "all-minilm-l6-v2"), ("chat", "other")]
    assert made.models[0].options == {"quantize": "int8"} and made.load.threads == 2
    assert (made.options.port, made.engine.max_rows, made.engine.kv_memory_bytes) == (0, 8, 10**9)
    assert configured([], [], None, {}, {}).models == bundled()


@pytest.mark.parametrize("text", [
    "models: [a]", "models: {a: {task: ner}}", "prot: 9000", "models: {a: {ref: b, quantise: int8}}", "load: {thread: 2}",
    "port: x", "max_rows: 0",
    "models: {a: 5}", "{}: {}",
])  # fmt: skip
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(PlainformerError, match=re.escape("serve.yaml")):
        read_serve_config(path)


def test_the_page_says_what_can_be_configured(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to-serve.md").read_text(encoding="utf-8")
    found = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert found
    for place, text in enumerate(found):
        path = tmp_path / f"{place}.yaml"
        path.write_text(text)
        entries, options, load = read_serve_config(path)
        ServeConfig.of(entries, options, load)


def test_limits_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLAINFORMER_API_KEY", raising=False)
    assert (
        ServeOptions().key() is None
        and ServeOptions(host="::1").is_loopback
        and not ServeOptions(host="box").is_loopback
    )
    with pytest.raises(PlainformerError, match="API key"):
        ServeOptions(host="0.0.0.0").key()
    monkeypatch.setenv("PLAINFORMER_API_KEY", "from-the-environment")
    assert ServeOptions(host="0.0.0.0").key() == "from-the-environment"
    (tmp_path / "key").write_text("short\n")
    with pytest.raises(PlainformerError, match="8 or more characters"):
        ServeOptions(api_key_file=str(tmp_path / "key")).key()
    assert ServeOptions(max_body="2KB").bytes_of("max_body") == 2000


def test_a_model_that_cannot_be_loaded_ends_the_start(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = cli("serve", "a=/nowhere/at/all", "--port", "0")
    assert answer.code in (1, 2) and "model a: " in answer.err


def test_a_missing_package_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plainformer.serve, "NEEDED", ("starlette", "a_package_that_is_not_there"))
    answer = cli("serve", "smollm2-135m-instruct")
    assert answer.code == 1 and "plainformer[serve]" in answer.err and "pip install" in answer.err


def test_what_the_command_line_shows_needs_neither_torch_nor_starlette() -> None:
    code = "from plainformer.cli.main import run_app\nrun_app(['serve', '--help'])\nrun_app(['--help'])"
    assert not modules_after(code) & {"torch", "starlette", "uvicorn", "prometheus_client"}
    assert "starlette" not in modules_after("import plainformer; dir(plainformer)")


def test_an_app_within_another_process(tiny: Callable[[str], Path]) -> None:
    task = plainformer.load(str(tiny("chat")), threads=1)
    app = plainformer.serve.make_app(ServeConfig((ModelEntry("chat", "chat"),)), {"chat": task})

    async def used() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def receive() -> Any:
            if not begun.is_set():
                begun.set()
                return {"type": "lifespan.startup"}
            await ended.wait()
            return {"type": "lifespan.shutdown"}

        sent: list[str] = []

        async def send(message: Any) -> None:
            sent.append(message["type"])

        life = asyncio.ensure_future(app({"type": "lifespan", "asgi": {}, "state": {}}, receive, send))
        while "lifespan.startup.complete" not in sent:
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            body = {"model": "chat", "prompt": "the cat", "temperature": 0, "max_tokens": 4}
            found = (await client.post("/v1/completions", json=body)).json()
            assert found["choices"][0]["text"] == task("the cat", max_new_tokens=4).text
        ended.set()
        await life
        assert sent[-1] == "lifespan.shutdown.complete"

    asyncio.run(used())


def test_silence_is_filled_with_comments_and_a_reader_that_leaves_ends_it() -> None:
    async def run(leaves: float) -> tuple[list[bytes], bool, bool]:
        closed, cancelled, sent = [], False, []

        async def events() -> Any:
            nonlocal cancelled
            yield event({"a": 1})
            try:
                await asyncio.sleep(0.25)
            except asyncio.CancelledError:
                cancelled = True
                raise
            yield event({"a": 2})

        async def receive() -> Any:
            await asyncio.sleep(leaves)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        await EventStream(events(), lambda: closed.append(True), keep_alive=0.1)({}, receive, send)
        await asyncio.sleep(0.01)
        return sent, bool(closed), cancelled

    sent, closed, _ = asyncio.run(run(9))
    assert (
        sent == [b"", b'data: {"a":1}\n\n', b": keep-alive\n\n", b": keep-alive\n\n", b'data: {"a":2}\n\n', b""]
        and closed
    )
    sent, closed, cancelled = asyncio.run(run(0.15))
    assert sent[-1] == b": keep-alive\n\n" and closed and cancelled
