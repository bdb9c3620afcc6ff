"""Measure Plainformer beside `transformers`, CTranslate2, llama.cpp and onnxruntime; write benchmarks/RESULTS.md.

    python benchmarks/run.py [NAME...]

Names: import load greedy batches seq2seq first-token long-prompts int8 quantised busy shares first-answer prefill
encode memory tasks stream speech training.

Both sides are measured in the same run, in turn; only the ratios travel to other machines. A peer that is not installed has
rows that say so. `make bench` installs what it can.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent))

from busy import bench_busy, bench_first_answer, bench_shares
from common import Missing, Row, paired, paired_processes, reference_model
from generation import bench_batches, bench_first_token, bench_greedy, bench_int8, bench_long_prompts, bench_seq2seq
from peers import PACKAGES
from quantised import bench_quantised
from serving_http import bench_serving
from speech import bench_speech
from tasks import bench_stream, bench_tasks
from training import bench_training

HEADER = "| what | ours | theirs | ratio | note |\n|---|---|---|---|---|"
RESULTS = Path(__file__).parent / "RESULTS.md"

LOAD_OURS = """
import sys, time, resource
start = time.perf_counter()
import plainformer as pf
model = pf.load_model(sys.argv[1])
import torch
with torch.inference_mode(): model(torch.arange(1, 9)[None])
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
LOAD_THEIRS = """
import sys, time, resource
start = time.perf_counter()
from transformers import AutoModelForCausalLM
import torch
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
with torch.inference_mode(): model(torch.arange(1, 9)[None])
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def bench_import(_: Path) -> list[Row]:
    code = "import time; s = time.perf_counter(); import {0}; print(time.perf_counter() - s)"
    # The reference's `import` is lazy too; what every user of it needs first is an Auto class.
    auto = "import time; s = time.perf_counter(); from transformers import AutoModel; print(time.perf_counter() - s)"
    rows = paired_processes("import", code.format("plainformer"), code.format("transformers"))
    return [*rows, *paired_processes("import, up to AutoModel", code.format("plainformer"), auto)]


def bench_load(folder: Path) -> list[Row]:
    reference_model("smollm2-135m", folder)
    seconds, memory = paired_processes("load and first answer, SmolLM2 shape", LOAD_OURS, LOAD_THEIRS, str(folder))
    return [seconds, Row("its peak memory", memory.ours, memory.theirs, "MB", memory.ratio)]


def bench_prefill(folder: Path) -> list[Row]:
    import torch

    import plainformer as pf

    rows = []
    for shape in ("smollm2-135m", "gpt2-small"):
        theirs = reference_model(shape, folder / shape)
        ours = pf.load_model(folder / shape)
        for length in (64, 512):
            ids = torch.randint(5, 40000, (1, length), generator=torch.Generator().manual_seed(0))

            def run_ours(model: object = ours, ids: torch.Tensor = ids) -> None:
                with torch.inference_mode():
                    model(ids, cache=pf.KeyValueCache(model.config, 1, ids.size(1)), logits_to_keep=1)

            def run_theirs(model: object = theirs, ids: torch.Tensor = ids) -> None:
                with torch.inference_mode():
                    model(ids, use_cache=True, logits_to_keep=1)

            rows.append(paired(f"prefill of {length} tokens, {shape}", run_ours, run_theirs))
    return rows


def bench_encode(folder: Path) -> list[Row]:
    import torch

    import plainformer as pf

    theirs = reference_model("minilm-l6", folder)
    ours = pf.load_model(folder)
    rows = []
    for batch, length in ((1, 16), (8, 32), (32, 64), (8, 256)):
        ids = torch.randint(5, 30000, (batch, length), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 :] = 0 if batch > 1 else 1

        def run_ours(ids: torch.Tensor = ids, mask: torch.Tensor = mask) -> None:
            with torch.inference_mode():
                ours(ids, mask)

        def run_theirs(ids: torch.Tensor = ids, mask: torch.Tensor = mask) -> None:
            with torch.inference_mode():
                theirs(input_ids=ids, attention_mask=mask)

        row = paired(f"encoder, MiniLM shape, {batch} x {length}", run_ours, run_theirs, rounds=15)
        rows.append(row)
    return rows


MEMORY = r"""
import re, sys, torch, plainformer as pf
from pathlib import Path
model = pf.load_model(sys.argv[1], ffn_chunk_size=CHUNK, prepare=False)
ids = torch.ones(4, 2048, dtype=torch.long)
def memory(field):
    return int(re.search(field + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])
