"""A run as a user starts it, by torchrun: the numbers of one process, said and written once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plainformer.config.building import build
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Written, write_yaml
from plainformer.errors import UsageError
from plainformer.training import prepare, train
from tests.support.runs import run_config, run_data
from tests.support.torchrun import launched


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_torchrun_gives_the_numbers_of_one_process(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    same = {"length": {"steps": 8}, "evaluate": {"every": 4}, "log_every": 1, "loss": {"trim": 0.2, "trim_after": 0}}
    batches = {"size": 6, "micro": 2, "packed": False}  # three of them for two processes
    data = run_data(tmp_path, "causal-lm", tiny("text-generation"), batches=batches, **same)
    (tmp_path / "run.yaml").write_text(write_yaml(data, None), encoding="utf-8")
    train(build(TrainConfig, Written({**data, "folder": str(tmp_path / "alone")})))
    given = ["train", "run.yaml", "--parallel.zero", "3"]
    with launched(tmp_path, ["--standalone", "--nproc-per-node", "2"], given) as run:
        assert run.wait() == 0, run.said
    assert run.said.count("done: step 8 of 8") == 1  # the other process says nothing
    found, expected = lines(tmp_path / "run"), lines(tmp_path / "alone")
    for own, one in zip(found, expected, strict=True):
        assert own.keys() == one.keys() and own["step"] == one["step"]
        for name in ("loss", "gradient_norm", "labels", "tokens"):
            assert name not in one or own[name] == pytest.approx(one[name], rel=2e-5)
        if "validation" in one:
            assert own["validation"] == pytest.approx(one["validation"], rel=2e-5) and own["best"] == one["best"]
    for name in ("trimmed.jsonl", "plan.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_devices_of_one_process(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    same = {"length": {"steps": 4}, "log_every": 1, "batches": {"size": 6, "micro": 3, "packed": False}}
    data = run_data(tmp_path, "causal-lm", tiny("text-generation"), **same)
    train(build(TrainConfig, Written(data)))
    several = {**data, "folder": str(tmp_path / "two"), "parallel": {"devices": "cpu,cpu"}}
    train(build(TrainConfig, Written(several)))
    for own, other in zip(lines(tmp_path / "two"), lines(tmp_path / "run"), strict=True):
        assert own.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-6)


def test_ranks_without_rows_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = run_config(tmp_path, "causal-lm", tiny("text-generation"), batches={"size": 6, "micro": 3})
    with pytest.raises(
        UsageError, match="makes 2 micro-batches of a step's 6 rows, and 4 data-parallel ranks share them"
    ):
        prepare(config)
    by_itself = run_config(tmp_path, "causal-lm", tiny("text-generation"), batches={"size": 6, "micro": None})
    assert prepare(by_itself).plan.micro == 2  # 2, 2, 2 and none: the steps are what they are


def test_layouts_that_do_not_fit_are_refused_before_any_row_is_encoded(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    config = run_config(tmp_path, "causal-lm", tiny("text-generation"), parallel={"tp": 3})
    with pytest.raises(UsageError, match=r"cannot be divided by parallel\.tp=3"):
        prepare(config)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UsageError, match="is for several processes, and this is one"):
        train(config)
