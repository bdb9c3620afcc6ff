"""A run for each fold: each is what it would be alone, none looks at what is held out of it or at the test set."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

import plainformer
from plainformer.config.building import build, read_config
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Written
from plainformer.data.sides import sides_of
from plainformer.data.store import Store
from plainformer.errors import CheckpointError, InputError, UsageError
from plainformer.evaluate.kept import Kept
from plainformer.evaluation import evaluate
from plainformer.folds import FoldsResult, cross_validate, plan_series
from plainformer.folds.advice import left_behind
from plainformer.train.objectives import objective_class
from plainformer.training import prepare, train
from plainformer.training.events import Event
from tests.support.runs import labelled, results, texts, write_rows

Tiny = Callable[[str], Path]
ROWS = list({row["text"]: row for row in labelled(texts(90))}.values())[:60]


def config_of(folder: Path, model: Path, **changes: Any) -> TrainConfig:
    """Three folds of 60 rows, 6 of which are the test set; `changes` are sections or values."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = write_rows(folder / "rows.jsonl", ROWS)
    found: dict[str, Any] = {
        "objective": "text-classification",
        "folder": str(folder / "run"),
        "model": {"ref": str(model)},
        "data": {
            "train": {"path": str(rows)},
            "split": {"validation": 0.2, "test": 0.1, "by": "stratified"},
            "cache": str(folder / "cache"),
        },
        "batches": {"size": 8},
        "length": {"steps": 6},
        "optimizer": {"learning_rate": 1e-3},
        "evaluate": {"every": 3},
        "folds": {"count": 3},
    }
    for name, value in changes.items():
        found[name] = {**found[name], **value} if isinstance(found.get(name), dict) else value
    return build(TrainConfig, Written(found))


@pytest.fixture(scope="module")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, FoldsResult]:
    """A series that came to its end; tests leave it as it is."""
    config = config_of(tmp_path_factory.mktemp("series"), tiny("text-classification"))
    return config, cross_validate(config)


def predictions(result: FoldsResult) -> list[dict[str, Any]]:
    kept = [Kept(result.folder / str(fold.evaluation)) for fold in result.folds]
    return [line for one in kept for line in one.predictions()]


# ---- the runs


def test_fold_2_alone_is_fold_2_of_the_series(made: tuple[TrainConfig, FoldsResult], tmp_path: Path) -> None:
    _, result = made
    assert [fold.run for fold in result.folds] == ["fold-1", "fold-2", "fold-3"]
    own = read_config(result.folder / "fold-2" / "config.yaml")
    assert own.folds is None and own.data.split is not None and own.data.split.fold == 2
    train(replace(own, folder=str(tmp_path / "fold-2"), data=replace(own.data, cache=str(tmp_path / "cache"))))
    expected = results(result.folder / "fold-2")
    assert len(expected) > 10 and results(tmp_path / "fold-2") == expected
    assert results(result.folder / "fold-1") != expected


def test_no_run_looks_at_the_test_set_and_none_at_its_own_fold(made: tuple[TrainConfig, FoldsResult]) -> None:
    config, result = made
    runs = [read_config(result.folder / fold.run / "config.yaml") for fold in result.folds]
    wanted = objective_class(config.objective).columns
    sides = [sides_of(run.data, wanted).sides for run in runs]
    numbers = [{name: {n for n, _ in side} for name, side in found.items()} for found in sides]
    test = numbers[0]["test"]
    assert len(test) == 6 and all(own["test"] == test for own in numbers)
    assert config.data.cache is not None
    (encoded,) = [Store(path) for path in Path(config.data.cache).iterdir() if path.is_dir()]  # once for all folds
    assert set(encoded.rows.tolist()) == set(range(60)) - test
    places = {f"line {number + 1}" for number in test}
    answered = [line["place"].rpartition("jsonl ")[2] for line in predictions(result)]
    assert len(answered) == len(set(answered)) == 54 and not places & set(answered)
    for run, own, fold in zip(runs, numbers, result.folds, strict=True):
        prepared = prepare(run)
        assert prepared.validation is not None
        assert set(prepared.examples.rows.tolist()) == own["train"]
        assert set(prepared.validation.rows.tolist()) == own["validation"]
        assert not own["held_out"] & (own["train"] | own["validation"] | test)
        kept = Kept(result.folder / str(fold.evaluation))
        assert len(kept) == len(own["held_out"]) == 18 and len(own["validation"]) == 8


def test_pooled_metrics_are_those_of_all_answers(made: tuple[TrainConfig, FoldsResult]) -> None:
    _, result = made
    lines = predictions(result)
    right, given = [line["reference"] for line in lines], [line["answer"]["label"] for line in lines]
    pooled = result.pooled
    assert pooled is not None and pooled.n == 54
    assert pooled.metrics["accuracy"].value == pytest.approx(accuracy_score(right, given))
    assert pooled.metrics["f1_macro"].value == pytest.approx(f1_score(right, given, average="macro"))
    folds = [accuracy_score(right[start : start + 18], given[start : start + 18]) for start in (0, 18, 36)]
    assert [own["accuracy"] for own in pooled.folds] == pytest.approx(folds)
    assert pooled.mean["accuracy"] == pytest.approx(np.mean(folds))
    assert pooled.deviation["accuracy"] == pytest.approx(np.std(folds, ddof=1))
    low, high = pooled.metrics["accuracy"].low, pooled.metrics["accuracy"].high
    assert low is not None and high is not None and low <= pooled.metrics["accuracy"].value <= high
    written = json.loads((result.folder / "folds.json").read_text())
    assert (
        written["ended"] == "done"
        and written["pooled"]["metrics"]["accuracy"]["value"] == pooled.metrics["accuracy"].value
    )
    assert written == json.loads(json.dumps(result.to_dict()))


