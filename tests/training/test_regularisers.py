"""Each way to regularise changes what it should, and only that. CASES is the list; the run without any is the measure.

What none of them may change: what evaluation finds before the first step, and what each step learns from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import plainformer as pf
from plainformer.config.building import build, read_config
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Written
from plainformer.errors import UsageError
from plainformer.train.feeder import collated
from plainformer.train.objectives import objective_class
from plainformer.train.record import read_lines
from plainformer.train.robust import Robust
from plainformer.train.trimming import TRIMMED
from plainformer.training import prepare, train
from plainformer.training.models import made_model
from tests.support.close import close
from tests.support.learning import config_of, rows_of
from tests.support.runs import run_data
from tests.support.scratch import RUNS
from tests.support.vocabularies import save_json

Tiny = Callable[[str], Path]
STEPS, TRIMS_FROM, RATE = 3, 3, 1e-3


@dataclass(frozen=True)
class Case:
    """A regulariser.

    Attributes:
        options: of the run.
        first: what of the run it changes first: "loss", of step 1; "weights", after step 1; or "later", from step
            TRIMS_FROM on. All that comes before is the same to the bit.
        rule: of the weights after step 1: how a matrix of a linear layer comes of the one without it and of the first; what is
            not a matrix, and with `tables` False an embedding, is the same to the bit.
    """

    first: str
    options: dict[str, Any] = field(default_factory=dict)
    rule: Callable[[Tensor, Tensor], Tensor] | None = None
    tables: bool = True


CASES: dict[str, Case] = {
    "weight decay": Case(
        "weights", {"optimizer": {"weight_decay": 5.0}}, rule=lambda plain, start: plain - RATE * 5.0 * start
    ),
    "L1": Case(
        "weights",
        {"optimizer": {"l1": 4.0}},
        rule=lambda plain, start: plain.sign() * (plain.abs() - RATE * 4.0).clamp_min(0),
        tables=False,
    ),
    "dropout": Case("loss", {"model": {"dropout": 0.3}}),
    "label smoothing": Case("loss", {"loss": {"label_smoothing": 0.2}}),
    "focal": Case("loss", {"loss": {"kind": "focal"}}),
    "generalised cross entropy": Case("loss", {"loss": {"kind": "gce"}}),
    "noise on embeddings": Case("loss", {"augment": {"embedding_noise": 20.0}}),
    "trimming": Case("later", {"loss": {"trim": 0.35, "trim_after": 0.18}}),  # of 11 steps an epoch: from the third
}


@dataclass(frozen=True)
class Done:
    """A run: what it wrote, and its folder."""

    lines: list[dict[str, Any]]
    folder: Path

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "loss" in line]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "validation" in line]

    def weights(self, step: int) -> dict[str, Tensor]:
        model = pf.load_model(self.folder / "checkpoints" / f"step-{step:08d}", prepare=False, backend="plain")
        return dict(model.named_parameters())


def config_for(folder: Path, tiny: Tiny, **options: Any) -> TrainConfig:
    """Three steps on classified texts, all of which are evaluated and saved."""
    base: dict[str, Any] = {
        "model": {"ref": str(tiny("fill-mask")), "dropout": 0.0},
        "batches": {"size": 6},
        "length": {"steps": STEPS},
        "optimizer": {"learning_rate": RATE, "weight_decay": 0.0},
        "schedule": {"kind": "constant", "warmup": 0},
        "evaluate": {"every": 1, "batch_size": 13},
        "checkpoints": {"every": 1, "keep": 9},
        "log_every": 1,
    }
    for section, values in options.items():
        base[section] = {**base.get(section, {}), **values}
    return build(TrainConfig, Written(run_data(folder, "text-classification", tiny("fill-mask"), **base)))


def made(folder: Path, tiny: Tiny, **options: Any) -> Done:
    result = train(config_for(folder, tiny, **options))
    return Done(read_lines(result.folder / "metrics.jsonl"), result.folder)


@pytest.fixture(scope="module")
def plain(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return made(tmp_path_factory.mktemp("plain"), tiny)


@pytest.mark.parametrize("name", CASES)
def test_it_changes_what_it_should_and_only_that(name: str, plain: Done, tiny: Tiny, tmp_path: Path) -> None:
    case, done = CASES[name], made(tmp_path, tiny, **CASES[name].options)
    assert done.evaluations[0] == plain.evaluations[0]
    for ours, theirs in zip(done.steps, plain.steps, strict=True):
        assert ours["tokens"] == theirs["tokens"] and ours["learning_rate"] == theirs["learning_rate"]
        left_out = 2 if case.first == "later" and ours["step"] >= TRIMS_FROM else 0
        assert ours["labels"] == theirs["labels"] - left_out
    assert done.lines[-1] != plain.lines[-1]
    if case.first == "loss":
        assert done.steps[0]["loss"] != plain.steps[0]["loss"]
    elif case.first == "weights":
        assert done.steps[0] == plain.steps[0]
        check_weights(case, done, plain)
    else:
        before = [line for line in plain.lines if line["step"] < TRIMS_FROM]
        assert done.lines[: len(before)] == before
        assert done.steps[TRIMS_FROM - 1]["loss"] < plain.steps[TRIMS_FROM - 1]["loss"]
        assert [line["step"] for line in read_lines(done.folder / TRIMMED)] == list(range(TRIMS_FROM, STEPS + 1))
    assert (done.folder / TRIMMED).exists() == (case.first == "later")


def check_weights(case: Case, done: Done, plain: Done) -> None:
    """The same but for matrices, which follow the rule."""
    assert case.rule is not None
    ours, theirs, seen = done.weights(1), plain.weights(1), set()
    prepared = prepare(read_config(plain.folder / "config.yaml"))
    kind = objective_class("text-classification")
    start = dict(made_model(prepared.config, prepared.start, kind, None)[0].named_parameters())
    for name, weight in theirs.items():
        table = "frontend" in name
        if weight.ndim > 1 and (case.tables or not table):
            close(ours[name], case.rule(weight.detach(), start[name].detach()), name, rel=1e-6)
            assert not torch.equal(ours[name], weight)
            seen.add("table" if table else "matrix")
        else:
            assert torch.equal(ours[name], weight), name
            seen.add("other")
    assert seen == ({"table", "matrix", "other"} if case.tables else {"matrix", "other"})


def test_early_stopping_changes_where_a_run_ends(tiny: Tiny, tmp_path: Path) -> None:
    """The run that goes on has the same lines up to there; and it would have ended there, by its own evaluations."""
    options: dict[str, Any] = {
        "length": {"steps": 14},
        "optimizer": {"learning_rate": 0.3},
        "checkpoints": {"every": 14},
        "evaluate": {"metric": "loss"},
    }
    through = made(tmp_path / "through", tiny, **options)
    options["evaluate"] = {"metric": "loss", "patience": 2}
    ended = made(tmp_path / "ended", tiny, **options)
    assert 3 <= len(ended.steps) < len(through.steps) == 14
    assert ended.lines == through.lines[: len(ended.lines)]
    better = [line["best"] for line in ended.evaluations[1:]]
    assert better[-2:] == [False, False] and all(any(better[k : k + 2]) for k in range(len(better) - 2))


# ---- numbers


NUMBERS = {"model": {"problem": "regression"}}


def test_hubers_loss_is_half_the_usual_one_where_differences_are_small(tiny: Tiny, tmp_path: Path) -> None:
    losses = {}
    for delta in (None, 1e6, 0.1):
        loss = {} if delta is None else {"kind": "huber", "delta": delta}
        config = config_for(tmp_path / str(delta), tiny, loss=loss, **NUMBERS)
        rows = tmp_path / "numbers.jsonl"
        rows.write_text("".join(f'{{"text": "the cat {n}", "label": {n / 7}}}\n' for n in range(24)))
        source = replace(config.data.train, path=str(rows))
        result = train(replace(config, data=replace(config.data, train=source, validation=source, duplicates="allow")))
        losses[delta] = Done(read_lines(result.folder / "metrics.jsonl"), result.folder)
    usual, wide, narrow = losses[None], losses[1e6], losses[0.1]
    assert wide.steps[0]["loss"] == pytest.approx(usual.steps[0]["loss"] / 2, rel=1e-6)
    assert narrow.steps[0]["loss"] < 0.5 * wide.steps[0]["loss"]
    assert usual.evaluations[0] == wide.evaluations[0] == narrow.evaluations[0]


# ---- every objective


@pytest.mark.parametrize("name", [name for name in RUNS if name != "ctc"])
def test_a_robust_loss_is_one_of_each_label_and_of_training_alone(name: str, tmp_path: Path) -> None:
    fragment, save, own = RUNS[name]
    save(tmp_path / "inputs")
    save_json(tmp_path / "inputs", "config.json", fragment)
    model = {"config": fragment, "tokenizer": str(tmp_path / "inputs")}
    loss = {key: value for key, value in own.get("loss", {}).items() if key != "label_smoothing"}
    source = rows_of(tmp_path, name)
    config = config_of(tmp_path, name, source, **{**own, "model": model, "loss": loss})
    prepared = prepare(config)
    network, _ = made_model(prepared.config, prepared.start, objective_class(name), None)
    robust = Robust("gce", 0.7)
    changed = replace(prepared.config, loss=replace(prepared.config.loss, kind="gce"))
    other = objective_class(name)(changed, network.config, prepared.start.processor)
    batch = collated(prepared.objective, prepared.examples, prepared.plan.step(0).micro[0], 0, 0)
    network.eval()
    usual, found = prepared.objective.loss(network, batch), other.loss(network, batch)
    if name == "question-answering":  # the mean of both ends
        assert not torch.allclose(found.values, usual.values) and (found.values < 1 / 0.7).all()
    else:
        close(found.values, robust.values(usual.values), rel=1e-5)
    assert (other.statistics(network, batch) == prepared.objective.statistics(network, batch)).all()


# ---- what cannot be


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"loss": {"gamma": 3.0}}, "loss.gamma has no effect without loss.kind='focal'"),
        ({"loss": {"kind": "focal", "q": 0.3}}, "loss.q has no effect without loss.kind='gce'"),
        ({"loss": {"kind": "gce", "delta": 0.3}}, "loss.delta has no effect without loss.kind='huber'"),
        ({"loss": {"trim_after": 2.0}}, "loss.trim_after has no effect without loss.trim"),
        ({"loss": {"kind": "gce", "label_smoothing": 0.1}}, "loss.kind='gce' is made of the label's own probability"),
        ({"objective": "ctc", "loss": {"kind": "gce"}}, "loss.kind='gce' cannot be with objective='ctc'"),
        ({"objective": "masked-lm", "loss": {"kind": "huber"}}, "loss.kind='huber' cannot be with objective="),
        ({"model": {"problem": "regression"}, "loss": {"kind": "focal"}}, "loss.kind='focal' cannot be with"),
        ({"model": {"problem": "single_label"}, "loss": {"kind": "huber"}}, "loss.kind='huber' cannot be with"),
        ({"objective": "causal-lm", "loss": {"trim": 0.3}}, "loss.trim=0.3 leaves out whole rows, and a packed row"),
        ({"objective": "image-classification", "augment": {"embedding_noise": 5}}, "augment.embedding_noise has no"),
        ({"objective": "speech-to-text", "augment": {"embedding_noise": 5}}, "augment.embedding_noise has no effect"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(options: dict[str, Any], what: str) -> None:
    data = {"train": {"path": "rows.jsonl"}}
    found = {"objective": "text-classification", "folder": "run", "model": {}, "data": data, **options}
    with pytest.raises(UsageError) as caught:
        build(TrainConfig, Written({**found, "model": {"ref": "model", **found["model"]}}))
    assert caught.value.what.startswith(what)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"loss": {"kind": "huber"}}, "cannot be: the problem is single label"),
        ({"model": {"problem": "multi_label"}, "loss": {"label_smoothing": 0.1}}, "has no effect where the problem is"),
        ({"loss": {"trim": 0.3}}, "it begins after"),
        ({"loss": {"trim": 0.1, "trim_after": 0}}, "of 6 rows a step leaves out none"),
    ],
    ids=str,
)
def test_what_labels_and_rows_forbid_is_refused(options: dict[str, Any], what: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=what):
        prepare(config_for(tmp_path, tiny, **options))
