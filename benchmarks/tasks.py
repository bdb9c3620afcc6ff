"""Whole tasks beside other libraries, each at its best batch; memory over a long stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import Missing, Row, in_process
from generation import DidNotStart, Engine, versus
from peers import missing
from task_engines import COUNT, LABELS, make_folder

BATCHES = (1, 4, 8, 16, 32, 64)
PEERS: dict[str, list[dict[str, Any]]] = {
    "transformers": [{"batch": batch} for batch in BATCHES],
    "onnxruntime": [{"batch": batch, "fused": fused} for fused in (False, True) for batch in BATCHES[1:5]],
    "sentence-transformers": [{"batch": batch} for batch in BATCHES[1:]],
}
OF_TASK = {"feature-extraction": ("sentence-transformers",)}

STREAM = r"""
import re, sys
import plainformer as pf
from pathlib import Path
task = pf.load(sys.argv[1])
def texts(count):
    for number in range(count):
        yield f"number {number} " + "is a good town " * (number % 7)
def memory():
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
marks, first = [], None
for number, result in enumerate(task(texts(int(sys.argv[2]))), 1):
    if number % (int(sys.argv[2]) // 20) == 0:
        marks.append(memory())
print(marks[1], max(marks[1:]))
"""


def bench_tasks(folder: Path) -> list[Row | Missing]:
    """Each peer as it does best on a tenth of the sentences, then all of them."""
    rows: list[Row | Missing] = []
    for task in LABELS:
        place = folder / task
        make_folder(place, task)
        job = {"task": task, "count": COUNT}
        best, note = {}, []
        peers = OF_TASK.get(task, ("transformers", "onnxruntime"))
        for peer in peers:
            times = []
            for way in PEERS[peer] if missing(peer) is None else []:
                try:
                    engine = Engine(peer, place, {**job, **way, "count": COUNT // 10})
                except DidNotStart:
                    break  # `versus` says why
                times.append((engine.seconds(), way))
                engine.stop()
            if times:
                best[peer] = min(times, key=lambda one: one[0])[1]
                each = ", ".join(f"{_words(way)}: {seconds:.2f} s" for seconds, way in times)
                note.append(f"{peer} by batch, {each}")
        said = f"{COUNT} sentences; of {COUNT // 10}: {'; '.join(note)}"
        rows += versus(task, place, job, peers, said, best, rounds=3)
    return rows


def _words(way: dict[str, Any]) -> str:
    return str(way["batch"]) + (" fused" if way.get("fused") else "")


def bench_stream(folder: Path) -> list[Row | Missing]:
    """Resident memory at a twentieth of a stream of 100,000 texts, and the most of it later."""
    import transformers

    import plainformer as pf

    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=30522
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    pf.load_tokenizer("all-minilm-l6-v2").save(folder)
    early, most = map(float, in_process(STREAM, str(folder), "100000").split())
    note = "both sides are ours: the most after 10,000 inputs, and at 10,000"
    return [Row("memory over 100,000 streamed inputs", most, early, "MB", early / most, note)]
