"""What a pipeline's last stage sees and the others must know, and stages that have nothing to learn: as in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plainformer.config.building import build
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Written
from plainformer.loading import load_model
from plainformer.training import train
from tests.support.close import close
from tests.support.rank_of_run import all_of
from tests.support.ranks import run_ranks
from tests.support.runs import run_data

SAME: dict[str, Any] = {
    "length": {"steps": 4},
    "log_every": 1,
    "evaluate": {"every": 2},
    "loss": {"trim": 0.35, "trim_after": 0.0},
}
# name → objective, the model's folder, how it is trained
RUNS = {
    "all of it": ("text-classification", "text-classification", {"dropout": 0.0}),
    "the head, whose table is the embeddings'": ("masked-lm", "fill-mask", {"train": "head", "dropout": 0.0}),
}
IDS = torch.tensor([[3, 5, 7, 9]])


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_runs_of_two_stages(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    asked = {}
    for name, (objective, kind, how) in RUNS.items():
        asked[name] = run_data(
            tmp_path / name, objective, tiny(kind), model=how, batches={"size": 6, "micro": 2}, **SAME
        )
        train(build(TrainConfig, Written({**asked[name], "folder": str(tmp_path / name / "alone")})))
    staged = [{**data, "parallel": {"pp": 2}} for data in asked.values()]
    assert run_ranks(all_of, 2, staged) == [["done"] * len(RUNS)] * 2
    for name in RUNS:
        run, alone = tmp_path / name / "run", tmp_path / name / "alone"
        for own, one in zip(lines(run), lines(alone), strict=True):
            assert own.keys() == one.keys() and own["step"] == one["step"]
            for value in ("loss", "gradient_norm", "labels", "tokens", "validation"):
                assert value not in one or own[value] == pytest.approx(one[value], rel=2e-5), (name, value)
        assert (run / "trimmed.jsonl").read_bytes() == (alone / "trimmed.jsonl").read_bytes()
        found, expected = (load_model(folder / "last")(IDS).logits for folder in (run, alone))
        close(found, expected, name, rel=2e-4)
