"""How much of the library's speed the serving engine keeps: `python benchmarks/serving.py [SECONDS]`.

Both sides write the same tokens with the same model (SmolLM2, Q4_1 as published) from prompts of 32 tokens: the library in one
call for all of them, the engine from as many requests. In turn, medians of the rounds' ratios.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PLAINFORMER_KERNELS", "wait")  # what is measured is what comes after they are compiled

NEW = 64
TEXT = (
    "The harbour was quiet before sunrise, and the boats lay close together under a thin fog. An old man mended a net on the "
    "quay while two children counted gulls. Far out a bell rang, slowly, as if somebody had forgotten to stop it. "
)


def prompts(task: Any, count: int, length: int) -> list[str]:
    """Return texts of as many tokens, each with another beginning."""
    ids = task.tokenizer.encode(TEXT * (1 + length // 20)).input_ids
    return [f"{place} " + task.tokenizer.decode(ids[place : place + length - 2]) for place in range(count)]


def rounds(sides: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Time each side in turn, in alternating order, for some seconds, after a run that does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    end, number = time.perf_counter() + seconds, 0
    while number < 3 or time.perf_counter() < end:
        order = list(sides) if number % 2 else list(reversed(sides))
        for name in order:
            start = time.perf_counter()
            sides[name]()
            found[name].append(time.perf_counter() - start)
        number += 1
    return found


def bench_rows(task: Any, engine: Any, rows: int, seconds: float) -> str:
    """Return a line of the table: tokens a second of both, and their ratio."""
    texts, options = prompts(task, rows, 32), {"max_new_tokens": NEW, "eos_ids": []}

    def library() -> Any:
        return task(texts, **options)

    def served() -> Any:
        requests = [engine.generate("smol", text, options) for text in texts]
        return [request.result(60).result for request in requests]

    found = rounds({"engine": served, "library": library}, seconds)
    ratio = statistics.median(b / a for a, b in zip(found["engine"], found["library"], strict=True))
    ours, theirs = (rows * NEW / statistics.median(found[name]) for name in ("engine", "library"))
    what = f"{rows} rows of {NEW} tokens, engine beside the library's own batch"
    return f"| {what} | {ours:.0f} tokens/s | {theirs:.0f} tokens/s | {ratio:.2f}x |"


def main() -> None:
    import plainformer as pf

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 15.0
    task = pf.load("smollm2-135m-instruct")
    with pf.Engine({"smol": task}, pf.EngineOptions(prefix_cache="off")) as engine:
        engine.warm()
        for rows in (1, 8):
            print(bench_rows(task, engine, rows, seconds), flush=True)


if __name__ == "__main__":
    main()
