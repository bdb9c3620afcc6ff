"""A run folder is evaluated on its own rows; its test rows are looked at once, and no metric of them is anywhere before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from plainformer import load
from plainformer.config.building import read_config
from plainformer.errors import CheckpointError, InputError, UsageError
from plainformer.evaluate.ledger import Ledger
from plainformer.evaluation import evaluate
from plainformer.train.checkpoint import damage
from plainformer.training import train
from tests.support.runs import labelled, run_config, texts, write_rows

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    test = write_rows(folder / "test.jsonl", labelled(texts(25, seed=7)))
    found = run_config(
        folder, "text-classification", tiny("embedding"), data={"test": {"path": str(test)}}, length={"steps": 8}
    )
    return train(found).folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The run, in a folder of its own, whose checkpoints are linked as they were."""
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_the_best_model_on_the_runs_validation_rows(run: Path) -> None:
    found = evaluate(run)
    best = json.loads((run / "best.json").read_text())
    assert found["accuracy"] == pytest.approx(best["value"]) and found.n == 13
    assert found.folder.parent == run / "evaluations" and found.folder.name.startswith("validation-best-")
    assert evaluate(run).read
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation"]["loss"] for line in lines if "validation" in line}
    assert found["nll"] == pytest.approx(losses[best["step"]], rel=1e-5)


def test_other_sides(run: Path) -> None:
    assert evaluate(run, side="train").n == 61
    with pytest.raises(UsageError, match=r"(?s)side='tset'.*no such rows.*did you mean 'test'"):
        evaluate(run, side="tset")
    with pytest.raises(UsageError, match="on a run's own rows"):
        evaluate(run, columns={"text": "text"})
    other = write_rows(run.parent / "other.jsonl", labelled(texts(30, seed=9)))
    assert evaluate(run, other).folder.name.startswith("other-best-")


def test_the_test_rows_are_looked_at_once(run: Path) -> None:
    card = (run / "best" / "README.md").read_text()
    assert "## Test set" not in card and "test" not in (run / "metrics.jsonl").read_text()
    found = evaluate(run, side="test")
    assert found.n == 25 and found.looks.lines() == ["test set looked at once"]
    after = (run / "best" / "README.md").read_text()
    assert (
        after.startswith(card.rstrip())
        and "Looked at once, with 1 model." in after
        and f"{found['accuracy']:.4g}" in after
    )
    assert not damage((run / "best").resolve()) and not damage((run / "last").resolve())
    with pytest.raises(UsageError, match="looked at once already"):
        evaluate(run, side="test", max_length=20)
    evaluate(run, side="test", max_length=20, look_again="lengths")
    again = (run / "last" / "README.md").read_text()
    assert again.count("## Test set") == 1 and "Looked at 2 times, with 1 model." in again and "lengths" in again


def test_the_ledger_outlives_the_run(run: Path) -> None:
    evaluate(run, side="test")
    moved = run.with_name("moved")
    shutil.copytree(run, moved, symlinks=True)
    shutil.rmtree(run)
    assert evaluate(moved, side="test").looks.to_dict()["count"] == 1  # the same model
    assert "Looked at once, with 1 model." in (moved / "best" / "README.md").read_text()
    with pytest.raises(UsageError, match="already"):
        evaluate(moved, side="test", max_length=9)


def test_a_look_with_another_model_is_in_the_cards_of_both(run: Path) -> None:
    evaluate(run, side="test")
    config = read_config(run / "config.yaml")
    other = train(replace(config, folder=str(run.with_name("other")), seed=9)).folder
    evaluate(other, side="test", look_again="another seed")
    for folder in (run, other):
        card = (folder / "best" / "README.md").read_text()
        assert "Looked at 2 times, with 2 models." in card and "Reason: another seed" in card
        assert f"{run.name} on test rows of {run.name}: accuracy" in card and not damage((folder / "best").resolve())


