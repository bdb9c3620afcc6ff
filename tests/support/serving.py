"""A server in a process of its own: `plainformer serve` on a free port, with tiny models or the bundled ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

PROGRAM = [sys.executable, "-c", "from plainformer.cli.main import main; main()", "serve"]
ROUTE_OF_NO_PROXY = {"NO_PROXY": "*", "no_proxy": "*"}


class Running:
    """A running server.

    Attributes:
        url: its address. said: the lines of stdout. process: of it.
    """

    def __init__(self, *arguments: str, seconds: float = 120.0, environment: Mapping[str, str] | None = None) -> None:
        usual = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*PROGRAM, "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**usual, **(environment or {})},
            text=True,
        )
        self.said: list[str] = []
        self._told: list[str] = []
        self._ready = threading.Event()
        self._readers = [threading.Thread(target=self._read, args=args, daemon=True) for args in (
            (self.process.stdout, self.said), (self.process.stderr, self._told))]  # fmt: skip
        for reader in self._readers:
            reader.start()
        self.url = ""
        if not self._ready.wait(seconds) or self.process.poll() is not None:
            self.kill()
            raise AssertionError(f"the server did not start: {self.said} {self.log}")
        self.url = next(line for line in self.said if line.startswith("ready at ")).removeprefix("ready at ")
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))
            if line.startswith("ready at "):
                self._ready.set()
        self._ready.set()

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return "\n".join(self._told)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.client.post(path, json=body, **more)

    def ask(self, path: str, body: Any, **more: Any) -> Any:
        """Return the JSON of an answer that went well."""
        response = self.post(path, body, **more)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, path: str, body: Any, status: int = 400, code: str | None = None, **more: Any) -> dict[str, Any]:
        """Return the error of an answer with this status, in the shape that every error has."""
        return error_of(self.post(path, body, **more), status, code)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        page = self.client.get("/metrics").text
        samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
        found = (s for s in samples if s.name == f"plainformer_{name}" and labels.items() <= s.labels.items())
        return sum(sample.value for sample in found)

    def rss(self) -> int:
        """Return the bytes of memory that it has."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.wait(seconds)

    def wait(self, seconds: float = 60.0) -> int:
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(5)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def error_of(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Return the error of a response; its shape is checked."""
    assert response.status_code == status, (response.status_code, response.text)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"], error
    assert response.headers["content-type"].startswith("application/json")
    assert code is None or error["code"] == code, error
    assert "Traceback" not in error["message"]
    return dict(error)


def events_of(text: str) -> list[str]:
    """Return the data of each event of a stream; comments are left out."""
    parts = [part for part in text.split("\n\n") if part and not part.startswith(":")]
    assert all(part.startswith("data: ") for part in parts), parts
    return [part.removeprefix("data: ") for part in parts]


def until(true: Callable[[], Any], seconds: float = 5.0, every: float = 0.05) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(every)


def models(tiny: Callable[[str], Path], *names: str) -> Sequence[str]:
    """Return tiny models as the command line takes them."""
    return [f"{name}={tiny(name)}" for name in names]
