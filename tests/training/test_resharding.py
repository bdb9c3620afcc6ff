"""A run goes on with other numbers of processes, divided in other ways: its curve is that of one process."""

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
from plainformer.evaluation import evaluate
from plainformer.loading import load, load_model
from plainformer.train.checkpoint import damage
from plainformer.training import train
from tests.support.close import close
from tests.support.rank_of_run import go_on
from tests.support.ranks import run_ranks
from tests.support.runs import run_data

# Processes, how they are divided, and the step at which they are asked to stop.
WAYS: list[tuple[int, dict[str, Any], int]] = [
    (4, {"zero": 3}, 4),
    (2, {"zero": 1}, 7),
    (3, {"zero": 2}, 10),
    (4, {"zero": 3, "tp": 2}, 13),
    (2, {"pp": 2}, 16),
    (1, {}, 99),
]
ADAPTED: list[tuple[int, dict[str, Any], int]] = [
    (2, {"zero": 3}, 4),
    (3, {"zero": 1}, 9),
    (4, {"tp": 2, "pp": 2}, 16),
    (1, {}, 99),
]
RUNS: dict[str, dict[str, Any]] = {  # tensor and pipeline parallel draw other numbers for dropout
    "whole": {"optimizer": {"ema": 0.9}, "model": {"dropout": 0.0}},
    "adapter": {"model": {"dropout": 0.0, "lora": {"rank": 2, "targets": ["all-linear"]}}},
}


def curve(run: Path) -> list[tuple[float, ...]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def runs(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of runs that went through all ways, and of the same in one process."""
    found = {}
    for kind, changes in RUNS.items():
        folder = tmp_path_factory.mktemp(kind)
        same = {"length": {"steps": 20}, "log_every": 1, "batches": {"size": 6, "micro": 1, "packed": False}, **changes}
        data = run_data(folder, "causal-lm", tiny("text-generation"), **same)
        train(build(TrainConfig, Written({**data, "folder": str(folder / "alone")})))
        for world, parallel, until in WAYS if kind == "whole" else ADAPTED:
            given = {**data, "parallel": parallel}
            ended = run_ranks(go_on, world, given, until, timeout=300) if world > 1 else [go_on(0, given, until)]
            assert set(ended) == {"stopped" if until <= 20 else "done"}, (kind, parallel)
            assert damage((folder / "run" / "last").resolve()) == ""
        found[kind] = folder
    return found


@pytest.mark.parametrize("kind", RUNS)
def test_the_curve_is_that_of_one_process(runs: dict[str, Path], kind: str) -> None:
    found, expected = curve(runs[kind] / "run"), curve(runs[kind] / "alone")
    assert [line[0] for line in found] == [line[0] for line in expected] == list(range(1, 21))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=2e-5, atol=0)


@pytest.mark.parametrize("kind", RUNS)
def test_its_models_load_and_answer(runs: dict[str, Path], kind: str) -> None:
    ids = torch.tensor([[3, 5, 7, 9]])
    for way in ("last", "best"):
        models = [load_model(runs[kind] / run / way) for run in ("run", "alone")]
        found, expected = (model(ids).logits for model in models)
        close(found, expected, f"{kind}, {way}", rel=2e-5)
    assert load(runs[kind] / "run").model.config == models[0].config
    assert set(evaluate(runs[kind] / "run", runs[kind] / "validation.jsonl").to_dict())


def test_the_reference_loads_what_several_processes_wrote(runs: dict[str, Path]) -> None:
    """Of step 16, which two stages wrote; a model of this size is one file."""
    import transformers  # not above: each rank would import it

    folder = runs["whole"] / "run/checkpoints/step-00000016"
    reference, ids = transformers.AutoModelForCausalLM.from_pretrained(folder), torch.tensor([[3, 5, 7, 9]])
    logits = load_model(folder)(ids).logits
    close(logits, reference(ids).logits, "logits")
