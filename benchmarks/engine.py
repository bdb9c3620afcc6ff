"""One engine in a process of its own: `python engine.py ENGINE FOLDER JSON`, then a line of stdin for each timed run.

Engines in one process would disturb each other: their threads go on waiting actively on the same cores after a run, which
made ours 1.6 times as slow as it is alone. Prints "ready" after two warm runs, then seconds a run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("PLAINFORMER_KERNELS", "wait")  # what is measured is what comes after they are compiled
sys.path.insert(0, str(Path(__file__).parent))


def make_plainformer(folder: str, job: dict[str, Any]) -> Callable[[], Any]:
    """Through public names alone: `compare.py` runs it on older checkouts, too. `job["does"]` is generate if absent."""
    import plainformer as pf  # before torch, whose threads then wait less actively

    # isort: split
    import torch

    model, ids = pf.load_model(folder, quantize=job.get("quantize")), torch.tensor(job["ids"])
    mask = torch.tensor(job["mask"]) if "mask" in job else None

    @torch.inference_mode()
    def prefill() -> None:
        model(ids, cache=pf.KeyValueCache(model.config, ids.size(0), ids.size(1)), logits_to_keep=1)

    def answer() -> None:
        pf.generate(model, ids, mask, max_new_tokens=1, eos_ids=())

    @torch.inference_mode()
    def encode() -> None:
        model(ids, mask)

    def generate() -> None:
        pf.generate(model, ids, max_new_tokens=job["new"], eos_ids=(), num_beams=job["beams"])

    return {"prefill": prefill, "encode": encode, "answer": answer, "generate": generate}[job.get("does", "generate")]


def make_transformers(folder: str, job: dict[str, Any]) -> Callable[[], Any]:
    import torch
    import transformers

    both = json.loads((Path(folder) / "config.json").read_text()).get("is_encoder_decoder")
    auto = transformers.AutoModelForSeq2SeqLM if both else transformers.AutoModelForCausalLM
    model, ids = auto.from_pretrained(folder, dtype=torch.float32).eval(), torch.tensor(job["ids"])
    model.generation_config.forced_bos_token_id = model.generation_config.forced_eos_token_id = None
    options = dict(
        max_new_tokens=job["new"], min_new_tokens=job["new"], do_sample=False, pad_token_id=0, num_beams=job["beams"]
    )

    def run() -> None:
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    return run


def make_ctranslate2(folder: str, job: dict[str, Any]) -> Callable[[], Any]:
    from peers import ctranslate2_model, ctranslate2_run

    return ctranslate2_run(ctranslate2_model(Path(folder)), job["ids"], job["new"], job["beams"], job.get("start"))


def make_llama_cpp(folder: str, job: dict[str, Any]) -> Callable[[], Any]:
    from peers import llama_cpp_run

    return llama_cpp_run(Path(folder), job["ids"][0], job["new"])


MAKE = {
    "plainformer": make_plainformer,
    "transformers": make_transformers,
    "CTranslate2": make_ctranslate2,
    "llama.cpp": make_llama_cpp,
}


def main() -> None:
    engine, folder, job = sys.argv[1:]
    make = MAKE
    if "task" in json.loads(job):
        import quantised
        import speech
        import task_engines

        known = {"quantised": quantised.MAKE, "whisper": speech.MAKE, "ctc": speech.MAKE}
        make = known.get(json.loads(job)["task"], task_engines.MAKE)
    run = make[engine](folder, json.loads(job))
    run()
    if make is MAKE:
        run()  # tasks of thousands of texts are warm after one
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
