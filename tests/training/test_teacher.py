"""A run with a teacher: it is found by its name, checked, and only the student is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from plainformer.errors import UsageError
from plainformer.loading import load_model
from plainformer.training import train
from tests.support.runs import run_data


def test_a_run_learns_from_its_teacher(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    model = tiny("text-generation")
    taught = {"teacher": str(tiny("chat")), "teacher_weight": 0.9}
    short = {"length": {"steps": 2}, "evaluate": {"every": 2}, "log_every": 1}
    losses = {}
    for name, loss in (("alone", {}), ("taught", taught)):
        config = run_data(tmp_path / name, "causal-lm", model, loss=loss, **short)
        result = train(config)
        assert result.ended == "done"
        lines = (result.folder / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
        saved = load_model(result.folder / "last")
        assert saved.num_parameters == load_model(model).num_parameters
    assert len(losses["taught"]) == 2 and losses["taught"] != losses["alone"]


def test_a_teacher_of_something_else_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    config = run_data(tmp_path, "causal-lm", tiny("text-generation"), loss={"teacher": str(tiny("text2text"))})
    with pytest.raises(
        UsageError, match=r"loss\.teacher='.*' cannot teach causal-lm: bart models have no 'causal_lm' head"
    ):
        train(config)
