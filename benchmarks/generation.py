"""Generation beside `transformers`, CTranslate2 and llama.cpp: greedy, batches, beams, first token, int8, bandwidth.

Every engine gets the same weights, the same prompt and the same number of new tokens, and runs in a process of its own
(`engine.py`); they take turns in the same run. A row's ratio is the other engine's time over ours, the median of pairs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common import Missing, Row, reference_model
from peers import missing

NEW, ROUNDS = 32, 7
SHAPES = ("smollm2-135m", "gpt2-small")


class DidNotStart(RuntimeError):
    """An engine ended before its first run; the message is the last line that it wrote."""


class Engine:
    """A child process that times a run whenever it is asked; `source` puts another checkout's src folder before this one."""

    def __init__(self, name: str, folder: Path, job: dict[str, Any], source: Path | None = None) -> None:
        command = [sys.executable, str(Path(__file__).with_name("engine.py")), name, str(folder), json.dumps(job)]
        environment = {**os.environ, **({"PYTHONPATH": str(source)} if source is not None else {})}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `stop`)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )
        while (line := self._read()) != "ready":
            if not line:
                self.process.wait()
                self.errors.seek(0)
                said = [line.strip() for line in self.errors if line.strip()] or ["no message"]
                raise DidNotStart(said[-1][:200])

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def seconds(self) -> float:
        self.ask()
        time.sleep(0.05)
        return self.answer()

    def ask(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def answer(self) -> float:
        return float(self._read())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()


def versus(
    what: str,
    folder: Path,
    job: dict[str, Any],
    peers: tuple[str, ...],
    note: str = "",
    own: Mapping[str, dict[str, Any]] = MappingProxyType({}),
    rounds: int = ROUNDS,
) -> list[Row | Missing]:
    """A row for each peer, which says why where there is nothing to measure; `own` is what a peer's job has besides."""
    engines = {"plainformer": Engine("plainformer", folder, {**job, **own.get("plainformer", {})})}
    absent: list[Row | Missing] = []
    for name in peers:
        why = missing(name)
        try:
            if why is None:
                engines[name] = Engine(name, folder, {**job, **own.get(name, {})})
        except DidNotStart as error:
            why = f"did not start: {error}"
        if why is not None:
            absent.append(Missing(f"{what}, {name}", why))
    times: dict[str, list[float]] = {name: [] for name in engines}
    for index in range(rounds):
        for name in engines if index % 2 == 0 else reversed(list(engines)):
            times[name].append(engines[name].seconds())
    for engine in engines.values():
        engine.stop()
    ours = times.pop("plainformer")
    rows = [
        Row(
            f"{what}, {name}",
            statistics.median(ours),
            statistics.median(theirs),
            "s",
            statistics.median(t / o for o, t in zip(ours, theirs, strict=True)),
            note,
        )
        for name, theirs in times.items()
    ]
    return [*rows, *absent]


def _ids(rows: int, length: int) -> list[list[int]]:
    import torch

    return torch.randint(5, 40000, (rows, length), generator=torch.Generator().manual_seed(0)).tolist()


def bench_greedy(folder: Path) -> list[Row | Missing]:
    """Batch 1, against all three; then what share of the memory bus we use, and where the rest goes."""
    rows: list[Row | Missing] = []
    for shape in SHAPES:
        reference_model(shape, folder / shape)
        peers = ("transformers", "CTranslate2", *(("llama.cpp",) if shape.startswith("smollm2") else ()))
        job = {"ids": _ids(1, 16), "new": NEW, "beams": 1}
        found = versus(f"greedy, batch 1, {shape}", folder / shape, job, peers, f"{NEW} tokens after 16")
        ours = [row.ours for row in found if isinstance(row, Row)]
        rows += [*found, *(_share(folder / shape, shape, seconds / NEW) for seconds in ours[:1])]
    return rows


def bandwidth(gigabytes: float = 0.5, rounds: int = 7) -> float:
    """Bytes a second that this machine reads in order with all threads: the sum of a tensor much larger than its caches."""
    import torch

    data = torch.ones(int(gigabytes * 2**30 / 4))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - start)
    return data.numel() * 4 / min(times)


def _share(folder: Path, shape: str, seconds: float) -> Row:
    """The time of a token as a share of what reading the weights once would take; and of the products alone."""
    import torch

    import plainformer as pf
    from plainformer.model.linear import LinearGroup, outermost

    linears = list(outermost(pf.load_model(folder)))
    parts = [linear.parts() if isinstance(linear, LinearGroup) else [linear] for linear in linears]
    size = sum(part.in_size * part.out_size * 4 for group in parts for part in group)
    inputs = [torch.ones(1, 1, group[0].in_size) for group in parts]
    times = []
    with torch.inference_mode():
        for _ in range(15):
            start = time.perf_counter()
            for linear, x in zip(linears, inputs, strict=True):
                linear(x)
            times.append(time.perf_counter() - start)
    products, fastest = statistics.median(times), size / bandwidth()
    rest = (
        f"products {products * 1e3:.1f} ms; attention, norms, dispatch and Python {(seconds - products) * 1e3:.1f} ms"
    )
    return Row(f"a token against one reading of its weights, {shape}", seconds, fastest, "s", fastest / seconds, rest)


