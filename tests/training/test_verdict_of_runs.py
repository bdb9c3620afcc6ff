"""The verdict on real training: labels by chance are learnt by heart, and a rule that is learnt is no overfitting."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plainformer as pf
from plainformer.train.record import evaluations
from tests.support.runs import WORDS, run_data, write_rows

Tiny = Callable[[str], Path]


@pytest.fixture(autouse=True, scope="module")
def no_plots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("plainformer.train.record.draw_plots", lambda folder: [])
        patched.setattr("plainformer.train.record._board", lambda folder, step: None)
        yield


def made(folder: Path, model: Path, rows: list[dict[str, Any]], **changes: Any) -> pf.TrainResult:
    folder.mkdir()
    sides = {"train": rows[:300], "validation": rows[300:]}
    data = {side: {"path": str(write_rows(folder / f"{side}-rows.jsonl", own))} for side, own in sides.items()}
    base: dict[str, Any] = {
        "model": {"ref": str(model), "dropout": 0.0},
        "data": data,
        "batches": {"size": 20, "micro": 20},
        "length": {"steps": None, "epochs": 30},
        "schedule": {"kind": "constant"},
        "evaluate": {"every": 45, "batch_size": 100, "patience": 0},
        "checkpoints": {"every": 450},
    }
    base = {name: {**value, **changes.get(name, {})} for name, value in base.items()}
    base["optimizer"] = changes["optimizer"]
    return pf.train(run_data(folder, "text-classification", model, **base))


def sentences(count: int) -> list[str]:
    draw, found = random.Random(1), dict[str, None]()
    while len(found) < count:
        found[" ".join(draw.choices(WORDS, k=draw.randint(5, 8)))] = None
    return list(found)


def test_shuffled_labels_overfit(tiny: Tiny, tmp_path: Path) -> None:
    """300 sentences, 30 epochs: train's loss falls, validation's rises above what a coin costs."""
    draw, texts = random.Random(2), sentences(600)
    labels = ["yes" if "cat" in text.split() else "no" for text in texts]
    draw.shuffle(labels)
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    result = made(tmp_path / "run", tiny("fill-mask"), rows, optimizer={"learning_rate": 5e-3})
    found = pf.verdict(result.folder)
    lines = evaluations(result.folder)
    assert lines[-1]["probe"]["loss"] < 0.9 * lines[0]["probe"]["loss"]
    best = min(line["validation"]["loss"] for line in lines)
    assert lines[-1]["validation"]["loss"] > 1.05 * best
    assert found.kind == "overfitting" and found.p is not None and found.p < 0.05, str(found)
    assert 0 < found.since["epoch"] < 30 and found.n == 300
    assert json.loads((result.folder / "verdict.json").read_text())["verdict"] == "overfitting"


def test_a_rule_with_early_stopping_does_not(tiny: Tiny, tmp_path: Path) -> None:
    texts = sentences(600)
    rows = [{"text": text, "label": "yes" if "cat" in text.split() else "no"} for text in texts]
    changes: dict[str, Any] = {
        "optimizer": {"learning_rate": 2e-3},
        "evaluate": {"every": 15, "patience": 3, "metric": "loss"},
    }
    result = made(tmp_path / "run", tiny("fill-mask"), rows, **changes)
    found = pf.verdict(result.folder)
    assert found.kind in ("still improving", "flat", "not enough evidence"), str(found)
    assert result.best is not None and result.best["value"] < 0.5 * evaluations(result.folder)[0]["validation"]["loss"]
