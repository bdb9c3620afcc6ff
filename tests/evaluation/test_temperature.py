"""Temperatures divide logits; what is stored is of these weights, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plainformer.errors import CheckpointError, UsageError
from plainformer.evaluation import evaluate
from plainformer.evaluation.temperature import stored_temperature, tempered
from tests.support.models import save
from tests.support.runs import classified, texts, write_rows

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 40.0])
def test_probabilities_are_those_of_divided_logits(temperature: float) -> None:
    logits = torch.randn(6, generator=torch.Generator().manual_seed(0)).double() * 3
    want = (logits / temperature).softmax(-1).numpy()
    np.testing.assert_allclose(tempered(logits.softmax(-1).tolist(), temperature), want, rtol=1e-9)
    want = (logits / temperature).sigmoid().numpy()
    np.testing.assert_allclose(tempered(logits.sigmoid().tolist(), temperature, together=False), want, rtol=1e-9)


def test_certain_answers_have_a_temperature_too() -> None:
    assert tempered([1.0, 0.0], 2.0)[0] == pytest.approx(1.0) and sum(tempered([1.0, 0.0], 100.0)) == pytest.approx(1)
    assert 0.5 < tempered([1.0], 10.0, together=False)[0] < 1


def test_the_fit_is_the_likeliest(tiny: Tiny, tmp_path: Path) -> None:
    path, model = write_rows(tmp_path / "rows.jsonl", classified(60)), save("text-classification", tmp_path / "model")
    fitted = evaluate(model, calibrate=path)
    assert fitted.calibration is not None and fitted.data == str(path)
    best = fitted.calibration.temperature
    losses = {t: evaluate(model, path, temperature=t)["nll"] for t in (best * 0.8, best, min(best * 1.25, 1e3))}
    assert losses[best] <= min(losses.values()) + 1e-3
    assert "ECE" in fitted.calibration.lines()[1]


def test_several_labels_and_choices(tiny: Tiny, tmp_path: Path) -> None:
    several = save("text-classification", tmp_path / "several", problem_type="multi_label_classification")
    rows = [{**row, "label": [row["label"], "neutral"]} for row in classified(30)]
    found = evaluate(several, calibrate=write_rows(tmp_path / "rows.jsonl", rows))
    assert found.calibration is not None and found.calibration.temperature > 0
    choices = [
        {"text": t, "choices": ["cat", "dog", "mat"][: 2 + n % 2], "label": n % 2} for n, t in enumerate(texts(30))
    ]
    model = save("multiple-choice", tmp_path / "choice")
    found = evaluate(model, calibrate=write_rows(tmp_path / "choices.jsonl", choices))
    assert found.calibration is not None
    assert (found.calibration.after["nll"] or 9) <= (found.calibration.before["nll"] or 0) + 1e-9


def test_what_has_no_probabilities(tiny: Tiny, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts(3)])
    with pytest.raises(UsageError, match="no probabilities of labels"):
        evaluate(tiny("fill-mask"), calibrate=rows)
    with pytest.raises(UsageError, match=r"temperature.* has no effect"):
        evaluate(tiny("fill-mask"), rows, temperature=2.0)


@pytest.mark.parametrize("value", ["inf", float("inf"), "nan", 0, -1, "1e-320", "1e300", "1e400"])
def test_what_is_no_temperature(tiny: Tiny, tmp_path: Path, value: Any) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", classified())
    with pytest.raises(UsageError, match=r"temperature=.*is not between"):
        evaluate(tiny("text-classification"), rows, temperature=value)


def test_of_other_weights_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"temperature": 2.0, "checkpoint": "these"}))
    assert stored_temperature(tmp_path, "these") == 2.0
    with pytest.raises(CheckpointError, match="other weights"):
        stored_temperature(tmp_path, "those")
    for damage in ("{", '{"temperature": "x", "checkpoint": "these"}', '{"temperature": -1, "checkpoint": "these"}'):
        path.write_text(damage)
        with pytest.raises(CheckpointError, match=r"calibration.json"):
            stored_temperature(tmp_path, "these")
    with pytest.raises(UsageError, match="no temperature is stored"):
        stored_temperature(None, "these")
