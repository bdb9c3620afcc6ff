"""Numbers of any size are learnt alike where they are scaled: whole runs, in the data's units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import plainformer as pf
from plainformer.evaluate.kept import Kept
from tests.support import models
from tests.support.runs import run_data, texts, write_rows


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("plainformer.train.record.draw_plots", lambda folder: [])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("fill-mask", tmp_path_factory.mktemp("bert") / "model")


HELD = [f"{text} held" for text in texts(25, 2)]


def made(folder: Path, model: Path, kind: str, factor: float, offset: float) -> tuple[Path, np.ndarray[Any, Any]]:
    """A run on how long texts are and how often they say "cat", in other units; and the numbers that it learns from."""
    folder.mkdir(parents=True)
    sides, numbers = {}, {}
    for side, own in (("train", texts(60, 1)), ("validation", HELD)):
        draw = np.random.default_rng(len(own))
        values = np.array([2.0 * text.count("cat") + len(text) / 20 + draw.normal() for text in own])
        numbers[side] = values * factor + offset
        rows = [{"text": text, "label": value} for text, value in zip(own, numbers[side].tolist(), strict=True)]
        sides[side] = {"path": str(write_rows(folder / f"numbers-{side}.jsonl", rows))}
    start = {"ref": str(model), "problem": "regression", "dropout": 0.0}
    changes: dict[str, Any] = {"data": sides, "model": start, "scale": {"targets": kind}, "length": {"steps": 36}}
    changes["optimizer"] = {"learning_rate": 5e-3}
    return pf.train(run_data(folder, "text-classification", model, **changes)).folder, numbers["train"]


def predicted(run: Path) -> np.ndarray[Any, Any]:
    found = pf.evaluate(run)
    return np.array([line["answer"] for line in Kept(found.folder).predictions()])


@pytest.mark.parametrize(("kind", "scaler"), [("standardize", StandardScaler()), ("minmax", MinMaxScaler())])
def test_answers_are_what_the_scaler_turns_back(kind: str, scaler: Any, bert: Path, tmp_path: Path) -> None:
    """The reference reads the saved model and gives scaled numbers; scikit-learn's scaler, of train alone, turns them back."""
    run, numbers = made(tmp_path / "run", bert, kind, 300.0, -7000.0)
    scaler.fit(numbers[:, None])
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(run / "best").eval()
    tokenizer = models.reference_tokenizer(run / "best")
    with torch.no_grad():
        raw = [float(reference(**tokenizer(text, return_tensors="pt")).logits) for text in HELD]
    expected = scaler.inverse_transform(np.array(raw)[:, None])[:, 0]
    assert predicted(run) == pytest.approx(expected, rel=1e-5, abs=1e-4 * numbers.std())
    assert np.ptp(expected) > 1e-3 * numbers.std()


def test_other_units_change_nothing_but_the_units(bert: Path, tmp_path: Path) -> None:
    """Targets times 1000 plus a million: the same predictions in these units, but for the rounding of scaled targets.

    Asserted to 1e-2 of the spread of the predictions: a relative error of what is near a million would hide all of them,
    and after a few steps they differ little.
    """
    plain, numbers = made(tmp_path / "plain", bert, "standardize", 1.0, 0.0)
    large, _ = made(tmp_path / "large", bert, "standardize", 1000.0, 1e6)
    ours, theirs = predicted(plain), (predicted(large) - 1e6) / 1000.0
    assert np.abs(ours - theirs).max() < 1e-2 * ours.std(), (ours, theirs)
    assert ours.std() > 0.02 * numbers.std()
    best = [json.loads((run / "best.json").read_text())["step"] for run in (plain, large)]
    assert best[0] == best[1]
    metrics = [pf.evaluate(run) for run in (plain, large)]
    assert metrics[1]["mean_absolute_error"] == pytest.approx(1000 * metrics[0]["mean_absolute_error"], rel=1e-3)
    assert metrics[1]["pearson"] == pytest.approx(metrics[0]["pearson"], abs=1e-3)
    assert metrics[1]["r2"] == pytest.approx(metrics[0]["r2"], abs=1e-3)
