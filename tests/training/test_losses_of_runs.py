"""What the evaluations of real runs leave of each example, and the verdict on these runs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plainformer as pf
from plainformer.train.checkpoint import damage
from plainformer.train.example_losses import read_losses
from plainformer.train.feeder import VALIDATION, collated
from plainformer.train.plots import draw_plots
from plainformer.train.record import evaluations, read_lines
from plainformer.training import TrainResult, prepare, train
from plainformer.training.card import tell_best
from tests.support.cli import Cli
from tests.support.runs import WORDS, labelled, results, run_config, texts, write_rows

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def shuffled(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A classifier that can only learn its rows by heart: labels are drawn by chance."""
    folder, draw = tmp_path_factory.mktemp("shuffled"), random.Random(0)
    rows = [{"text": " ".join(draw.choices(WORDS, k=8)), "label": draw.choice(("yes", "no"))} for _ in range(420)]
    config = run_config(
        folder,
        "text-classification",
        tiny("text-classification"),
        data={
            "train": {"path": str(write_rows(folder / "drawn.jsonl", rows[:120]))},
            "validation": {"path": str(write_rows(folder / "held_out.jsonl", rows[120:]))},
        },
        batches={"size": 12, "micro": 12},
        length={"epochs": 24, "steps": None},
        optimizer={"learning_rate": 1e-2},
        schedule={"kind": "constant"},
        evaluate={"every": 30, "batch_size": 60, "patience": 0},
        checkpoints={"every": 240},
    )
    return train(replace(config, model=replace(config.model, dropout=0.0)))


def test_labels_by_chance_are_learnt_by_heart(shuffled: TrainResult) -> None:
    found = pf.verdict(shuffled.folder)
    assert found.kind == "overfitting" and found.n > 100, str(found)
    assert shuffled.verdict == json.loads((shuffled.folder / "verdict.json").read_text())
    assert shuffled.verdict is not None and shuffled.verdict["sentence"] == str(found)
    assert str(found) in (shuffled.folder / "last" / "README.md").read_text()
    best = shuffled.folder / "best"
    assert best.resolve() != (shuffled.folder / "last").resolve() and not damage(best.resolve())
    card = (best / "README.md").read_text()
    assert card.count(f"Overfitting: {found}. This is of the whole run") == 1
    tell_best(shuffled.folder)
    assert (best / "README.md").read_text() == card
    assert found.metric["name"] == "accuracy" and found.metric["gap"]["interval"][0] <= found.metric["gap"]["value"]


def test_it_is_printed_and_drawn(shuffled: TrainResult, cli: Cli) -> None:
    told = cli("train", "--verdict", shuffled.folder)
    assert told.code == 0 and told.out.startswith("overfitting since evaluation ")
    (found,) = cli("train", "--verdict", shuffled.folder, "--json").json()
    assert found == shuffled.verdict
    refused = cli("train", "run.yaml", "--verdict", shuffled.folder)
    assert refused.code == 2
    none = cli("train", "--verdict", "nowhere")
    assert none.code == 2 and "is not the folder of a run" in none.err
    drawn = {path.name: path for path in draw_plots(shuffled.folder)}
    with_mark = drawn["loss.png"].read_bytes()
    (shuffled.folder / "verdict.json").rename(shuffled.folder / "hidden")
    try:
        draw_plots(shuffled.folder)
        assert drawn["loss.png"].read_bytes() != with_mark
    finally:
        (shuffled.folder / "hidden").rename(shuffled.folder / "verdict.json")


def test_a_language_model_of_one_pass_never_overfits(tiny: Tiny, tmp_path: Path) -> None:
    config = run_config(
        tmp_path,
        "causal-lm",
        tiny("text-generation"),
        data={"train": {"path": str(write_rows(tmp_path / "many.jsonl", labelled(texts(300))))}},
        length={"epochs": 1, "steps": None},
        evaluate={"every": 5},
    )
    assert config.evaluate.probe
    data = write_rows(tmp_path / "more.jsonl", labelled(texts(40, seed=1)))
    config = replace(config, data=replace(config.data, validation=replace(config.data.train, path=str(data))))
    assert pf.verdict(train(config).folder).kind in ("still improving", "flat", "not enough evidence")


