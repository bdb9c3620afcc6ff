"""Servers to compare with, each started in a process of its own on a free port of loopback, with the same model.

`python serving_peers.py xllamacpp GGUF PORT ROWS` runs llama.cpp's own C++ server, which is a library there.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROWS = 8  # at once: what each server is told to be ready for


@dataclass(frozen=True)
class Server:
    """How a server is started.

    Attributes:
        command: with {port} in it. needs: the package that it comes with. ready: a path that answers once it is.
        body: fields that its requests have besides prompt, max_tokens, temperature and stream.
    """

    command: tuple[str, ...]
    needs: str
    ready: str = "/health"
    path: str = "/v1/completions"
    body: dict[str, Any] = field(default_factory=dict)


def servers(gguf: Path, folder: Path, quantize: str | None) -> dict[str, Server]:
    """Return them by name; `folder` is the same model as a folder of fp32 weights."""
    python, here = sys.executable, str(Path(__file__).parent)
    reference = (python, "-m", "transformers.cli.transformers", "serve")
    ours = (python, "-m", "plainformer", "serve", f"smol={gguf}", "--port", "{port}", "--defaults", "plain")
    return {
        "ours": Server(
            (*ours, *(("--quantize", quantize) if quantize else ())),
            "plainformer",
            "/ready",
            body={"model": "smol", "min_tokens": 0, "stream_options": {"include_usage": True}},
        ),
        "llama.cpp's server": Server(
            (python, f"{here}/serving_peers.py", "xllamacpp", str(gguf), "{port}", str(ROWS)),
            "xllamacpp",
            body={"model": "smol", "cache_prompt": False, "stream_options": {"include_usage": True}},
        ),
        "llama_cpp.server": Server(
            (
                python,
                "-m",
                "llama_cpp.server",
                "--model",
                str(gguf),
                "--port",
                "{port}",
                "--n_threads",
                _threads(),
                "--interrupt_requests",
                "false",
            ),
            "llama_cpp",
            "/v1/models",
        ),
        "transformers serve": Server(
            (*reference, str(folder), "--continuous-batching", "--port", "{port}", "--device", "cpu"),
            "transformers",
            "/health",
            body={"model": str(folder)},
        ),
    }


def _threads() -> str:
    return str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@contextmanager
def running(server: Server, log: Path, seconds: float = 120) -> Iterator[tuple[str, int]]:
    """Within, the server answers; yields its address and its process group.

    Raises `OSError`, with the end of its log, if it does not start.
    """
    if importlib.util.find_spec(server.needs) is None:
        raise OSError(f"{server.needs} is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [part.replace("{port}", str(port)) for part in server.command]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    base, end = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while not _answers(base + server.ready):
            if process.poll() is not None or time.monotonic() > end:
                raise OSError(f"it did not start: {log.read_text()[-300:]}")
            time.sleep(0.3)
        yield base, process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def _run_xllamacpp(gguf: str, port: str, rows: str) -> None:
    import xllamacpp  # type: ignore[import-not-found]

    parameters = xllamacpp.CommonParams()
    parameters.model.path = gguf
    parameters.port, parameters.n_parallel = int(port), int(rows)
    parameters.n_ctx = 1024 * int(rows)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(_threads())
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__" and sys.argv[1:2] == ["xllamacpp"]:
    _run_xllamacpp(*sys.argv[2:])
