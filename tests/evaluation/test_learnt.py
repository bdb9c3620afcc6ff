"""An evaluation of rows that the model has learnt from says so, by what the run wrote down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plainformer.evaluate.text import Text
from plainformer.evaluation import evaluate
from plainformer.evaluation.learnt import learnt_from
from plainformer.training import train
from tests.support.runs import labelled, run_config, run_data, texts, write_rows

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return train(run_config(folder, "text-classification", tiny("embedding"), length={"steps": 14})).folder


def said(found: object) -> list[str]:
    return [line for line in found.notes() if line.startswith("note: ")]  # type: ignore[attr-defined]


def test_the_rows_of_the_training(run: Path) -> None:
    found = evaluate(run, run.parent / "train.jsonl", output=run.parent / "seen")
    assert said(found) == [
        f"note: the model has learnt from these: all rows are among the rows it was trained on, by {run}"
    ]
    assert found.to_dict()["learnt"] == {"rows": 61, "of": 61, "run": str(run)}
    assert said(evaluate(run, run.parent / "train.jsonl", output=run.parent / "seen")) == said(found)  # kept, and read
    assert said(evaluate(run, side="train")) == said(found)


def test_some_rows_of_them_in_another_spelling_and_by_a_checkpoint(run: Path, tmp_path: Path) -> None:
    fresh = [text for text in texts(80, seed=5) if text not in texts(61)][:30]
    mixed = labelled([*fresh, texts(61)[3].upper(), f"  {texts(61)[4]} "])
    found = evaluate(run / "last", write_rows(tmp_path / "mixed.jsonl", mixed), output=tmp_path / "out")
    assert found.learnt is not None and found.learnt.rows == 2
    assert "2 rows are among the rows it was trained on (6.2%)" in said(found)[0]


def test_nothing_is_said_of_other_rows_or_other_models(run: Path, tiny: Tiny, tmp_path: Path) -> None:
    fresh = labelled([text for text in texts(80, seed=5) if text not in texts(61)])
    assert not said(evaluate(run, write_rows(tmp_path / "fresh.jsonl", fresh), output=tmp_path / "out"))
    keys = np.zeros((3, 2), np.uint64)
    assert learnt_from("all-minilm-l6-v2", keys) is None and learnt_from("\0", keys) is None
    assert learnt_from(str(tiny("embedding")), keys) is None


def test_rows_that_no_step_has_had_are_not_learnt_and_damage_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("objective: x\n")
    keys = np.array([[1, 2], [3, 4], [5, 6]], np.uint64)
    assert learnt_from(str(tmp_path), keys) is None
    lines = [{"index": n, "key": f"{n + 1:016x}{0:016x}", "times": int(n != 2)} for n in range(5)]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"index": 9, "ke')
    assert learnt_from(str(tmp_path), keys) == {"rows": 2, "of": 3, "run": str(tmp_path)}


def test_training_and_evaluation_say_what_the_other_calls_a_metric(tiny: Tiny, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"text": text, "label": text.split()[:2]} for text in texts(40)])
    plain = run_data(tmp_path / "x", "text-classification", tiny("embedding"), length={"steps": 2})
    plain["model"]["problem"] = "multi_label"
    plain["data"] |= {"train": {"path": str(data)}, "validation": {"path": str(data)}, "duplicates": "allow"}
    result = train(plain)
    assert result.best is not None and result.best["metric"] == "f1" and result.evaluated == "f1_micro"
    found = evaluate(result.folder)
    assert "training chose this model by f1, whose counterpart here is f1_micro" in found.notes()
    assert found["f1_micro"] == pytest.approx(result.best["value"])


def test_rouge_of_other_letters_says_that_it_sees_nothing() -> None:
    scorer = Text()
    scorer.row("der schöne Öltanker", "der Öltanker")
    assert scorer.notes() == ()
    assert scorer.row("быстрая лиса", "быстрая лиса")[1] == 0.0
    (note,) = scorer.notes()
    assert "1 of 2 references have mostly others" in note
