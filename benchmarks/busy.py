"""A busy machine: the same engines while other programs occupy every core; one core; two of our own side by side; a fresh cache.

The load is made here: one process that never waits for each core, in a session of its own, as another user's program is (Linux
shares time between sessions first, and `nice` counts within one). Every engine is measured quiet and under the load in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common import Missing, Row, reference_model
from generation import DidNotStart, Engine, _ids
from peers import missing

NEW, ROUNDS = 8, 5
SHAPE = "smollm2-135m"


@contextmanager
def load(processes: int | None = None) -> Iterator[None]:
    """Within, other programs occupy the cores."""
    count = processes or os.cpu_count() or 1
    command = [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def bench_busy(folder: Path) -> list[Row | Missing]:
    """Decoding and encoding under load, against the peers under the same load, then ours alone against ours."""
    reference_model(SHAPE, folder)
    job = {"ids": _ids(1, 16), "new": NEW, "beams": 1}
    sides = {
        "ours": ("plainformer", job),
        "ours, int8": ("plainformer", {**job, "quantize": "int8"}),
        "llama.cpp": ("llama.cpp", job),
        "CTranslate2": ("CTranslate2", job),
    }
    return [*_under_load("greedy", folder, sides, "ours"), *_encoders(folder / "encoder")]


def _start(sides: dict[str, tuple[str, dict[str, Any]]], folder: Path) -> tuple[dict[str, Engine], list[Missing]]:
    engines, absent = {}, []
    for name, (engine, job) in sides.items():
        why = None if engine == "plainformer" else missing(engine)
        try:
            if why is None:
                engines[name] = Engine(engine, folder, job)
        except DidNotStart as error:
            why = f"did not start: {error}"
        if why is not None:
            absent.append(Missing(f"busy, {name}", why))
    return engines, absent


def _rounds(engines: dict[str, Engine], rounds: int = ROUNDS) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in engines}
    for index in range(rounds):
        for name in engines if index % 2 == 0 else reversed(list(engines)):
            times[name].append(engines[name].seconds())
    return times


def _under_load(
    what: str, folder: Path, sides: dict[str, tuple[str, dict[str, Any]]], ours: str
) -> list[Row | Missing]:
    engines, absent = _start(sides, folder)
    quiet = _rounds(engines)
    with load():
        busy = _rounds(engines)
    rows: list[Row | Missing] = []
    for name in engines:
        engines[name].stop()
        alone = statistics.median(quiet[name])
        note = f"quiet: {alone:.3g} s, {statistics.median(busy[name]) / alone:.1f} times as long under load"
        pairs = zip(busy[ours], busy[name], strict=True)
        ratio = statistics.median(theirs / mine for mine, theirs in pairs)
        medians = statistics.median(busy[ours]), statistics.median(busy[name])
        rows.append(Row(f"busy machine, {what}, {name}", *medians, "s", ratio, note))
    return [*rows, *absent]


def _encoders(folder: Path) -> list[Row | Missing]:
    """An encoder's whole pass, ours and onnxruntime's."""
    import torch

    why = missing("onnxruntime")
    if why is not None:
        return [Missing("busy machine, encoder, onnxruntime", why)]
    theirs = reference_model("minilm-l6", folder)
    ids = torch.randint(5, 30000, (8, 32), generator=torch.Generator().manual_seed(0))
    path = folder / "model.onnx"
    torch.onnx.export(theirs, (ids,), str(path), input_names=["ids"], output_names=["states", "pooled"], dynamo=True)
    sides = {
        name: _Child(code, str(folder)) for name, code in {"ours": ENCODE_OURS, "onnxruntime": ENCODE_ONNX}.items()
    }
    quiet = {name: statistics.median(child.seconds() for _ in range(ROUNDS)) for name, child in sides.items()}
    with load():
        busy: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, child in sides.items():
                busy[name].append(child.seconds())
    for child in sides.values():
        child.stop()
    mine, other = busy["ours"], busy["onnxruntime"]
    ratio = statistics.median(t / o for o, t in zip(mine, other, strict=True))
    note = f"MiniLM shape, 20 passes of 8 x 32; quiet: {quiet['ours']:.3g} s and {quiet['onnxruntime']:.3g} s"
    return [Row("busy machine, encoder, onnxruntime", *map(statistics.median, (mine, other)), "s", ratio, note)]


ENCODE = """
import sys, time, numpy as np
{make}
run(); run()
print("ready", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    for _ in range(20): run()
    print(time.perf_counter() - start, flush=True)
"""
ENCODE_OURS = ENCODE.format(
    make="""
import plainformer as pf
import torch
model = pf.load_model(sys.argv[1])
ids = torch.randint(5, 30000, (8, 32))
def run():
    with torch.inference_mode(): model(ids)
"""
)
ENCODE_ONNX = ENCODE.format(
    make="""
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", providers=["CPUExecutionProvider"])
ids = np.random.default_rng(0).integers(5, 30000, (8, 32))
def run(): session.run(None, {"ids": ids})
"""
)


class _Child:
    """A process that runs a piece of code whenever it is asked, and says how long it took."""

    def __init__(self, code: str, argument: str) -> None:
        command = [sys.executable, "-c", code, argument]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def seconds(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._read())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def bench_shares(folder: Path) -> list[Row | Missing]:
    """One core against one thread, and two of our own processes against one alone; both sides are ours."""
    reference_model(SHAPE, folder)
    job = {"ids": _ids(1, 16), "new": NEW, "beams": 1}
    rows: list[Row | Missing] = []
    alone = Engine("plainformer", folder, job)
    one = statistics.median(alone.seconds() for _ in range(ROUNDS))
    other = Engine("plainformer", folder, job)
    together = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for engine in (alone, other):
            engine.ask()
        for engine in (alone, other):
            engine.answer()
        together.append((time.perf_counter() - start) / 2)
    rows.append(Row("two of our own at once against one alone, a run", statistics.median(together), one, "s",
                    one / statistics.median(together), "time for each, as if they took turns"))  # fmt: skip
    other.stop()
    alone.stop()
    with environment(OMP_NUM_THREADS="1"):
        single = Engine("plainformer", folder, job)
    thread = statistics.median(single.seconds() for _ in range(ROUNDS))
    single.stop()
    with one_core() as how:
        limited = Engine("plainformer", folder, job)
        limit = statistics.median(limited.seconds() for _ in range(ROUNDS))
        limited.stop()
    rows.append(Row(f"one core ({how}) against one thread", limit, thread, "s", thread / limit, "both sides are ours"))
    return rows


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Within, these variables are set."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _cpu_group() -> str:
    """Return the path of the control group that shares out this process's time; "/" where there is none."""
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return path
    return "/"


@contextmanager
def one_core() -> Iterator[str]:
    """Within, started processes have one core's worth of time: a group's quota where this may be set, else they are bound."""
    mine = Path("/sys/fs/cgroup/cpu") / _cpu_group().lstrip("/")  # version 1
    group = mine / "plainformer-bench"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("100000")
        (group / "tasks").write_text(str(os.getpid()))
    except OSError:
        with suppress(OSError):
            group.rmdir()
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            yield "affinity"
        finally:
            os.sched_setaffinity(0, cores)
        return
    try:
        yield "cgroup quota"
    finally:
        (mine / "tasks").write_text(str(os.getpid()))
        with suppress(OSError):
            group.rmdir()


FIRST = """
import time, sys
import torch, plainformer as pf
start = time.perf_counter()
model = pf.load_model(sys.argv[1])
loaded = time.perf_counter()
pf.generate(model, torch.arange(5, 21)[None], max_new_tokens=1, eos_ids=())
print(loaded - start, time.perf_counter() - loaded)
"""


def bench_first_answer(folder: Path) -> list[Row | Missing]:
    """With nothing compiled yet: ours as it is, and as it waits for its kernels."""
    reference_model(SHAPE, folder)
    found: dict[str, list[list[float]]] = {"beside": [], "wait": []}
    for _ in range(3):
        for way in found:
            with tempfile.TemporaryDirectory() as cache:
                variables = {**os.environ, "NUMBA_CACHE_DIR": cache, "PLAINFORMER_KERNELS": way}
                said = subprocess.run(
                    [sys.executable, "-c", FIRST, str(folder)],
                    env=variables,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found[way].append([float(word) for word in said.stdout.split()])
    (load_ours, ours), (load_wait, waited) = (
        [statistics.median(column) for column in zip(*found[way], strict=True)] for way in found
    )
    note = f"fresh kernel cache; load {load_ours:.2f} s, and {load_wait:.2f} s when kernels are waited for: both sides are ours"
    return [Row("first token after load, SmolLM2 shape", ours, waited, "s", waited / ours, note)]
