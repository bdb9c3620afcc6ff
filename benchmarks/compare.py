"""This checkout beside another one: is anything slower than it was?

    python benchmarks/compare.py BASE_SRC [NAME...] [--rounds N]

BASE_SRC is the other checkout's src folder, for example of `git worktree add /tmp/base main`. Names: of ROWS; default all.

Each side of a row runs in processes of its own, which take turns in the same sitting (A B, B A, ...). A row gives both medians,
the median of the pairs' ratios (above 1: this checkout is faster, or needs less memory), and the middle half of those ratios.
It is "worse" where even the upper end of that half is below 1, "better" where the lower end is above it, else within the noise.
Only public names are used, so the other checkout may be older.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from common import reference_model
from generation import NEW, SHAPES, DidNotStart, Engine, _ids
from run import LOAD_OURS, MEMORY, STEADY, machine
from task_engines import LABELS, make_folder
from tasks import STREAM

SOURCE = Path(__file__).parent.parent / "src"
SENTENCES, STREAMED = 400, "20000"
SIZES = ((1, 16), (8, 32), (32, 64), (8, 256))
IMPORT = "import time; s = time.perf_counter(); import plainformer; print(time.perf_counter() - s)"
HELP = """
import contextlib, io, time
s = time.perf_counter()
from plainformer.cli.main import run_app
with contextlib.redirect_stdout(io.StringIO()):
    run_app(["--help"])