def bench_batches(folder: Path) -> list[Row | Missing]:
    """Eight prompts at once, and beams."""
    rows: list[Row | Missing] = []
    for shape in SHAPES:
        reference_model(shape, folder / shape)
        peers = ("transformers", "CTranslate2")
        eight = {"ids": _ids(8, 16), "new": NEW, "beams": 1}
        rows += versus(f"greedy, batch 8, {shape}", folder / shape, eight, peers)
        rows += versus(f"beam 4, {shape}", folder / shape, {"ids": _ids(1, 16), "new": NEW, "beams": 4}, peers)
    return rows


def bench_seq2seq(folder: Path) -> list[Row | Missing]:
    """BART-base shape: 128 tokens in, 32 out."""
    reference_model("bart-base", folder)
    rows: list[Row | Missing] = []
    for beams in (1, 4):
        job = {"ids": _ids(1, 128), "new": NEW, "beams": beams, "start": 2}
        what = "greedy" if beams == 1 else f"beam {beams}"
        rows += versus(f"{what}, BART-base shape", folder, job, ("transformers", "CTranslate2"))
    return rows


def bench_first_token(folder: Path) -> list[Row | Missing]:
    """The first token after a prompt of 1,000."""
    rows: list[Row | Missing] = []
    for shape in SHAPES:
        reference_model(shape, folder / shape)
        job = {"ids": _ids(1, 1000), "new": 1, "beams": 1}
        rows += versus(f"first token after 1,000, {shape}", folder / shape, job, ("transformers",))
    return rows


LENGTHS = (1000, 700, 400, 250, 120, 60, 30, 10)  # of the prompts of one batch


def bench_long_prompts(folder: Path) -> list[Row | Missing]:
    """A prompt of 4,000 tokens; and a batch of unequal ones, which pays for the real tokens alone."""
    shape = "smollm2-135m"
    reference_model(shape, folder)
    job = {"ids": _ids(1, 4000), "new": 1, "beams": 1}
    rows = versus(f"first token after 4,000, {shape}", folder, job, ("transformers", "llama.cpp"), rounds=3)
    longest, ids = max(LENGTHS), _ids(len(LENGTHS), max(LENGTHS))
    mask = [[0] * (longest - length) + [1] * length for length in LENGTHS]
    batch = Engine("plainformer", folder, {"ids": ids, "mask": mask, "does": "answer", "new": 1, "beams": 1})
    alone = [
        Engine("plainformer", folder, {"ids": [row[-length:]], "does": "answer", "new": 1, "beams": 1})
        for row, length in zip(ids, LENGTHS, strict=True)
    ]
    pairs = [(batch.seconds(), sum(engine.seconds() for engine in alone)) for _ in range(3)]
    for engine in (batch, *alone):
        engine.stop()
    ours, apart = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    note = f"{sum(LENGTHS):,} real tokens of {longest * len(LENGTHS):,}; both sides are ours"
    return [*rows, Row("a batch of unequal prompts against each alone", ours, apart, "s", ratio, note)]


def bench_int8(folder: Path) -> list[Row | Missing]:
    """Ours against ours: `quantize="int8"` and fp32."""
    rows: list[Row | Missing] = []
    for shape in SHAPES:
        reference_model(shape, folder / shape)
        job = {"ids": _ids(1, 16), "new": NEW, "beams": 1}
        small = Engine("plainformer", folder / shape, {**job, "quantize": "int8"})
        full = Engine("plainformer", folder / shape, job)
        pairs = [(small.seconds(), full.seconds()) for _ in range(ROUNDS)]
        small.stop()
        full.stop()
        mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(t / o for o, t in pairs)
        rows.append(Row(f"int8 against fp32, batch 1, {shape}", mine, other, "s", ratio, "both sides are ours"))
    return [*rows, _perplexity()]


def _perplexity() -> Row:
    """Perplexity of SmolLM2 (the real one) on this project's own English documents, int8 and fp32."""
    import math

    import torch

    import plainformer as pf

    root = Path(__file__).parent.parent
    text = "\n".join(path.read_text() for path in sorted(root.glob("docs/**/*.md")))
    values = []
    for quantize in ("int8", None):
        task = pf.load("smollm2-135m-instruct", quantize=quantize)
        ids = torch.tensor(task.tokenizer.encode(text, max_length=10**7).input_ids[:8192]).view(-1, 1024)
        losses = []
        with torch.inference_mode():
            for row in ids:
                logits = task.model(row[None]).logits[0, :-1].float()
                losses.append(float(torch.nn.functional.cross_entropy(logits, row[1:])))
        values.append(math.exp(statistics.fmean(losses)))
    note = "8,192 tokens in rows of 1,024"
    return Row("perplexity, int8 and fp32, SmolLM2 on our docs", *values, "", values[1] / values[0], note)
