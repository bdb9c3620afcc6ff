"""Generation beside `transformers`, CTranslate2 and llama.cpp: greedy, batches, beams, first token, int8, bandwidth.

Each function gives rows; `run.py` prints them. Every engine gets the same weights, the same prompt and the same number of
new tokens, with 2 threads; a row's ratio is the other engine's time over ours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Row, paired, reference_model
from peers import ctranslate2_model, ctranslate2_run, llama_cpp_run

NEW = 32
SHAPES = {"smollm2-135m": 49152, "gpt2-small": 50257}


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


def _theirs(model: Any, ids: Any, new: int, **options: Any) -> Callable[[], Any]:
    import torch

    def run() -> None:
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                pad_token_id=0, **options,
            )  # fmt: skip

    return run


def bench_greedy(folder: Path) -> list[Row]:
    """Batch 1, against all three; then what share of the memory bus we use, and where the rest goes."""
    import torch

    import plainformer as pf

    rows = []
    for shape, size in SHAPES.items():
        theirs, ours = reference_model(shape, folder / shape), pf.load_model(folder / shape)
        ids = torch.arange(5, 21)[None]

        def run(model: Any = ours, ids: Any = ids) -> None:
            pf.generate(model, ids, max_new_tokens=NEW, eos_ids=())

        what = f"greedy, batch 1, {shape}"
        rows.append(paired(f"{what}, transformers", run, _theirs(theirs, ids, NEW), note=f"{NEW} tokens after 16"))
        if (engine := ctranslate2_model(folder / shape, size)) is not None:
            rows.append(paired(f"{what}, CTranslate2", run, ctranslate2_run(engine, ids.tolist(), NEW)))
        if shape.startswith("smollm2") and (other := llama_cpp_run(folder / shape, ids[0].tolist(), NEW)) is not None:
            rows.append(paired(f"{what}, llama.cpp", run, other))
        rows += _share(ours, shape, rows[-1].ours / NEW)
    return rows


def _share(model: Any, shape: str, seconds: float) -> list[Row]:
    """The time of a token as a share of what reading the weights once would take; and of the products alone."""
    import torch

    from plainformer.model.linear import outermost

    linears = list(outermost(model))
    size = sum(_numbers(linear) for linear in linears) * 4
    fastest = size / bandwidth()
    inputs = [torch.ones(1, 1, _inputs(linear)) for linear in linears]
    times = []
    with torch.inference_mode():
        for _ in range(9):
            start = time.perf_counter()
            for linear, x in zip(linears, inputs, strict=True):
                linear(x)
            times.append(time.perf_counter() - start)
    products = statistics.median(times)
    rest = f"products {products * 1e3:.1f} ms, all else (attention, norms, dispatch, Python) {(seconds - products) * 1e3:.1f} ms"
    return [
        Row(
            f"share of the memory bus, {shape}: a token against one reading of the weights",
            seconds,
            fastest,
            "s",
            fastest / seconds,
            rest,
        )
    ]


def _numbers(linear: Any) -> int:
    parts = linear.parts() if hasattr(linear, "parts") else [linear]
    return sum(part.in_size * part.out_size for part in parts)


def _inputs(linear: Any) -> int:
    return int((linear.parts()[0] if hasattr(linear, "parts") else linear).in_size)


def bench_batches(folder: Path) -> list[Row]:
    """Eight prompts at once, and beams."""
    import torch

    import plainformer as pf

    rows = []
    for shape, size in SHAPES.items():
        theirs, ours = reference_model(shape, folder / shape), pf.load_model(folder / shape)
        engine = ctranslate2_model(folder / shape, size)
        eight = torch.randint(5, 40000, (8, 16), generator=torch.Generator().manual_seed(0))

        def run_eight(model: Any = ours, ids: Any = eight) -> None:
            pf.generate(model, ids, max_new_tokens=NEW, eos_ids=())

        def run_beams(model: Any = ours, ids: Any = eight[:1]) -> None:
            pf.generate(model, ids, max_new_tokens=NEW, eos_ids=(), num_beams=4)

        rows.append(paired(f"greedy, batch 8, {shape}, transformers", run_eight, _theirs(theirs, eight, NEW)))
        rows.append(paired(f"beam 4, {shape}, transformers", run_beams, _theirs(theirs, eight[:1], NEW, num_beams=4)))
        if engine is not None:
            one = eight[:1].tolist()
            rows.append(
                paired(
                    f"greedy, batch 8, {shape}, CTranslate2", run_eight, ctranslate2_run(engine, eight.tolist(), NEW)
                )
            )
            rows.append(paired(f"beam 4, {shape}, CTranslate2", run_beams, ctranslate2_run(engine, one, NEW, beams=4)))
    return rows


def bench_seq2seq(folder: Path) -> list[Row]:
    """BART-base shape: 128 tokens in, 48 out."""
    import torch

    import plainformer as pf

    theirs, ours = reference_model("bart-base", folder), pf.load_model(folder)
    engine = ctranslate2_model(folder, 50265)
    ids = torch.randint(5, 50000, (1, 128), generator=torch.Generator().manual_seed(0))
    rows = []
    for beams in (1, 4):

        def run(beams: int = beams) -> None:
            pf.generate(ours, ids, max_new_tokens=NEW, eos_ids=(), num_beams=beams)

        what = "greedy" if beams == 1 else f"beam {beams}"
        plain = {"forced_eos_token_id": None, "forced_bos_token_id": None, "num_beams": beams}
        rows.append(paired(f"{what}, BART-base shape, transformers", run, _theirs(theirs, ids, NEW, **plain)))
        if engine is not None:
            rows.append(
                paired(
                    f"{what}, BART-base shape, CTranslate2", run, ctranslate2_run(engine, ids.tolist(), NEW, beams, 2)
                )
            )
    return rows


def bench_first_token(folder: Path) -> list[Row]:
    """The first token after a prompt of 1,000."""
    import torch

    import plainformer as pf

    rows = []
    for shape in SHAPES:
        theirs, ours = reference_model(shape, folder / shape), pf.load_model(folder / shape)
        ids = torch.randint(5, 40000, (1, 1000), generator=torch.Generator().manual_seed(0))

        def run(model: Any = ours, ids: Any = ids) -> None:
            pf.generate(model, ids, max_new_tokens=1, eos_ids=())

        rows.append(paired(f"first token after 1,000, {shape}", run, _theirs(theirs, ids, 1), rounds=5))
    return rows


def bench_int8(folder: Path) -> list[Row]:
    """Ours against ours: `quantize="int8"` and fp32."""
    import torch

    import plainformer as pf

    rows = []
    for shape in SHAPES:
        reference_model(shape, folder / shape)
        full, small = pf.load_model(folder / shape), pf.load_model(folder / shape, quantize="int8")
        ids = torch.arange(5, 21)[None]

        def run(model: Any = small, ids: Any = ids) -> None:
            pf.generate(model, ids, max_new_tokens=NEW, eos_ids=())

        def run_full(model: Any = full, ids: Any = ids) -> None:
            pf.generate(model, ids, max_new_tokens=NEW, eos_ids=())

        rows.append(paired(f"int8 against fp32, batch 1, {shape}", run, run_full, note="both sides are ours"))
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
        with torch.inference_mode():
            losses = [
                torch.nn.functional.cross_entropy(task.model(row[None]).logits[0, :-1].float(), row[1:]) for row in ids
            ]
        values.append(math.exp(statistics.fmean(float(loss) for loss in losses)))
    return Row(
        "perplexity, int8 and fp32, SmolLM2 on our docs",
        *values,
        "",
        values[1] / values[0],
        "8,192 tokens in rows of 1,024",
    )
