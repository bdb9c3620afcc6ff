"""Runs that torchrun starts, and what happens when something dies: a worker, an agent, the answer of a peer, a disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plainformer.train.checkpoint import damage
from plainformer.training import train
from tests.support.runs import texts, write_rows
from tests.support.torchrun import children, kill, killed_again_and_again, launched, lines, step_of, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
CONFIG = """objective: causal-lm
folder: run
model: {{ref: {ref}}}
data: {{train: {{path: rows.jsonl}}, max_length: 16}}
batches: {{size: 4, micro: 1, packed: false}}
length: {{steps: {steps}}}
checkpoints: {{every: 2}}
log_every: 1
"""
ONE = ["--standalone", "--nproc-per-node", "2", "--monitor-interval", "0.1"]
TRAIN = ["train", "run.yaml", "--parallel.zero", "3"]


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[int], Path]:
    def made(steps: int) -> Path:
        write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts(40)])
        (tmp_path / "run.yaml").write_text(CONFIG.format(ref=tiny("text-generation"), steps=steps))
        return tmp_path

    return made


def check_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is that of one process that nothing disturbed."""
    monkeypatch.chdir(folder)
    config = (folder / "run.yaml").read_text().replace("folder: run", "folder: alone")
    (folder / "alone.yaml").write_text(config)
    train("alone.yaml")
    found, expected = lines(folder / "run"), lines(folder / "alone")
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, wanted in zip(found, expected, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=2e-5), line["step"]
    assert all(damage(path) == "" for path in (folder / "run/checkpoints").glob("step-*"))
    assert not [path for path in (folder / "run/checkpoints").iterdir() if path.name.startswith(".")]


def test_a_worker_is_killed_twice(folder: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    killed_again_and_again(folder(12), 2, 0, "--parallel.zero", "3")
    check_run(folder(12), monkeypatch)


@pytest.mark.slow
def test_a_worker_is_killed_twenty_times(folder: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    killed_again_and_again(folder(60), 20, 1, "--parallel.zero", "3")
    check_run(folder(60), monkeypatch)


@pytest.mark.parametrize("whom", ["launcher", "worker"])
def test_sigterm_saves_and_ends_well(folder: Callable[[int], Path], whom: str) -> None:
    """A scheduler's signal may come to all of them, and torchrun sends its own besides."""
    with launched(folder(100_000), [*ONE, "--max-restarts", "3"], TRAIN) as torchrun:
        run = torchrun.folder / "run"
        wait_for(lambda: step_of(run) >= 1, "a step", torchrun)
        workers = torchrun.workers()
        kill(workers[1], signal.SIGTERM)
        if whom == "launcher":
            kill(torchrun.process.pid, signal.SIGTERM)
        code = torchrun.wait()
        assert code == 0 if whom == "worker" else code != 0  # torchrun tells its caller of the signal
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        said = torchrun.said
    saved = json.loads((run / "last.json").read_text())["step"]
    assert f"saved at step {saved:,} of 100,000 in run; the same command goes on from there" in said
    assert saved == step_of(run) and damage(run / "last") == "" and "error: " not in said


def test_a_peer_that_hangs_is_not_waited_for_for_ever(folder: Callable[[int], Path]) -> None:
    with launched(folder(100_000), ONE, [*TRAIN, "--parallel.timeout", "3"]) as torchrun:
        wait_for(lambda: step_of(torchrun.folder / "run") >= 1, "a step", torchrun)
        stopped = torchrun.workers()[1]
        kill(stopped, signal.SIGSTOP)
        wait_for(lambda: "has not answered for 3 seconds" in torchrun.said, "an answer", torchrun, limit=60)
        kill(stopped)  # torchrun would wait half a minute before it does
        assert torchrun.wait() == 1
        said = torchrun.said
    assert said.count("error: ") == 1 and "parallel.timeout" in said.replace("--parallel", "parallel")


def test_workers_end_with_their_agent(folder: Callable[[int], Path]) -> None:
    with launched(folder(100_000), ONE, TRAIN) as torchrun:
        run = torchrun.folder / "run"
        wait_for(lambda: step_of(run) >= 1, "a step", torchrun)
        workers = torchrun.workers()
        os.kill(torchrun.process.pid, signal.SIGKILL)
        torchrun.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "their end", limit=30)


@pytest.mark.slow
def test_two_agents_go_on_when_one_dies(folder: Callable[[int], Path]) -> None:
    """Two nodes on one machine; that of the rendezvous, which is the one that comes first, must live."""
    port = free_port()
    launcher = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3", "--monitor-interval", "0.1"]
    where = ["--rdzv-backend", "c10d", "--rdzv-id", "run7", "--rdzv-endpoint", f"localhost:{port}"]
    conf = ["--rdzv-conf", "last_call_timeout=3"]
    made = folder(100_000)
    with contextlib.ExitStack() as nodes:
        first = nodes.enter_context(launched(made, [*launcher, *where, *conf], TRAIN, "node0"))
        wait_for(lambda: is_open(port), "the rendezvous", first)
        others = [*launcher, *where, *conf, "--local-addr", "localhost"]
        second = nodes.enter_context(launched(made, others, TRAIN, "node1"))
        run = made / "run"
        wait_for(lambda: step_of(run) >= 3, "three steps of two nodes", first)
        before = step_of(run)
        gone = second.workers()
        os.kill(second.process.pid, signal.SIGKILL)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in gone), "its worker's end", limit=30)
        wait_for(lambda: "going on from step" in first.said, "a restart", first)
        wait_for(lambda: step_of(run) > before + 3, "steps of one node", first)
        kill(children(first.process.pid)[0], signal.SIGTERM)
        assert first.wait() == 0


def is_open(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("localhost", port)) == 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def test_of_several_errors_alike_one_is_said(folder: Callable[[int], Path]) -> None:
    with launched(folder(4), ONE, [*TRAIN, "--batches.size", "0"]) as torchrun:
        assert torchrun.wait() == 1  # of torchrun
        assert torchrun.said.count("error: ") == 1 and "--batches.size 0" in torchrun.said
