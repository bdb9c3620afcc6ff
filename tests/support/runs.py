"""Tiny runs of training: rows, a model and a configuration in a folder; and runs that are killed again and again.

`python -m tests.support.runs CONFIG KILLS SEED` makes the run of a configuration once unbroken, then again and again, killed
at random times. Each try is a fork of one process that has imported everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plainformer.config.building import build, read_config
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Written, write_yaml
from tests.support import ROOT

WORDS = ["the", "cat", "sat", "on", "mat", "dog", "paris", "is", "in", "france", "good", "bad", "who", "where", "ran"]


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of 3 to 12 words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(count)]


def labelled(found: list[str]) -> list[dict[str, str]]:
    """Rows that say whether a text has a word."""
    return [{"text": text, "label": "yes" if "cat" in text else "no"} for text in found]


def classified(count: int = 40) -> list[dict[str, Any]]:
    """Rows of one of three labels, of 26 speakers."""
    draw, labels, found = random.Random(3), ("negative", "neutral", "positive"), []
    for text in texts(count):
        found.append({"text": text, "label": draw.choice(labels), "of": f"speaker {draw.randint(0, 25)}"})
    return found


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_data(folder: Path, objective: str, model: Path, /, **changes: Any) -> dict[str, Any]:
    """A run of 28 steps over 61 texts, evaluated on 13, as plain data; `changes` are sections or values."""
    folder.mkdir(parents=True, exist_ok=True)
    train = write_rows(folder / "train.jsonl", labelled(texts(61)))
    validation = write_rows(folder / "validation.jsonl", labelled(texts(13, seed=1)))
    data = {"train": {"path": str(train)}, "validation": {"path": str(validation)}, "cache": str(folder / "cache")}
    found: dict[str, Any] = {
        "objective": objective,
        "folder": str(folder / "run"),
        "model": {"ref": str(model)},
        "data": data,
        "batches": {"size": 6, "micro": 4},
        "length": {"steps": 28},
        "optimizer": {"learning_rate": 1e-3},
        "evaluate": {"every": 7, "batch_size": 5},
        "checkpoints": {"every": 4},
        "log_every": 3,
    }
    for name, value in changes.items():
        section = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = {**found[name], **value} if section else value
    return found


def run_config(folder: Path, objective: str, model: Path, **changes: Any) -> TrainConfig:
    """The same, as a configuration."""
    return build(TrainConfig, Written(run_data(folder, objective, model, **changes)))


def results(run: Path) -> dict[str, str]:
    """A hash of each file of a finished run that must not depend on how often it was interrupted."""
    files = [run / "metrics.jsonl", run / "last.json", run / "best.json", run / "examples.jsonl"]
    files += [run / "verdict.json", *sorted((run / "losses").iterdir())]
    files += [path for name in ("last", "best") for path in sorted((run / name).rglob("*")) if path.is_file()]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_killed(
    data: Mapping[str, Any], kills: int, seed: int = 0, timeout: float = 1200
) -> tuple[Path, dict[Path, int]]:
    """Run in another process: once unbroken, and again until there were that many kills.

    Returns:
        the folder of the unbroken run, and how often each of the others was killed.
    """
    folder = Path(data["folder"])
    config = folder.with_suffix(".yaml")
    config.write_text(write_yaml(dict(data), None), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.support.runs", str(config), str(kills), str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return folder, {_again(folder, number): count for number, count in enumerate(found)}


def _again(folder: Path, number: int) -> Path:
    """Where a run is made again; its name, which model cards have, is the same."""
    return folder.parent / f"again-{number}" / folder.name


def _attempt(config: TrainConfig, seconds: float | None) -> bool:
    """Begin or go on with a run in a child that is killed after that time; return whether it came to its end."""
    child = os.fork()
    if child == 0:
        from plainformer.training import train

        try:
            train(config)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    until = None if seconds is None else time.monotonic() + seconds
    ended, status = 0, 0
    while not ended:
        ended, status = os.waitpid(child, 0 if until is None else os.WNOHANG)
        if until is not None and time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            until = None
        elif until is not None:
            time.sleep(0.001)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(os.WEXITSTATUS(status))
    return os.WIFEXITED(status)


def main(path: Path, kills: int, seed: int) -> None:
    # Before the forks, each of which then begins at once.
    import matplotlib  # noqa: F401
    import tensorboardX  # noqa: F401

    import plainformer.training  # noqa: F401
    from plainformer.train import record

    record.__dict__["draw_plots"] = lambda folder: None  # pictures take longer than the run
    config, draw, done = read_config(path), random.Random(seed), list[int]()
    _attempt(config, None)  # the tokenised data is there for all
    shutil.rmtree(config.folder)
    begin = time.monotonic()
    _attempt(config, None)
    whole = time.monotonic() - begin
    while sum(done) < kills:
        again = replace(config, folder=str(_again(Path(config.folder), len(done))))
        done.append(0)
        while sum(done) < kills and not _attempt(again, draw.uniform(0, 0.6 * whole)):
            done[-1] += 1
        _attempt(again, None)  # does nothing if the run is done
    print(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
