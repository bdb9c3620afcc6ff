"""Whole tasks, from texts to results, by each engine: ours, the reference's pipeline, onnxruntime, sentence-transformers.

onnxruntime has no tasks, so it gets the best that we know how to do around it: the same `tokenizers` library, batches of
texts of like length, softmax in numpy; of NER not even the entities are made, only each token's best label.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

COUNT = 2000
LABELS = {
    "text-classification": ["negative", "neutral", "positive"],
    "token-classification": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"],
    "feature-extraction": [],
}
SENTENCE_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
    "1_Pooling/config.json": {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True},
}


def sentences(count: int = COUNT) -> list[str]:
    """Real English of mixed length that every Python brings: its own reference manual; `count` of them, evenly."""
    from pydoc_data.topics import topics

    parts = re.split(r"(?<=[.:!?])\s+(?=[A-Z])|\n\n+", "\n\n".join(topics[name] for name in sorted(topics)))
    texts = [" ".join(part.split()) for part in parts]
    return [text for text in texts if 10 < len(text) < 1500][:COUNT][:: COUNT // count]


def make_folder(folder: Path, task: str) -> None:
    """A checkpoint of MiniLM's shape with random weights and its real tokenizer; of NER some 15 % of tokens are entities."""
    import torch
    import transformers

    import plainformer as pf

    torch.manual_seed(0)
    heads = {
        "feature-extraction": "BertModel",
        "text-classification": "BertForSequenceClassification",
        "token-classification": "BertForTokenClassification",
    }
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        id2label=dict(enumerate(LABELS[task])), attn_implementation="sdpa",
    )  # fmt: skip
    model = getattr(transformers, heads[task])(config).eval()
    tokenizer = pf.load_tokenizer("all-minilm-l6-v2")
    if task == "token-classification":
        with torch.no_grad():
            model.classifier.weight.normal_(std=0.2)
            batch = tokenizer(sentences()[:32])
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            lead = (logits[..., 1:].amax(-1) - logits[..., 0])[batch.attention_mask.bool()]
            model.classifier.bias[0] = lead.quantile(0.85)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    for name, content in SENTENCE_FILES.items() if task == "feature-extraction" else ():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def make_plainformer(folder: str, job: dict[str, Any]) -> Callable[[], Any]:
    import plainformer as pf

    task, texts = pf.load(folder), sentences(job["count"])
    return lambda: task(texts)  # batches as we choose them


def make_pipeline(folder: str, job: dict[str, Any]) -> Callable[[], Any]:
    import transformers

    options = {"aggregation_strategy": "first"} if job["task"] == "token-classification" else {}
    run, texts = transformers.pipeline(job["task"], folder, device="cpu", **options), sentences(job["count"])
    return lambda: run(texts, batch_size=job["batch"])


def make_sentence_transformers(folder: str, job: dict[str, Any]) -> Callable[[], Any]:
    import sentence_transformers

    model, texts = sentence_transformers.SentenceTransformer(folder, device="cpu"), sentences(job["count"])
    return lambda: model.encode(texts, batch_size=job["batch"], show_progress_bar=False)


def make_onnxruntime(folder: str, job: dict[str, Any]) -> Callable[[], Any]:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(
        str(onnx_file(Path(folder), job)), options, providers=["CPUExecutionProvider"]
    )
    names = {value.name for value in session.get_inputs()}
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.enable_padding()
    texts, size = sentences(job["count"]), job["batch"]

    def run() -> list[Any]:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        results: list[Any] = [None] * len(texts)
        for start in range(0, len(texts), size):
            places = order[start : start + size]
            rows = tokenizer.encode_batch([texts[i] for i in places])
            feeds = {
                "input_ids": np.array([row.ids for row in rows]),
                "attention_mask": np.array([row.attention_mask for row in rows]),
                "token_type_ids": np.array([row.type_ids for row in rows]),
            }
            (logits,) = session.run(None, {name: value for name, value in feeds.items() if name in names})
            shares = np.exp(logits - logits.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            for place, best in zip(places, shares.argmax(-1), strict=True):
                results[place] = best.tolist()
        return results

    return run


def onnx_file(folder: Path, job: dict[str, Any]) -> Path:
    """The model as ONNX, with onnxruntime's own fusions for BERT (`job["fused"]`), or as exported."""
    import torch
    import transformers

    raw, fused = folder / "model.onnx", folder / "fused.onnx"
    if not raw.exists():
        auto = {
            "text-classification": transformers.AutoModelForSequenceClassification,
            "token-classification": transformers.AutoModelForTokenClassification,
        }[job["task"]]
        model = auto.from_pretrained(folder, attn_implementation="eager").eval()
        ids = torch.ones(2, 16, dtype=torch.long)
        names = ["input_ids", "attention_mask", "token_type_ids"]
        free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        torch.onnx.export(
            model, (), raw, kwargs=dict.fromkeys(names, ids), dynamo=True, input_names=names, output_names=["logits"],
            dynamic_shapes=dict.fromkeys(names, free), external_data=False,
        )  # fmt: skip
    if job.get("fused") and not fused.exists():
        from onnxruntime.transformers import optimizer

        made = optimizer.optimize_model(str(raw), model_type="bert", num_heads=12, hidden_size=384)
        print(json.dumps(made.get_fused_operator_statistics()))
        made.save_model_to_file(str(fused))
    return fused if job.get("fused") else raw


MAKE = {
    "plainformer": make_plainformer,
    "transformers": make_pipeline,
    "onnxruntime": make_onnxruntime,
    "sentence-transformers": make_sentence_transformers,
}
