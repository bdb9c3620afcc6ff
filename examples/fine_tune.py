"""Fine-tune MiniLM for named entities or for question answering, in a loop that fits on a page.

    python examples/fine_tune.py ner TRAIN.conll DEV.conll FOLDER       lines of "token<TAB>tag", sentences apart by an empty line
    python examples/fine_tune.py qa  TRAIN.json  DEV.json  FOLDER       SQuAD's format

The checkpoint in FOLDER is one that `plainformer run`, `plainformer entities` and transformers load. docs/how-to-tasks.md makes
both, of the small data of examples/make_data.py; a real model wants real data, in the same formats.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import plainformer as pf

NO_LABEL = -100  # what cross_entropy leaves out
Example = tuple[list[int], list[int], Any]  # ids, token types, labels


def with_head(ref: str, architecture: str, labels: Sequence[str]) -> tuple[pf.Transformer, Any]:
    """The model of a checkpoint with a new head, and its tokenizer."""
    base = pf.load_model(ref, prepare=False)
    raw = {**base.config.source, "architectures": [architecture]}
    if labels:
        raw["id2label"] = {str(number): label for number, label in enumerate(labels)}
    model = pf.initialise(pf.Transformer(pf.config_from_dict(raw)))
    missing = model.load_state_dict(base.state_dict(), strict=False).missing_keys
    print("new:", ", ".join(missing))
    return model, pf.load_tokenizer(ref)


def read_conll(path: Path) -> list[tuple[list[str], list[str]]]:
    sentences = []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines() if "\t" in line]
        rows = [(word.removeprefix("en:"), tag) for word, tag in rows if word.removeprefix("en:").strip()]
        if rows:
            sentences.append(([word for word, _ in rows], [tag for _, tag in rows]))
    return sentences


def entity_examples(tokenizer: Any, path: Path, labels: Sequence[str]) -> list[Example]:
    """Each word's tag is its first token's label."""
    made = []
    for words, tags in read_conll(path):
        starts = {sum(len(w) + 1 for w in words[:i]): labels.index(tag) for i, tag in enumerate(tags)}
        row = tokenizer.encode(" ".join(words), truncate=True, max_length=128)
        marked = zip(row.offsets, row.special, strict=True)
        made.append(
            (
                row.input_ids,
                row.token_type_ids,
                [NO_LABEL if special else starts.get(start, NO_LABEL) for (start, _), special in marked],
            )
        )
    return made


def questions(path: Path) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield question["question"], paragraph["context"], question["answers"]


def span_examples(tokenizer: Any, path: Path) -> list[Example]:
    """Windows over a context with the first and the last token of the answer, or the class token where it is not there."""
    made = []
    for question, context, answers in questions(path):
        start = answers[0]["answer_start"]
        end = start + len(answers[0]["text"])
        for row in tokenizer.encode(question, context, stride=64, window=256).windows():
            places = [i for i, sequence in enumerate(row.sequence_ids) if sequence == 1]
            first = next((i for i in places if row.offsets[i][0] <= start < row.offsets[i][1]), 0)
            last = next((i for i in places if row.offsets[i][0] < end <= row.offsets[i][1]), 0)
            made.append((row.input_ids, row.token_type_ids, [first, last] if first and last else [0, 0]))
    return made


def batches(examples: list[Example], size: int, seed: int) -> list[list[Example]]:
    """In random order, each of examples of like length."""
    draw = random.Random(seed)
    order = sorted(examples, key=lambda e: len(e[0]) + draw.random() * 4)
    made = [order[i : i + size] for i in range(0, len(order), size)]
    draw.shuffle(made)
    return made


def tensors(batch: list[Example]) -> dict[str, Tensor]:
    width = max(len(ids) for ids, _, _ in batch)

    def padded(rows: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([row + [filler] * (width - len(row)) for row in rows])

    return {
        "input_ids": padded([ids for ids, _, _ in batch], 0),
        "token_type_ids": padded([types for _, types, _ in batch], 0),
        "attention_mask": padded([[1] * len(ids) for ids, _, _ in batch], 0),
    }


def loss_of(model: pf.Transformer, batch: list[Example], job: str) -> Tensor:
    inputs = tensors(batch)
    logits = model(**inputs).logits.float()
    if job == "ner":
        labels = torch.full(inputs["input_ids"].shape, NO_LABEL)
        for row, (_, _, own) in enumerate(batch):
            labels[row, : len(own)] = torch.tensor(own)
        return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL)
    logits = logits.masked_fill(inputs["attention_mask"][..., None] == 0, -1e9)
    ends = torch.tensor([own for _, _, own in batch])
    return sum(cross_entropy(logits[..., i], ends[:, i]) for i in range(2)) / 2  # type: ignore[return-value]


def train(model: pf.Transformer, examples: list[Example], job: str, epochs: int, rate: float, size: int) -> None:
    steps = [batch for epoch in range(epochs) for batch in batches(examples, size, epoch)]
    warm = min(100, max(1, len(steps) // 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warm, (len(steps) - n) / len(steps))
    )
    began, mean = time.time(), 0.0
    for number, batch in enumerate(steps, 1):
        loss = loss_of(model, batch, job)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        mean += 0.02 * (float(loss.detach()) - mean) if number > 1 else float(loss.detach())
        if number % 50 == 0 or number == len(steps):
            print(f"step {number}/{len(steps)}  loss {mean:.3f}  {time.time() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["ner", "qa"])
    parser.add_argument("data", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="all-minilm-l6-v2")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--evaluate", action="store_true", help="only measure the checkpoint in FOLDER")
    parser.add_argument("--limit", type=int, help="use only this many examples")
    given = parser.parse_args()
    if given.evaluate:
        return evaluate(given.job, given.folder, given.dev)
    torch.manual_seed(0)
    if given.job == "ner":
        labels = ["O", *sorted({tag for _, tags in read_conll(given.data) for tag in tags} - {"O"})]
        model, tokenizer = with_head(given.base, "BertForTokenClassification", labels)
        examples = entity_examples(tokenizer, given.data, labels)
    else:
        model, tokenizer = with_head(given.base, "BertForQuestionAnswering", [])
        examples = span_examples(tokenizer, given.data)
    train(model, examples[: given.limit], given.job, given.epochs, rate=1e-4, size=32 if given.job == "ner" else 16)
    pf.save(model.eval(), given.folder)
    tokenizer.save(given.folder)
    evaluate(given.job, given.folder, given.dev)


def evaluate(job: str, folder: Path, dev: Path) -> None:
    """Entities by exact span and type, or answers by the official SQuAD arithmetic."""
    task = pf.load(str(folder))
    if job == "qa":
        from plainformer.evaluate import evaluate_squad

        asked = list(questions(dev))
        answers = task([(question, context) for question, context, _ in asked])
        found = {str(number): answer.text for number, answer in enumerate(answers)}
        truth = {str(number): [answer["text"] for answer in right] for number, (_, _, right) in enumerate(asked)}
        print(evaluate_squad(found, truth, version="1.1"))
        return
    right = marked = named = 0
    sentences = read_conll(dev)
    for (words, tags), entities in zip(sentences, task([" ".join(words) for words, _ in sentences]), strict=True):
        truth = spans(words, tags)
        right += len(truth & {(e.start, e.end, e.label) for e in entities})
        marked += len(truth)
        named += len(entities)
    print(f"{len(sentences)} sentences: precision {right / named:.3f}, recall {right / marked:.3f}", end=", ")
    print(f"F1 {2 * right / (named + marked):.3f}")


def spans(words: list[str], tags: list[str]) -> set[tuple[int, int, str]]:
    """The entities of a tagged sentence as characters of its words with blanks between."""
    starts = [sum(len(w) + 1 for w in words[:i]) for i in range(len(words))]
    return {(starts[a], starts[b - 1] + len(words[b - 1]), kind) for a, b, kind in pf.read_tags(tags)}


if __name__ == "__main__":
    main()