@pytest.mark.parametrize("objective", ["causal-lm", "text-classification"])
def test_losses_are_those_of_the_metrics(tiny: Tiny, tmp_path: Path, objective: str) -> None:
    """Long documents are cut into rows; what is kept is of whole ones, and its mean is the loss in metrics.jsonl."""
    model = {"causal-lm": "text-generation"}.get(objective, objective)
    changes: dict[str, Any] = {"batches": {"size": 6, "micro": 6, "row_length": 9}} if objective == "causal-lm" else {}
    config = run_config(tmp_path, objective, tiny(model), length={"steps": 14}, **changes)
    folder = train(config).folder
    lines = evaluations(folder)
    found = read_losses(folder, [line["step"] for line in lines])
    for side, name in (("validation", "validation"), ("probe", "probe")):
        of_side = found[side]
        means = (of_side.losses * of_side.labels).sum(1) / of_side.labels.sum()
        assert means == pytest.approx([line[name]["loss"] for line in lines], rel=1e-6)
    prepared = prepare(config)
    assert prepared.validation is not None
    assert found["validation"].examples.tolist() == list(range(len(prepared.validation)))
    assert sum(map(len, prepared.probe)) == sum(map(len, prepared.evaluation))
    (gap,) = {line["gap"]["metric"] for line in lines}
    assert gap == prepared.metric.name
    line = lines[-1]
    assert line["gap"]["value"] == pytest.approx(line["probe"][gap] - line["validation"][gap])


def test_each_loss_is_that_of_its_example(tiny: Tiny, tmp_path: Path) -> None:
    """The last evaluation is of the last model, which scores each row of the probe alone."""
    config = run_config(tmp_path, "text-classification", tiny("text-classification"), length={"steps": 7})
    folder = train(config).folder
    prepared, model = prepare(config), pf.load_model(folder / "last", head="sequence", prepare=False)
    found = read_losses(folder, [7])["probe"]
    objective = prepared.objective
    for place in (0, len(found.examples) // 2, -1):
        rows = next((row,) for batch in prepared.probe for row in batch if row[0].example == found.examples[place])
        batch = collated(objective, prepared.examples, rows, 0, VALIDATION)
        with torch.no_grad():
            assert objective.statistics(model, batch)[0, 0] == pytest.approx(found.losses[0, place], rel=1e-4)


def test_without_a_probe_or_validation(tiny: Tiny, tmp_path: Path) -> None:
    config = run_config(tmp_path, "causal-lm", tiny("text-generation"), length={"steps": 14})
    folder = train(replace(config, evaluate=replace(config.evaluate, probe=False))).folder
    line = evaluations(folder)[0]
    assert "probe" not in line and "gap" not in line and set(read_losses(folder, [7])) == {"validation"}
    usual = type(config.evaluate)()
    data = replace(config.data, validation=None)
    alone = replace(config, folder=str(tmp_path / "alone"), data=data, evaluate=usual)
    result = train(alone)
    assert result.verdict is None and not (result.folder / "losses").exists()


def test_an_interrupted_run_has_the_same_files(tiny: Tiny, tmp_path: Path) -> None:
    """Stopped after an evaluation that no checkpoint knows of: its files are removed, and written again."""
    config = run_config(tmp_path, "causal-lm", tiny("text-generation"), checkpoints={"every": 10})
    whole = results(train(config).folder)
    again = replace(config, folder=str(tmp_path / "again" / "run"))
    calls: list[int] = []

    def broken(event: pf.training.Event) -> None:
        if event.kind == "evaluated":
            calls.append(event.values["step"])
            if event.values["step"] == 14:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(again, on_event=broken)
    folder = Path(again.folder)
    assert (folder / "losses" / "step-00000014.npz").is_file() and len(read_lines(folder / "metrics.jsonl")) > 3
    (folder / "losses" / ".tmp-step-00000021.npz").write_bytes(b"half")
    train(again)
    assert results(folder) == whole
    files = {path.name for path in (folder / "losses").iterdir()}
    assert files == {"examples.npz", *(f"step-{step:08d}.npz" for step in (0, 7, 14, 21, 28))}
    assert np.load(folder / "losses" / "step-00000007.npz")["validation"].dtype == np.float32


def test_examples_are_listed(shuffled: TrainResult) -> None:
    """Each row of train by its place; all are seen in each of 24 passes, and most are learnt by heart."""
    lines = read_lines(shuffled.folder / "examples.jsonl")
    assert [line["index"] for line in lines] == list(range(120))
    assert lines[3]["place"] == "drawn.jsonl line 4" and len(lines[3]["key"]) == 32
    assert {line["times"] for line in lines} == {24}
    assert all(line["last_loss"] > 0 for line in lines)
    learnt = [line for line in lines if line["first_learnt"] is not None]
    assert len(learnt) > 100 and sum(line["last_loss"] < np.log(2) for line in lines) > 80
    assert any(line["forgotten"] for line in lines)


def test_packed_rows_are_listed_without_losses(tiny: Tiny, tmp_path: Path) -> None:
    config = run_config(tmp_path, "causal-lm", tiny("text-generation"), length={"steps": 3})
    lines = read_lines(train(config).folder / "examples.jsonl")
    assert len(lines) == 61 and {line["last_loss"] for line in lines} == {None}
    assert {line["times"] for line in lines} <= {0, 1, 2, 3}