def test_the_models_of_all_folds_answer_as_one(made: tuple[TrainConfig, FoldsResult]) -> None:
    _, result = made
    inputs = texts(5, seed=7)
    together = plainformer.load(result.folder)
    members = [plainformer.load(result.folder / f"fold-{n}") for n in (1, 2, 3)]
    answers = [member(inputs) for member in members]
    for place, found in enumerate(together(inputs)):
        own = [[score.score for score in one[place].scores] for one in answers]
        assert [score.score for score in found.scores] == pytest.approx(np.mean(own, 0), rel=1e-6)
        assert found.score == max(score.score for score in found.scores)
    assert answers[0] != answers[1]
    assert "3 models" in repr(together) and str(result.folder) in repr(together)
    for refuse in (lambda: plainformer.save(together, result.folder / "x"), lambda: plainformer.explain(together, "a")):
        with pytest.raises(UsageError, match="of one model"):
            refuse()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        plainformer.load_model(result.folder)


def test_only_the_test_set_and_other_rows_are_news_to_all_models(
    made: tuple[TrainConfig, FoldsResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look at the test set, by all models together, is in the ledger."""
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    _, result = made
    with pytest.raises(UsageError, match="have learnt from these rows"):
        evaluate(result.folder)
    found = evaluate(result.folder, side="test", output=tmp_path / "test")
    assert found.n == 6 and len(found.looks.all) == 1
    together = plainformer.load(result.folder)
    for line in Kept(tmp_path / "test").predictions():
        assert line["answer"]["label"] == together(line["input"]).label
    with pytest.raises(UsageError, match="was looked at"):
        evaluate(result.folder / "fold-1", side="test")
    assert (
        evaluate(result.folder, tmp_path.parent / Path(str(made[0].data.train.path)), output=tmp_path / "all").n == 60
    )


# ---- stopped, and gone on with


def in_a_child(config: TrainConfig, on_event: Callable[[Event], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            cross_validate(config, on_event=on_event)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def test_a_series_that_was_killed_goes_on(made: tuple[TrainConfig, FoldsResult], tiny: Tiny, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny("text-classification"))
    seen: list[str] = []

    def die(event: Event) -> None:
        if event.kind == "run":
            seen.append(event.values["run"])
        if event.kind == "evaluated" and event.values["step"] == 6 and len(seen) == 2:  # after the first checkpoint
            os.kill(os.getpid(), signal.SIGKILL)

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")  # as of a process that was killed before anything else was there
    assert os.WIFSIGNALED(in_a_child(config, die))
    with pytest.raises(CheckpointError, match="3 folds that is not finished"):
        plainformer.load(tmp_path / "run")
    first = results(tmp_path / "run" / "fold-1")
    steps: list[tuple[str, int]] = []
    runs: list[str] = []

    def watch(event: Event) -> None:
        if event.kind == "run":
            runs.append(event.values["said"])
        if event.kind == "started":
            steps.append((runs[-1], event.values["step"]))

    result = cross_validate(config, on_event=watch)
    assert result.ended == "done" and runs == ["fold 1 of 3", "fold 2 of 3", "fold 3 of 3"]
    assert steps == [("fold 2 of 3", 3), ("fold 3 of 3", 0)]  # what was finished is not run again
    assert results(tmp_path / "run" / "fold-1") == first
    _, unbroken = made
    for n in (1, 2, 3):
        ours, theirs = (results(folder / f"fold-{n}") for folder in (tmp_path / "run", unbroken.folder))
        same = {name for name in theirs if not name.endswith("README.md") and "state.json" not in name}
        assert {name: ours[name] for name in same if "MANIFEST" not in name} == {
            name: theirs[name] for name in same if "MANIFEST" not in name
        }
    assert result.pooled is not None and unbroken.pooled is not None
    assert result.pooled.to_dict() == unbroken.pooled.to_dict()


def test_a_series_that_is_stopped_says_so(tiny: Tiny, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny("text-classification"))
    done: list[str] = []
    result = cross_validate(
        config, on_event=lambda event: done.append(event.kind), stop=lambda: done.count("ended") > 0
    )
    assert result.ended == "stopped" and done.count("ended") == 1
    with pytest.raises(UsageError, match="3 runs, and this is one"):
        train(config)
    changed = replace(config, optimizer=replace(config.optimizer, learning_rate=2e-3))
    with pytest.raises(UsageError, match="its options are others"):
        cross_validate(changed)
    write_rows(tmp_path / "rows.jsonl", ROWS[:-1])
    with pytest.raises(UsageError, match="its data is not the same"):
        cross_validate(config)


# ---- search


def test_a_search_chooses_on_validation_rows_and_outer_folds_estimate_it(tiny: Tiny, tmp_path: Path) -> None:
    search = {"optimizer.learning_rate": [1e-3, 1e-6]}
    config = config_of(tmp_path, tiny("text-classification"), folds={"count": 2, "search": search, "outer": 2})
    plan = plan_series(config)
    assert len(plan.runs) == 2 * 2 + 2 * (2 * 2 + 1) and plan.total_steps == 6 * len(plan.runs)
    made: list[str] = []
    result = cross_validate(config, on_event=lambda e: made.append(e.values["run"]) if e.kind == "run" else None)
    assert sorted(made) == sorted(run.name for run in plan.runs)
    assert result.choice is not None and result.nested is not None and result.pooled is not None
    for one, number in zip(result.choice.tried, (1, 2), strict=True):
        (folder,) = (tmp_path / "run").glob(f"search-{number}-*")
        best = [json.loads((folder / f"fold-{fold}" / "best.json").read_text()) for fold in (1, 2)]
        assert one.folds == tuple(own["value"] for own in best)
    choice = result.choice.values["optimizer.learning_rate"]
    for fold in result.folds:
        assert read_config(result.folder / fold.run / "config.yaml").optimizer.learning_rate == choice
        assert (result.folder / f"fold-{fold.fold}").resolve() == (result.folder / fold.run).resolve()
    assert result.nested.pooled.n == result.pooled.n == 54 and len(result.nested.choices) == 2
    assert result.to_dict()["search"]["pooled_has_seen_the_choice"] is True
    left, size = left_behind(result)
    assert len(left) == 2 + 2 * 2 * 2 and not {run.resolve() for run in left} & {
        (result.folder / fold.run).resolve() for fold in result.folds
    }
    kept = (path for run in left for path in (run / "checkpoints").rglob("*") if path.is_file())
    assert size == sum(path.stat().st_size for path in kept) > 0
    assert any("10 runs of a search keep their checkpoints" in line for line in result.lines())
    chosen = read_config(tmp_path / "run" / "outer-1" / "chosen" / "config.yaml")
    inner = next((tmp_path / "run" / "outer-1").glob("search-1-*")) / "fold-1" / "config.yaml"
    wanted = objective_class(config.objective).columns
    (outer, held_out) = (
        {n for n, _ in sides_of(one.data, wanted).sides["held_out"]} for one in (chosen, read_config(inner))
    )
    assert outer < held_out  # no run that led to the choice has seen the outer fold
    assert len(list((tmp_path / "cache").iterdir())) == 1
    without = replace(result, nested=None)
    assert any("have seen" in line or "too good" in line for line in without.lines())


def test_options_that_a_search_cannot_try(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("text-classification")
    for name, values in (("folder", ["a", "b"]), ("data.split.seed", [0, 1]), ("device", ["cpu", "cuda"])):
        with pytest.raises(UsageError, match="cannot choose"):
            config_of(tmp_path, model, folds={"count": 2, "search": {name: values}})
    with pytest.raises(UsageError, match="learning_rte"):
        plan_series(config_of(tmp_path, model, folds={"count": 2, "search": {"optimizer.learning_rte": [1, 2]}}))
    with pytest.raises(UsageError, match="validation rows out of train"):
        found = {"train": {"path": str(tmp_path / "rows.jsonl")}, "validation": {"path": "x"}, "split": None}
        config_of(tmp_path, model, data=found)


# ---- labels


def test_all_models_tell_apart_the_same_labels(tiny: Tiny, tmp_path: Path) -> None:
    rare = [{"text": "a rare one", "label": "rare"}, *ROWS[:40]]
    config = config_of(tmp_path, tiny("text-classification"), data={"split": {"validation": 0.2}})
    write_rows(tmp_path / "rows.jsonl", rare)
    result = cross_validate(config)
    assert plainformer.load(result.folder).config.labels == ("no", "rare", "yes")
    assert result.pooled is not None and result.pooled.n == 41


def test_copies_in_other_folds_are_refused_or_dropped(tiny: Tiny, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny("text-classification"), data={"split": {"validation": 0.2}})
    write_rows(tmp_path / "rows.jsonl", [*ROWS, *ROWS[:8]])
    with pytest.raises(InputError, match=r"fold-1: .* too"):
        cross_validate(config)
    config = replace(config, data=replace(config.data, duplicates="drop_train"))
    wanted = objective_class(config.objective).columns
    assert len(plan_series(config).runs) == 3
    dropped = [prepare(run.config) for run in plan_series(config).runs]
    for prepared in dropped:
        keys = {
            name: {row["text"] for _, row in side}
            for name, side in sides_of(prepared.config.data, wanted).sides.items()
        }
        assert not keys["train"] & (keys["held_out"] | keys["validation"])
        reasons = prepared.examples.counts.dropped
        assert set(reasons) == {"copy of a row of another side"}
