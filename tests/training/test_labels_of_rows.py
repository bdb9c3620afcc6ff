"""Runs that learn labels, from the rows to a checkpoint: every problem, and labels that cannot be learnt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plainformer
from plainformer.config.building import build
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Written
from plainformer.errors import UsageError
from plainformer.train.record import read_lines
from plainformer.training import Event, train
from tests.support import media
from tests.support.runs import run_config, run_data, texts, write_rows

Tiny = Callable[[str], Path]


def short(
    folder: Path, ref: Path, labels: Callable[[int], Any], problem: str | None = None, **data: Any
) -> TrainConfig:
    """A run of two steps over 12 texts with those labels, evaluated on 6."""
    sizes = {"length": {"steps": 2}, "evaluate": {"every": 1, "first": False}}
    made = run_data(folder, "text-classification", ref, data=data, **sizes)
    made["model"]["problem"] = problem
    for name, size in (("train", 12), ("validation", 6)):
        rows = [{"text": f"{text} {n}", "label": labels(n)} for n, text in enumerate(texts(size, seed=size))]
        write_rows(folder / f"{name}.jsonl", rows)
    return build(TrainConfig, Written(made))


@pytest.mark.parametrize(
    ("problem", "labels", "metric"),
    [
        ("single_label", lambda n: n % 2, "accuracy"),
        ("multi_label", lambda n: ["a", "b", "c"][: n % 4], "f1"),
        ("regression", lambda n: n / 3, "loss"),
    ],
)
def test_the_problem_decides_which_metric_chooses(
    tiny: Tiny, tmp_path: Path, problem: str, labels: Callable[[int], Any], metric: str
) -> None:
    result = train(short(tmp_path, tiny("embedding"), labels, problem))
    assert result.best is not None and result.best["metric"] == metric
    assert metric in read_lines(result.folder / "metrics.jsonl")[-1]["validation"]
    plainformer.load(str(result.folder / "best"))("the cat")


def test_sound_is_classified_from_a_model_without_a_head(tiny: Tiny, tmp_path: Path) -> None:
    sides = {}
    for name in ("train", "validation"):
        clips = [media.write_wav(tmp_path / f"{name}{n}.wav", 2000 + n) for n in range(4)]
        rows = [{"audio": str(clip), "label": "xy"[n % 2]} for n, clip in enumerate(clips)]
        sides[name] = {"path": str(write_rows(tmp_path / f"{name}-clips.jsonl", rows))}
    sides["duplicates"] = "allow"
    config = run_data(tmp_path, "audio-classification", tiny("audio-embedding"), data=sides, length={"steps": 1})
    assert plainformer.load(str(train(config).folder / "best"), backend="plain").model.config.labels == ("x", "y")
    with pytest.raises(UsageError, match="no effect"):
        train({**config, "model": {**config["model"], "problem": "multi_label"}})


def test_a_number_is_a_place_only_where_labels_are_names(tiny: Tiny, tmp_path: Path) -> None:
    config = short(tmp_path, tiny("embedding"), lambda n: [0, 2, 3][n % 3])
    write_rows(tmp_path / "validation.jsonl", [{"text": "the cat", "label": 1}])
    with pytest.raises(UsageError, match="no label '1'") as caught:  # not that of place 1, which is 2
        train(config)
    assert "data.labels" in caught.value.fix


def test_labels_that_tell_nothing_apart(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one label, 'x'"):
        train(short(tmp_path, tiny("embedding"), lambda n: "x"))
    with pytest.raises(UsageError, match="nothing to tell apart"):
        run_config(tmp_path, "text-classification", tiny("embedding"), data={"labels": []})


def test_what_is_left_out_is_said_when_a_run_begins(tiny: Tiny, tmp_path: Path) -> None:
    config = short(tmp_path, tiny("embedding"), lambda n: [0, 1, None, float("nan")][n % 4])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "the cat " * 50, "label": 1}) + "\n")
    said: list[Event] = []
    result = train(config, on_event=said.append)
    lines = [event.values["text"] for event in said if event.kind == "said"]
    assert any(line.startswith("train: 1 cut, which loses ") and "train.jsonl line 13" in line for line in lines)
    assert sum(line.startswith("validation: ") and "dropped: no" in line for line in lines) == 2
    assert plainformer.load(str(result.folder / "last")).model.config.labels == ("0", "1")  # and not "nan"