print(time.perf_counter() - s)
"""


@dataclass(frozen=True)
class Measure:
    """One line: its name, and a function that gives one number of a side; `stop` ends what it has started."""

    what: str
    unit: str
    start: Callable[[Path], Callable[[], float]]
    stop: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Line:
    """What came out."""

    what: str
    unit: str
    base: list[float]
    ours: list[float]

    def markdown(self) -> str:
        ratios = sorted(b / o for b, o in zip(self.base, self.ours, strict=True))
        low, high = _quartiles(ratios)
        verdict = "worse" if high < 1 else "better" if low > 1 else "within the noise"
        verdict = verdict if len(ratios) >= 3 else "too few pairs to say"
        values = " | ".join(f"{statistics.median(side):.4g} {self.unit}" for side in (self.base, self.ours))
        return (
            f"| {self.what} | {values} | **{statistics.median(ratios):.2f}x** | {low:.2f} to {high:.2f} | {verdict} |"
        )


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=4, method="inclusive")
    return cuts[0], cuts[-1]


# ---- rows: a name → its lines, made in a folder that all rows share


def fresh(what: str, code: str, *arguments: str, unit: str = "s", column: int = 0) -> Measure:
    """Code in a fresh process each time; the number is the given one of those that it prints."""

    def start(source: Path) -> Callable[[], float]:
        def once() -> float:
            environment = {**os.environ, **(STEADY if unit == "MB" else {}), "PYTHONPATH": str(source)}
            command = [sys.executable, "-c", code, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise DidNotStart((done.stderr.strip().splitlines() or ["no message"])[-1][:200])
            return float(done.stdout.split()[column - len(done.stdout.split())])

        once()  # fills the disk cache, and compiles what is compiled once a machine
        return once

    return Measure(what, unit, start)


def warm(what: str, folder: Path, job: dict[str, Any]) -> Measure:
    """Seconds of a run in a process that has loaded the model and run it before."""
    engines: list[Engine] = []

    def start(source: Path) -> Callable[[], float]:
        engines.append(Engine("plainformer", folder, job, source))
        return engines[-1].seconds

    def stop() -> None:
        for engine in engines:
            engine.stop()

    return Measure(what, "s", start, stop)


def model(name: str, shared: Path) -> Path:
    """A random model in a published shape, made once."""
    if not (shared / name / "config.json").exists():
        reference_model(name, shared / name)
    return shared / name


def _start(shared: Path) -> Iterator[Measure]:
    yield fresh("import", IMPORT)
    yield fresh("--help", HELP)


def _load(shared: Path) -> Iterator[Measure]:
    folder = str(model("smollm2-135m", shared))
    yield fresh("load and first answer, SmolLM2 shape", LOAD_OURS, folder, column=0)
    yield fresh("its peak memory", LOAD_OURS, folder, unit="MB", column=1)


def _generate(what: str, rows: int, beams: int, **more: Any) -> Callable[[Path], Iterator[Measure]]:
    def lines(shared: Path) -> Iterator[Measure]:
        for shape in SHAPES:
            job = {"ids": _ids(rows, 16), "new": NEW, "beams": beams, **more}
            yield warm(f"{what}, {shape}", model(shape, shared), job)

    return lines


def _seq2seq(shared: Path) -> Iterator[Measure]:
    for beams, what in ((1, "greedy"), (4, "beam 4")):
        job = {"ids": _ids(1, 128), "new": NEW, "beams": beams}
        yield warm(f"{what}, BART-base shape", model("bart-base", shared), job)


def _first_token(shared: Path) -> Iterator[Measure]:
    for shape in SHAPES:
        job = {"ids": _ids(1, 1000), "new": 1, "beams": 1}
        yield warm(f"first token after 1,000, {shape}", model(shape, shared), job)


def _prefill(shared: Path) -> Iterator[Measure]:
    for shape in SHAPES:
        for length in (64, 512):
            job = {"does": "prefill", "ids": _ids(1, length)}
            yield warm(f"prefill of {length} tokens, {shape}", model(shape, shared), job)


def _encode(shared: Path) -> Iterator[Measure]:
    for batch, length in SIZES:
        ids = [[min(token, 30000) for token in row] for row in _ids(batch, length)]
        mask = [[1] * length for _ in ids]
        if batch > 1:
            mask[-1][length // 2 :] = [0] * (length - length // 2)
        job = {"does": "encode", "ids": ids, "mask": mask}
        yield warm(f"encoder, MiniLM shape, {batch} x {length}", model("minilm-l6", shared), job)


def _tasks(shared: Path) -> Iterator[Measure]:
    for task in LABELS:
        if not (shared / task).exists():
            make_folder(shared / task, task)
        yield warm(f"{task} of {SENTENCES} sentences", shared / task, {"task": task, "batch": 8, "count": SENTENCES})


def _memory(shared: Path) -> Iterator[Measure]:
    code = MEMORY.replace("CHUNK", "128")
    yield fresh("a pass with ffn_chunk_size=128, peak", code, str(model("wide-ffn", shared)), unit="MB")


def _stream(shared: Path) -> Iterator[Measure]:
    import transformers

    import plainformer as pf

    folder = shared / "stream"
    if not folder.exists():
        config = transformers.BertConfig(
            hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=30522
        )
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
        pf.load_tokenizer("all-minilm-l6-v2").save(folder)
    yield fresh(f"memory over {STREAMED} streamed inputs", STREAM, str(folder), STREAMED, unit="MB", column=1)


ROWS: dict[str, Callable[[Path], Iterator[Measure]]] = {
    "start": _start,
    "load": _load,
    "greedy": _generate("greedy, batch 1", 1, 1),
    "batch": _generate("greedy, batch 8", 8, 1),
    "beams": _generate("beam 4", 1, 4),
    "seq2seq": _seq2seq,
    "first-token": _first_token,
    "int8": _generate("int8, batch 1", 1, 1, quantize="int8"),
    "prefill": _prefill,
    "encode": _encode,
    "memory": _memory,
    "tasks": _tasks,
    "stream": _stream,
}
FEWER = {"load": 3, "memory": 3, "stream": 3}  # rows whose numbers hardly move, or take long


def measured(measure: Measure, base: Path, rounds: int) -> Line:
    """Both sides in turn."""
    numbers: dict[str, list[float]] = {"base": [], "ours": []}
    try:
        sides = {"base": measure.start(base), "ours": measure.start(SOURCE)}
        for index in range(rounds):
            for name in sides if index % 2 == 0 else reversed(list(sides)):
                numbers[name].append(sides[name]())
    finally:
        measure.stop()
    return Line(measure.what, measure.unit, numbers["base"], numbers["ours"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the other checkout's src folder")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of each row; default 5")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in ROWS]
    if unknown or not (given.base / "plainformer" / "__init__.py").is_file():
        parser.error(
            f"no rows {unknown}; known: {', '.join(ROWS)}" if unknown else f"{given.base} holds no plainformer"
        )
    began = time.perf_counter()
    print(f"{machine()}\n\n| what | base | ours | ratio | middle half | |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.names or ROWS:
            for measure in ROWS[name](Path(folder)):
                try:
                    rounds = min(given.rounds, FEWER.get(name, given.rounds))
                    print(measured(measure, given.base.resolve(), rounds).markdown(), flush=True)
                except DidNotStart as error:
                    print(f"| {measure.what} | | | | | did not start: {error} |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
