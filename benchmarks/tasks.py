"""Whole tasks beside the reference's pipeline (at its best batch size) and onnxruntime, and memory over a long stream."""

from __future__ import annotations

from pathlib import Path

from common import Row, in_process
from generation import Engine, versus
from task_engines import LABELS, make_folder

BATCH = 16
PIPELINE_BATCHES = (1, 8, 16, 32, 64)

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


def bench_tasks(folder: Path) -> list[Row]:
    rows = []
    for task in LABELS:
        place = folder / task
        make_folder(place, task)
        times = {}
        for batch in PIPELINE_BATCHES:
            engine = Engine("transformers", place, {"task": task, "batch": batch})
            times[batch] = engine.seconds()
            engine.stop()
        best = min(times, key=lambda batch: times[batch])
        note = "2,000 sentences; pipeline's seconds by batch size: "
        note += ", ".join(f"{batch}: {seconds:.1f}" for batch, seconds in times.items())
        job = {"task": task, "batch": BATCH}
        rows += versus(task, place, job, ("transformers",), note, {"transformers": {"batch": best}}, rounds=3)
        for fused, what in ((False, "as exported"), (True, "with its BERT fusions")):
            own = {"onnxruntime": {"fused": fused}}
            rows += versus(task, place, job, ("onnxruntime",), f"2,000 sentences; {what}", own, rounds=3)
    return rows


def bench_stream(folder: Path) -> list[Row]:
    """Resident memory at a twentieth of a stream of 100,000 texts, and the most of it later."""
    import transformers

    import plainformer as pf

    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=30522
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    pf.load_tokenizer("all-minilm-l6-v2").save(folder)
    early, most = map(float, in_process(STREAM, str(folder), "100000").split())
    note = "both sides are ours: the most behind 10,000 inputs, and at 10,000"
    return [Row("memory over 100,000 streamed inputs", most, early, "MB", early / most, note)]
