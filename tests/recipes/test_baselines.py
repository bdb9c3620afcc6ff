"""Answers that need no model are kept as an evaluation, which `compare` sets beside a model's on the same rows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import baselines
import pytest

import plainformer as pf
from plainformer.evaluate.kept import Kept
from tests.support.runs import classified, texts, write_rows

Tiny = Callable[[str], Path]


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PLAINFORMER_STATE", str(tmp_path / "state"))


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["baselines.py", *map(str, words)])
    baselines.main()


def test_the_most_frequent_label(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    rows, model = write_rows(tmp_path / "rows.jsonl", classified()), tiny("text-classification")
    call(monkeypatch, "majority", rows, rows, "--keep", tmp_path / "most")
    ours = pf.evaluate(model, rows, output=tmp_path / "model")
    found = pf.compare(f"most={tmp_path / 'most'}", f"model={tmp_path / 'model'}", metrics="accuracy")
    most, other = (system.values["accuracy"].value for system in found.systems)
    labels = [row["label"] for row in classified()]
    assert most == max(map(labels.count, labels)) / len(labels) and other == ours["accuracy"]
    assert found.differences[0].tested.p is not None


def test_the_first_sentence_and_the_source(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    rows = [{"description": f"{text}. And more.", "synopsis": text[:12]} for text in texts(22)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    call(monkeypatch, "lead-1", path, "--keep", tmp_path / "lead", "--no-stems")
    kept = Kept(tmp_path / "lead")
    assert [line["answer"] for line in kept.predictions()] == [row["description"][: -len(" And more.")] for row in rows]
    columns = {"source": "description", "target": "synopsis"}
    pf.evaluate(tiny("text2text"), path, columns=columns, max_new_tokens=3, truncate=True, output=tmp_path / "model")
    found = pf.compare(f"lead-1={tmp_path / 'lead'}", f"model={tmp_path / 'model'}", metrics="rougeL")
    assert found.n == 22 and found.systems[0].values["rougeL"].value > found.systems[1].values["rougeL"].value
