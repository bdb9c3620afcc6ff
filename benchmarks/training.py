"""Training beside the reference's Trainer and a bare loop: real tokens a second (padding not counted), and peak memory.

Each side runs in a process of its own, with equal dropout, data and model shape; the Trainer with the batch size and the
sampling that suit it best. What is timed is from the first step to the last: reading, tokenising and saving are not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import Missing, Row, in_process, paired_processes, reference_model
from task_engines import make_folder, sentences

COUNT = 640  # sentences to fine-tune on
BATCH = 32
BATCHES = (8, 16, 32, 64)  # that the Trainer is tried with
LENGTH = 128  # of a row of masked language modelling

OURS = r"""
import json, sys, time, resource
from pathlib import Path
import plainformer as pf
config = json.loads(sys.argv[1])
began = ended = None
tokens = 0
def heard(event):
    global began, ended, tokens
    if event.kind == "started":
        began = time.perf_counter()
    if event.kind == "learnt":
        ended, tokens = time.perf_counter(), event.values["tokens"]
pf.train(config, on_event=heard)
print(tokens / (ended - began), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

THEIRS = r"""
import json, sys, time, resource, tempfile
import torch, transformers
from pathlib import Path
job = json.loads(sys.argv[1])
transformers.set_seed(0)
model = getattr(transformers, job["class"]).from_pretrained(job["model"])
tokenizer = transformers.AutoTokenizer.from_pretrained(job["tokenizer"])
rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
if job["kind"] == "classification":
    data = [{**tokenizer(row["text"], truncation=True), "labels": row["label"]} for row in rows]
    collate = transformers.DataCollatorWithPadding(tokenizer)
else:  # run_mlm.py's and run_clm.py's way: all texts in a row, cut into equal parts
    ids = [token for row in rows for token in tokenizer(row["text"]).input_ids]
    length = job["length"]
    data = [{"input_ids": ids[at : at + length]} for at in range(0, len(ids) - length + 1, length)]
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=job["kind"] == "masked")
tokens = sum(len(row["input_ids"]) for row in data)
class Clock(transformers.TrainerCallback):
    def on_train_begin(self, *args, **more):
        self.began = time.perf_counter()
    def on_step_end(self, *args, **more):
        self.ended = time.perf_counter()
clock = Clock()
arguments = transformers.TrainingArguments(
    tempfile.mkdtemp(), per_device_train_batch_size=job["batch"], num_train_epochs=1, max_steps=job.get("steps", -1),
    save_strategy="no", report_to=[], learning_rate=1e-4, train_sampling_strategy=job["sampling"], disable_tqdm=True,
    use_cpu=True, logging_steps=1000,
)
transformers.Trainer(model, arguments, train_dataset=data, data_collator=collate, callbacks=[clock]).train()
if job.get("steps"):
    tokens = job["steps"] * job["batch"] * job["length"]
print(tokens / (clock.ended - clock.began), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

# What one writes by hand, with our model and batches that are there already: how much time the loop itself takes.
BARE = r"""
import json, sys, time, resource
import torch
import torch.nn.functional as F
import plainformer as pf
job = json.loads(sys.argv[1])
torch.manual_seed(0)
model = pf.load_model(job["model"], purpose="train")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
draw = torch.Generator().manual_seed(0)
batches = [torch.randint(5, 50000, (job["batch"], job["length"]), generator=draw) for _ in range(job["steps"])]
began = time.perf_counter()
for ids in batches:
    logits = model(ids).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
seconds = time.perf_counter() - began
print(job["steps"] * job["batch"] * job["length"] / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def bench_training(folder: Path) -> list[Row | Missing]:
    """Fine-tuning and masked language modelling of MiniLM's shape, causal language modelling of GPT-2's."""
    rows = folder / "rows.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    texts = sentences()[:COUNT]
    rows.write_text("".join(json.dumps({"text": text, "label": n % 3}) + "\n" for n, text in enumerate(texts)))
    long = folder / "long.jsonl"
    text = " ".join(sentences())
    long.write_text("".join(json.dumps({"text": text[at : at + 40000]}) + "\n" for at in range(0, len(text), 40000)))
    return [*_fine_tuning(folder, rows), *_masked(folder, long), *_causal(folder, long)]


def _fine_tuning(folder: Path, rows: Path) -> list[Row | Missing]:
    make_folder(folder / "minilm", "text-classification")
    theirs = {
        "class": "AutoModelForSequenceClassification",
        "kind": "classification",
        "model": str(folder / "minilm"),
        "tokenizer": str(folder / "minilm"),
        "rows": str(rows),
    }
    ours = _config("text-classification", folder, folder / "minilm", rows, batches={"size": BATCH})
    return _versus("fine-tuning, MiniLM shape", ours, theirs)


def _masked(folder: Path, rows: Path) -> list[Row | Missing]:
    import transformers

    import plainformer as pf

    place = folder / "masked"
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    transformers.BertForMaskedLM(config).save_pretrained(place)
    pf.load_tokenizer("all-minilm-l6-v2").save(place)
    theirs = {
        "class": "AutoModelForMaskedLM",
        "kind": "masked",
        "model": str(place),
        "tokenizer": str(place),
        "rows": str(rows),
        "length": LENGTH,
    }
    ours = _config("masked-lm", folder, place, rows, batches={"size": 8})
    ours["data"]["max_length"] = LENGTH  # long texts become windows of that many tokens
    return _versus(f"masked language modelling, MiniLM shape, rows of {LENGTH}", ours, theirs, batches=(4, 8, 16))


def _causal(folder: Path, rows: Path) -> list[Row | Missing]:
    """Equal batches of full rows: 4 x 256 tokens; and a bare loop beside ours."""
    import plainformer as pf

    place, steps, batch, length = folder / "gpt2", 8, 4, 256
    reference_model("gpt2-small", place)
    pf.load_tokenizer("smollm2-135m-instruct").save(place)
    job = {"model": str(place), "steps": steps, "batch": batch, "length": length}
    theirs = {
        **job,
        "class": "GPT2LMHeadModel",
        "kind": "causal",
        "tokenizer": str(place),
        "rows": str(rows),
        "sampling": "random",
    }
    ours = _config(
        "causal-lm", folder, place, rows, batches={"size": batch, "row_length": length}, length={"steps": steps}
    )
    what = f"causal language modelling, GPT-2 shape, {batch} x {length}"
    found: list[Row | Missing] = []
    for name, code, other in (("Trainer", THEIRS, theirs), ("a bare loop", BARE, job)):
        speed, memory = _pair(ours, code, other)
        found += [
            Row(f"{what}, {name}", speed.ours, speed.theirs, "tokens/s", 1 / speed.ratio),
            Row(f"its peak memory, {name}", memory.ours, memory.theirs, "MB", memory.ratio),
        ]
    return found


def _config(objective: str, folder: Path, model: Path, rows: Path, **sections: Any) -> dict[str, Any]:
    return {
        "objective": objective,
        "folder": str(folder / f"run-{objective}"),
        "model": {"ref": str(model)},
        "data": {"train": {"path": str(rows)}, "cache": str(folder / "cache")},
        "optimizer": {"learning_rate": 1e-4},
        "length": {"epochs": 1},
        "log_every": 1000,
        "checkpoints": {"every": 10**6},  # the Trainer saves none either
        **sections,
    }


def _versus(
    what: str, ours: dict[str, Any], theirs: dict[str, Any], batches: tuple[int, ...] = BATCHES
) -> list[Row | Missing]:
    """The Trainer as it does best, once each; then both sides in turn."""
    tried = []
    for sampling in ("random", "group_by_length") if theirs["kind"] == "classification" else ("random",):
        for batch in batches:
            way = {"batch": batch, "sampling": sampling}
            speed = float(in_process(THEIRS, json.dumps({**theirs, **way})).split()[0])
            tried.append((speed, way))
    best = max(tried, key=lambda one: one[0])[1]
    note = ", ".join(f"{way['sampling']} {way['batch']}: {speed:.0f}" for speed, way in tried)
    speed, memory = _pair(ours, THEIRS, {**theirs, **best})
    return [
        Row(f"{what}, Trainer", speed.ours, speed.theirs, "tokens/s", 1 / speed.ratio, f"Trainer by batch, {note}"),
        Row("its peak memory", memory.ours, memory.theirs, "MB", memory.ratio),
    ]


def _pair(ours: dict[str, Any], code: str, theirs: dict[str, Any]) -> list[Row]:
    """Both sides in turn; every run of ours begins anew."""
    begins = "import shutil, sys, json; shutil.rmtree(json.loads(sys.argv[1])['folder'], ignore_errors=True)\n"
    arguments = (json.dumps(ours), json.dumps(theirs))
    mine = begins + OURS
    other = code.replace("sys.argv[1]", "sys.argv[2]")
    return paired_processes("", mine, other, *arguments, rounds=3)
