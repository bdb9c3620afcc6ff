"""`plainformer train --folds`: what it prints and refuses; that Ctrl-C saves; that its folder runs like a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from plainformer.cli.overrides import parse_overrides
from plainformer.cli.train import read_run
from plainformer.config.building import read_config
from plainformer.evaluate.intervals import Interval
from plainformer.folds.advice import retraining
from plainformer.folds.pooled import Pooled
from plainformer.folds.result import FoldResult, FoldsResult
from tests.support.cli import Answer, Cli, refused
from tests.support.runs import labelled, texts, write_rows

Tiny = Callable[[str], Path]
CONFIG = """objective: text-classification
folder: run
model: {{ref: {ref}}}
data:
  train: {{path: rows.jsonl}}
  split: {{validation: 0.2, by: stratified}}
  cache: cache
batches: {{size: 8}}
length: {{steps: 4}}
evaluate: {{every: 2}}
"""


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's YAML file, beside its data, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", list({row["text"]: row for row in labelled(texts(60))}.values())[:40])
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.format(ref=tiny("text-classification")))
    return path


def ok(answer: Answer) -> Answer:
    """What a run tells is on stderr."""
    assert answer.code == 0, answer
    return answer


def test_numbers_of_folds_that_cannot_be(cli: Cli, config: Path) -> None:
    for count in ("41", "9999999999"):
        refused(cli("train", config, "--folds", count), f"--folds {count} of 40 rows", "give 2 to 40")
    for count in ("1", "-2", "2.5", "x"):
        refused(cli("train", config, "--folds", count), "--folds.count", "is not a whole number")
    refused(cli("train", config, "--folds", "2", "--folds.search", "{}"), "--folds.search", "names no option")
    refused(cli("train", config, "--folds", "2", "--folds.search", "{seed: [1, 2]}"), "cannot choose seed")
    refused(cli("train", "--seen", "a", "--verdict", "b"), "--verdict has no effect with --seen")


def test_folds_is_short_for_their_number(config: Path) -> None:
    assert parse_overrides(["--folds", "5", "--folds.vote", "majority"]) == [
        ("folds.count", "5"),
        ("folds.vote", "majority"),
    ]
    assert parse_overrides(["--folds=3"]) == [("folds.count", "3")]
    for words in (
        ["--folds", "4"],
        ["--folds", "3", "--folds.count", "4"],
        ["--folds.count", "4", "--folds.vote", "mean"],
    ):
        found = read_run(str(config), tuple(words))
        assert found.folds is not None and found.folds.count == 4
    assert read_run(str(config), ("--folds", "4", "--folds", "null")).folds is None


def test_a_series_from_the_command_line(cli: Cli, config: Path) -> None:
    answer = ok(cli("train", config, "--folds", "2"))
    assert "fold 1 of 2: step 4 of 4" in answer.err and "fold 2 of 2: step 2: validation loss" in answer.err
    assert "all 2 folds, each answered by a model that had not seen it: 40 rows" in answer.out
    assert "fold 2 of 2: validation accuracy" in answer.out and re.search(r"\n  accuracy +0\.", answer.out)
    assert "plainformer run run INPUT" in answer.out
    assert ok(cli("run", "run", "the cat sat")).out.split()[0] in ("yes", "no")
    assert "2 models such as this (fold-1 to fold-2), vote: mean" in ok(cli("info", "run")).out
    (found,) = ok(cli("info", "run", "--json")).json()
    assert found["members"] == ["fold-1", "fold-2"]
    events = ok(cli("train", "run", "--json")).json()  # the folder goes on, and has nothing to do
    assert [event["event"] for event in events if event["event"] in ("run", "learnt")] == ["run", "run"]
    last = events[-1]
    assert last["event"] == "folds" and last["ended"] == "done" and last["pooled"]["n"] == 40
    refused(cli("train", "run", "--optimizer.learning-rate", "1e-4"), "optimizer.learning_rate: 5e-05 → 0.0001")
    refused(cli("train", "run", "--folds", "3"), "folds.count: 2 → 3")
    refused(cli("train", config), "has a run for each of several folds")
    refused(cli("train", config, "--folds", "2", "--folder", "run/fold-1"), "is the folder of one run")
    refused(cli("explain", "run", "a"), "an explanation is of one model, and run has 2")
    assert ok(cli("train", "run/fold-1")).out.startswith("done already: step 4 of 4")


def test_what_a_series_would_be_is_shown(cli: Cli, config: Path) -> None:
    answer = ok(cli("data", config, "--folds", "4"))
    assert "held_out: 10 rows" in answer.out and "fold 1 of 4 is held out" in answer.out
    search = ("--folds.search", "{optimizer.learning_rate: [1e-5, 1e-4, 1e-3]}")
    answer = ok(cli("train", config, "--folds", "2", *search, "--folds.outer", "2", "--dry-run"))
    assert "20 runs of 4 steps, 80 in all" in answer.out
    (found,) = ok(cli("train", config, "--folds", "2", *search, "--dry-run", "--json")).json()
    assert len(found["series"]["runs"]) == 6 and found["series"]["steps"] == 24
    assert not (config.parent / "run").exists()


def test_mistakes_are_named(cli: Cli, config: Path) -> None:
    refused(cli("train", config, "--folds", "1"), "folds.count")
    refused(cli("train", config, "--folds", "99"), "--folds 99 of 40 rows")
    refused(cli("train", config, "--folds", "2", "--resume"), "has no run to go on with")
    refused(cli("train", config, "--folds", "2", "--folds.outer", "2"), "outer", "without")
    refused(cli("train", config, "--folds", "2", "--folds.search", "{folder: [a, b]}"), "cannot choose")
    refused(cli("train", config, "--folds", "2", "--folds.search", "{optimizer.learning_rate: [1]}"), "two values")
    refused(cli("train", config, "--folds", "2", "--data.split.folds", "2", "--data.split.fold", "1"), "one of them")


def test_the_advice_can_be_followed(config: Path) -> None:
    """The command that is printed gives a configuration that trains on all rows."""
    fold = FoldResult(1, "fold-1", "done", 4, 4, {"step": 2, "metric": "accuracy", "value": 0.5})
    for overrides in ([], [("data.split.test", "0.1")], [("length.steps", "null"), ("length.epochs", "3")]):
        asked = read_config(config, [("folds.count", "2"), *overrides])
        (config.parent / "run").mkdir(exist_ok=True)
        (config.parent / "run" / "config.yaml").write_text(config.read_text())
        result = FoldsResult(config.parent / "run", "done", 2, "mean", (fold,))
        path, *words = retraining(asked, result)
        found = read_run(path, (*(f"--{name}={value}" for name, value in overrides), *words))
        assert found.length.steps == 2 and found.length.epochs is None and found.folds is None
        assert (found.data.split is None) == (("data.split.test", "0.1") not in overrides)
        assert found.folder.endswith("run-all") and json.dumps(found.folder)


def test_the_numbers_of_folds_are_aligned() -> None:
    whole = {"accuracy": Interval(0.75, 0.5, 0.875, 40), "mcc": Interval(0.5, None, None, 40)}
    folds = ({"accuracy": 0.5, "mcc": 0.5}, {"accuracy": 1.0, "mcc": float("nan")})
    mean, deviation = {"accuracy": 0.75, "mcc": float("nan")}, {"accuracy": 0.3536, "mcc": float("nan")}
    pooled = Pooled(40, "row", 40, whole, folds, mean, deviation, ("accuracy", "mcc"))
    head, *lines = FoldsResult(Path("run"), "done", 2, "mean", pooled=pooled).lines()
    assert head.startswith("all 2 folds") and len(lines) == 3
    places = [lines[0].index(name) for name in ("value", "95 %", "mean of folds")]
    assert [lines[1][place:].split("  ")[0] for place in places] == ["0.75", "0.5 to 0.875", "0.75 ± 0.3536"]
    assert [lines[2][place:].split("  ")[0] for place in places] == ["0.5", "", "undefined in 1 fold"]