with torch.inference_mode():
    model(ids[:1, :8])
    Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak is the pass's and not the import's
    before = memory("VmRSS")
    model(ids)
print((memory("VmHWM") - before) / 1024)
"""


# Large tensors are mapped, and given back at once: else the peak depends on how the allocator's heap happens to be cut up.
STEADY = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}


def bench_memory(folder: Path) -> list[Row]:
    """Ours against ours: what `ffn_chunk_size` saves where the feed-forward activations are the largest."""
    reference_model("wide-ffn", folder)
    sides = [MEMORY.replace("CHUNK", size) for size in ("128", "0")]
    what = "ffn_chunk_size=128 against 0: peak memory of a pass"
    rows = paired_processes(what, *sides, str(folder), unit="MB", rounds=3, env={**os.environ, **STEADY})
    return [
        Row(r.what, r.ours, r.theirs, r.unit, r.ratio, "8,192 positions, F = 8,192; both sides are ours") for r in rows
    ]


BENCHMARKS: dict[str, Callable[[Path], Sequence[Row | Missing]]] = {
    "import": bench_import,
    "load": bench_load,
    "greedy": bench_greedy,
    "batches": bench_batches,
    "seq2seq": bench_seq2seq,
    "first-token": bench_first_token,
    "long-prompts": bench_long_prompts,
    "int8": bench_int8,
    "quantised": bench_quantised,
    "busy": bench_busy,
    "shares": bench_shares,
    "first-answer": bench_first_answer,
    "prefill": bench_prefill,
    "encode": bench_encode,
    "memory": bench_memory,
    "tasks": bench_tasks,
    "stream": bench_stream,
    "speech": bench_speech,
    "training": bench_training,
    "serving": bench_serving,
}


def instruction_sets() -> str:
    """Those that decide how fast a processor multiplies matrices."""
    flags = set(re.findall(r"[\w.]+", next(iter(re.findall(r"^flags.*", _cpuinfo(), re.MULTILINE)), "")))
    known = {
        "AVX2": {"avx2"},
        "AVX-512": {"avx512f"},
        "VNNI": {"avx512_vnni", "avx_vnni"},
        "BF16": {"avx512_bf16", "amx_bf16"},
        "AMX": {"amx_tile"},
    }
    return ", ".join(f"{name} {'yes' if flags & any_of else 'no'}" for name, any_of in known.items())


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


def machine() -> str:
    import torch

    model = next(iter(re.findall(r"model name\s*: (.*)", _cpuinfo())), platform.processor())
    packages = dict.fromkeys(package for engine in PACKAGES.values() for package in engine.values())
    return (
        f"{model}, {os.cpu_count()} cores, {instruction_sets()} (torch uses {torch.backends.cpu.get_cpu_capability()}), "
        f"{platform.system()}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"{', '.join(f'{package} {_version(package)}' for package in ('plainformer', *packages))}; "
        f"{torch.get_num_threads()} threads, fp32"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    chosen = sys.argv[1:] or list(BENCHMARKS)
    print(f"{machine()}\n\n{HEADER}", flush=True)
    rows: list[Row | Missing] = []
    for name in chosen:
        if name not in BENCHMARKS:
            sys.exit(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
        with tempfile.TemporaryDirectory() as folder:
            for row in BENCHMARKS[name](Path(folder)):
                print(row.markdown(), flush=True)
                rows.append(row)
    if chosen == list(BENCHMARKS):
        lines = [
            "# Benchmark results",
            "",
            f"Machine: {machine()}.",
            "",
            "Made by `make bench`. Each row is measured in one run, both sides in turn; medians. The ratio is how many",
            "times less time or memory Plainformer needs (or how many times more it gives); above 1 is better.",
            "",
            HEADER,
            *(row.markdown() for row in rows),
            "",
        ]
        RESULTS.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
