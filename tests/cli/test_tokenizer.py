"""`plainformer tokenizer train`."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer

from tests.support.cli import Cli, done, refused

LINES = ["the cat sat on the mat", "the dog ran to the cat", "a mat and a dog"] * 5


def test_a_tokenizer_of_two_kinds_of_files(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(LINES), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES), encoding="utf-8")
    out = tmp_path / "made"
    asked = [
        "tokenizer",
        "train",
        str(tmp_path / "a.txt"),
        str(tmp_path / "b.jsonl"),
        "--output",
        str(out),
        "--vocab-size",
        "280",
    ]
    answer = done(cli(*asked))
    assert answer.lines[0] == f"280 tokens of 16 texts (604 characters), in {out}"
    assert len(AutoTokenizer.from_pretrained(out)) == 280
    assert done(cli(*asked, "--json")).json() == [{"folder": str(out), "tokens": 280, "texts": 16, "characters": 604}]


def test_what_cannot_work_is_said(cli: Cli, tmp_path: Path) -> None:
    texts = tmp_path / "a.txt"
    texts.write_text("words and words", encoding="utf-8")
    out = ["--output", str(tmp_path / "made")]
    refused(cli("tokenizer", "train", *out), "at least one PATH")
    refused(cli("tokenizer", "train", str(tmp_path / "none.txt"), *out), "none.txt", "check the path")
    refused(cli("tokenizer", "train", str(texts), "--column", "body", *out), "no 'body'", "'text'", "--column")
    refused(cli("tokenizer", "train", str(texts), "--vocab-size", "20", *out), "--vocab-size 20", "leaves no room")
    refused(cli("tokenizer", "train", str(texts), "--output", str(texts)), "is a file", "give a folder")
    refused(cli("tokenizer", "train", str(texts), "--kind", "bped", *out), "did you mean", "bpe")
    refused(cli("tokenizer", "learn", str(texts), *out), "train")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    refused(cli("tokenizer", "train", str(tmp_path / "empty.txt"), *out), "empty")
    for value, kind in (("5", "an int"), ('["a"]', "a list"), ("null", "None")):
        (tmp_path / "odd.jsonl").write_text(f'{{"text": "words"}}\n{{"text": {value}}}\n', encoding="utf-8")
        refused(
            cli("tokenizer", "train", str(tmp_path / "odd.jsonl"), *out),
            "odd.jsonl line 2",
            f"'text' is {kind}, not text",
        )
