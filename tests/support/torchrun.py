"""Runs that torchrun starts, as a user would, and that a test disturbs: `python -m tests.support.torchrun FOLDER KILLS SEED`.

`FOLDER` has run.yaml. Its run is made by two processes, one of which is killed again and again, at random times.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support import ROOT

LIMIT = 240.0  # seconds that anything may take here


class Launched:
    """torchrun at work; what it and its workers print is in a file."""

    def __init__(self, folder: Path, launcher: list[str], arguments: list[str], name: str = "log") -> None:
        self.folder, self.log = folder, folder / f"{name}.txt"
        command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "plainformer", *arguments]
        paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        known = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        environment = {**known, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "NO_PROGRESS": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def workers(self) -> list[int]:
        """The processes that it has started and that still live."""
        return children(self.process.pid)

    def wait(self, limit: float = LIMIT) -> int:
        return self.process.wait(limit)

    @property
    def said(self) -> str:
        """All that was printed so far, without torchrun's own lines."""
        text = self.log.read_text(errors="replace").replace("\r", "\n")
        return "\n".join(line for line in text.split("\n") if not line.startswith(("W1", "W0", "E1", "E0", "[W", "[E")))

    def end(self) -> None:
        """Kill what is left."""
        for pid in [*self.workers(), self.process.pid]:
            kill(pid)
        self.process.wait(10)


@contextmanager
def launched(folder: Path, launcher: list[str], arguments: list[str], name: str = "log") -> Iterator[Launched]:
    """Within, torchrun works; afterwards nothing of it is left."""
    made = Launched(folder, launcher, arguments, name)
    try:
        yield made
    finally:
        made.end()


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def lines(run: Path) -> list[dict[str, Any]]:
    """What a run has written of its steps."""
    path = run / "metrics.jsonl"
    whole = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [line for line in map(json.loads, whole) if "loss" in line]


def step_of(run: Path) -> int:
    """The last step that a run has written down."""
    return max((line["step"] for line in lines(run)), default=0)


def wait_for(holds: Any, what: str, launched: Launched | None = None, limit: float = LIMIT) -> None:
    """Wait until `holds()`; fail if it takes too long, or the launcher has ended."""
    end = time.monotonic() + limit
    while not holds():
        said = launched.said[-3000:] if launched is not None else ""
        assert time.monotonic() < end, f"after {limit:g} s still not {what}\n{said}"
        assert launched is None or launched.process.poll() is None or holds(), f"ended before {what}\n{said}"
        time.sleep(0.02)


def killed_again_and_again(folder: Path, kills: int, seed: int, *arguments: str) -> list[float]:
    """Make a run whose workers are killed; return the seconds from each kill to the next step that is written down."""
    draw, run, seconds = random.Random(seed), folder / "run", []
    launcher = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(kills), "--monitor-interval", "0.1"]
    with launched(folder, launcher, ["train", "run.yaml", "--folder", "run", *arguments]) as torchrun:
        for number in range(kills):
            wait_for(lambda: len(torchrun.workers()) == 2, "two workers", torchrun)
            if number % 4 == 3:  # at any time of its beginning, too
                time.sleep(draw.uniform(0, 4))
            else:
                before = len(lines(run))
                wait_for(lambda before=before: len(lines(run)) > before, "a step", torchrun)
                time.sleep(draw.uniform(0, 0.2))
            killed, begin = draw.choice(torchrun.workers()), time.monotonic()
            kill(killed)
            wait_for(lambda killed=killed: killed not in torchrun.workers(), "its death", torchrun)
            wait_for(lambda: len(torchrun.workers()) == 2, "a restart", torchrun)
            seconds.append(round(time.monotonic() - begin, 2))
            print(f"kill {number + 1} after step {step_of(run)}: restarted after {seconds[-1]} s", flush=True)
        code = torchrun.wait()
        assert code == 0, torchrun.said[-3000:]
    return seconds


if __name__ == "__main__":
    print(killed_again_and_again(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