def test_a_run_without_a_model(run: Path) -> None:
    for name in ("best", "last"):
        (run / name).unlink()
    assert evaluate(run).n == 13  # by best.json, where links are not copied
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="which is not there"):
        evaluate(run)
    for name in ("best", "last"):
        (run / f"{name}.json").unlink()
    with pytest.raises(UsageError, match="has no model yet"):
        evaluate(run)


def test_a_temperature_is_fitted_on_validation_rows(run: Path) -> None:
    plain = evaluate(run)
    with pytest.raises(UsageError, match="no temperature is stored"):
        evaluate(run, temperature="stored")
    found = evaluate(run, calibrate="validation")
    assert found.calibration is not None and found.temperature == 1.0
    before, after = (each["nll"] for each in (found.calibration.before, found.calibration.after))
    assert before is not None and after is not None and after <= before == pytest.approx(plain["nll"])
    stored = json.loads((run / "best" / "calibration.json").read_text())
    assert stored["temperature"] == found.calibration.temperature and stored["n"] == 13
    warm = evaluate(run, temperature="stored")
    assert warm["nll"] == pytest.approx(found.calibration.after["nll"]) and warm["accuracy"] == plain["accuracy"]
    assert any("at temperature" in line for line in warm.lines())
    for side in ("test", "train"):
        with pytest.raises(UsageError, match="fitted on validation rows"):
            evaluate(run, calibrate=side)


def test_prefix_and_lengths_are_the_runs(tiny: Tiny, tmp_path: Path) -> None:
    for name, count in (("train", 12), ("dev", 5)):
        write_rows(
            tmp_path / f"{name}.jsonl", [{"text": t[:30], "summary": t[:5]} for t in texts(count, seed=len(name))]
        )
    config = {
        "objective": "seq2seq",
        "folder": str(tmp_path / "run"),
        "model": {"ref": str(tiny("text2text"))},
        "data": {
            **{
                side: {"path": str(tmp_path / f"{name}.jsonl")}
                for side, name in (("train", "train"), ("validation", "dev"))
            },
            "prefix": "short: ",
            "max_target_length": 7,
            "max_length": 50,
            "cache": str(tmp_path / "cache"),
        },
        "batches": {"size": 4},
        "length": {"steps": 2},
    }
    folder = train(config).folder
    found = evaluate(folder)
    assert (
        found.info["options"]["prefix"] == "short: " and found.info["options"]["max_new_tokens"] == 7 and found.n == 5
    )


def test_rows_that_have_changed_since_the_training(run: Path) -> None:
    data = json.loads((run / "data.json").read_text())
    data["sides"]["validation"]["rows"] = "0" * 32
    (run / "data.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"validation rows of .* no longer those that it was trained with"):
        evaluate(run)
    assert evaluate(run, side="train").n == 61


@pytest.mark.parametrize("text", ["{", '{"step": "a"}', '{"step": 99999}', "[]"])
def test_a_best_model_that_is_lost_is_not_replaced_by_the_last(run: Path, text: str) -> None:
    (run / "best").unlink()
    evaluate(run)
    (run / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json"):
        evaluate(run)
    with pytest.raises(CheckpointError, match=r"best\.json"):
        load(run)


def test_rows_of_train_and_validation_are_no_test_set(run: Path) -> None:
    for side in ("train", "validation", None):
        with pytest.raises(UsageError, match="are not a test set"):
            evaluate(run, side=side, test=True)


def test_a_part_of_the_test_rows_is_the_test_set(run: Path) -> None:
    assert evaluate(run, side="test", limit=20).n == 20
    assert evaluate(run, side="test").n == 25
    (look,) = Ledger().path.read_text().splitlines()  # of both
    assert json.loads(look)["run"] == str(run.resolve())


def test_an_evaluation_that_is_half_there(run: Path) -> None:
    (evaluate(run).folder / "evaluation.json").unlink()
    with pytest.raises(InputError, match=r"without its evaluation\.json"):
        evaluate(run)
