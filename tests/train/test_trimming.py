"""Trimming: the examples of the highest loss are left out of a step, whatever its micro-batches, and written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import plainformer as pf
from plainformer.config.training import BatchConfig, LengthConfig, LossConfig
from plainformer.errors import UsageError
from plainformer.parallel.data import Gradients
from plainformer.parallel.sync import Ranks
from plainformer.train.history import History
from plainformer.train.loop import accumulate
from plainformer.train.objectives import objective_class
from plainformer.train.objectives.base import Arrays, Batch, Loss
from plainformer.train.plan import Plan, Step, make_plan
from plainformer.train.trimming import TRIMMED, Trimming, check_trimming, left_out
from tests.support import models
from tests.support.close import close
from tests.support.training import batch_of, examples_of, fresh, train_config

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran"]
ROWS = [{"text": " ".join(WORDS[: 2 + number % 6]), "label": f"LABEL_{number % 3}"} for number in range(8)]
TAGGED = [
    {"tokens": WORDS[: 2 + number], "tags": [f"LABEL_{(number + k) % 3}" for k in range(2 + number)]}
    for number in range(8)
]


def plan_of(size: int = 8, rows: int = 8, epochs: int = 3) -> Plan:
    return make_plan([5] * rows, BatchConfig(size=size), LengthConfig(epochs=epochs), 0, packs=False)


class Case:
    """A model, an objective, eight examples, and steps over them in any micro-batches."""

    def __init__(self, folder: Path, name: str, rows: Sequence[Any], head: str, **loss: Any) -> None:
        models.bert(folder, head, num_labels=3)
        kind = objective_class(name)
        self.folder, self.model = folder, fresh(pf.load_model(str(folder), head=kind.head, prepare=False)).double()
        self.config = train_config(name, loss={"trim": 0.3, "trim_after": 0, **loss})
        self.objective = kind(self.config, self.model.config, pf.load_tokenizer(str(folder)))
        self.examples: list[Arrays] = examples_of(self.objective, rows)

    def batches(self, sizes: Sequence[int]) -> list[Batch]:
        starts = np.cumsum([0, *sizes])[:-1].tolist()
        return [
            replace(batch_of(self.objective, self.examples[s : s + n], s), examples=tuple(range(s, s + n)))
            for s, n in zip(starts, sizes, strict=True)
        ]

    def run(self, loss: Any = None) -> Any:
        """As much of a run as a step looks at."""
        cpu = torch.device("cpu")
        trimming = Trimming(self.config.loss, plan_of(), self.folder, None)
        objective = SimpleNamespace(loss=loss or self.objective.loss)
        return SimpleNamespace(
            config=self.config,
            model=self.model,
            objective=objective,
            device=cpu,
            trimming=trimming,
            history=History(len(self.examples), None),
            autocast=nullcontext,
            here=lambda batch, model: batch,
            ranks=Ranks(),
            gradients=Gradients(),
            replicas=None,
            pipeline=None,
        )

    def gradient(self, sizes: Sequence[int], dropout: bool = False, run: Any = None) -> tuple[dict[str, Tensor], Any]:
        run = run or self.run()
        self.model.train(dropout)
        self.model.zero_grad()
        accumulate(run, Step(4, 0, ()), self.batches(sizes))
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}, run


@pytest.fixture(params=["text-classification", "token-classification"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "text-classification":
        return Case(tmp_path, request.param, ROWS, "BertForSequenceClassification")
    return Case(tmp_path, request.param, TAGGED, "BertForTokenClassification")


def test_a_step_is_that_of_the_examples_it_keeps(case: Case) -> None:
    """0.3 of 8 are 2: the two of the largest mean, found one at a time; the rest as a step of their own, without trimming."""
    with torch.no_grad():
        alone = [case.objective.loss(case.model.eval(), batch_of(case.objective, [one])) for one in case.examples]
    means = [float(loss.values.mean()) for loss in alone]
    worst = sorted(np.argsort(means)[-2:].tolist())
    found, run = case.gradient([8])
    run.trimming.flush()
    run.history.settle()
    assert run.history.last.tolist() == pytest.approx(means, rel=1e-6)  # of those that were left out, too
    assert [json.loads(line) for line in (case.folder / TRIMMED).read_text().splitlines()] == [
        {"step": 5, "examples": worst}
    ]
    assert run.trimming.counted() == sum(len(alone[number].values) for number in worst)
    case.examples = [one for number, one in enumerate(case.examples) if number not in worst]
    plain = case.run()
    plain.trimming = None
    expected, _ = case.gradient([6], run=plain)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        close(found[name], gradient, name, rel=1e-9)


@pytest.mark.parametrize("sizes", [[4, 4], [5, 3], [1, 7], [1] * 8], ids=str)
def test_it_does_not_depend_on_micro_batches(case: Case, sizes: list[int]) -> None:
    whole, run = case.gradient([8])
    found, again = case.gradient(sizes)
    assert found.keys() == whole.keys()
    for name, gradient in whole.items():
        close(found[name], gradient, name, rel=1e-9)
    for one in (run, again):
        one.trimming.flush()
    lines = (case.folder / TRIMMED).read_text().splitlines()
    assert lines[0] == lines[1] and run.trimming.left_out == again.trimming.left_out > 0


def test_dropout_is_the_same_in_both_passes(case: Case) -> None:
    seen: list[tuple[bool, Tensor]] = []

    def loss(model: Any, batch: Batch) -> Loss:
        found = case.objective.loss(model, batch)
        seen.append((torch.is_grad_enabled(), found.values.detach()))
        return found

    case.gradient([4, 4], dropout=True, run=case.run(loss))
    assert [graded for graded, _ in seen] == [False, False, True, True]
    for first, second in zip(seen[:2], seen[2:], strict=True):
        close(first[1], second[1], rel=1e-12)
    case.model.eval()
    plain = case.objective.loss(case.model, case.batches([4, 4])[0]).values.detach()
    assert not torch.allclose(plain, seen[0][1])  # it drops something
    seen.clear()
    case.gradient([8], dropout=True, run=case.run(loss))
    assert [graded for graded, _ in seen] == [True]  # one micro-batch runs once


def test_a_loss_that_is_not_finite_is_not_left_out(case: Case) -> None:
    """It would be the largest of all, and a run that goes wrong would never be seen to."""

    def loss(model: Any, batch: Batch) -> Loss:
        found = case.objective.loss(model, batch)
        return replace(found, values=found.values * torch.where(torch.arange(len(found.values)) == 0, torch.nan, 1.0))

    run = case.run(loss)
    assert not accumulate(run, Step(0, 0, ()), case.batches([8])).isfinite()


def test_it_begins_when_asked(tmp_path: Path) -> None:
    config, plan = LossConfig(trim=0.25, trim_after=0.5), plan_of(size=4, rows=32)
    assert [plan.steps_per_epoch, plan.total_steps] == [8, 24]
    trimming = Trimming(config, plan, tmp_path, None)
    assert [trimming.begun(step) for step in (0, 3, 4, 23)] == [False, False, True, True]
    check_trimming(config, plan)


@pytest.mark.parametrize(("share", "rows", "count"), [(0.3, 10, 3), (0.29, 100, 29), (0.3, 3, 0), (0.99, 8, 7)])
def test_a_share_is_rounded_down(share: float, rows: int, count: int) -> None:
    assert left_out(share, rows) == count


def test_what_would_never_leave_anything_out_is_refused() -> None:
    with pytest.raises(UsageError, match=r"loss.trim.+0.3 has no effect: it begins after loss.trim_after.+3 epochs"):
        check_trimming(LossConfig(trim=0.3, trim_after=3), plan_of())
    with pytest.raises(UsageError, match=r"loss.trim.+0.1 has no effect: of 8 rows a step leaves out none"):
        check_trimming(LossConfig(trim=0.1), plan_of())
    check_trimming(LossConfig(), plan_of(epochs=1))


def test_nothing_waits_for_a_gpu(tmp_path: Path) -> None:
    """On the meta device, whose tensors have no values, each look at one is an error: on a GPU it would be a wait."""
    away = torch.device("meta")
    trimming = Trimming(LossConfig(trim=0.3, trim_after=0), plan_of(), tmp_path, None)
    losses = [Loss(torch.ones(6, device=away), torch.ones(4, device=away, dtype=torch.int64)) for _ in range(2)]
    batches = [Batch({}, {}, 6, 6, (0, 1, 2, 3)), Batch({}, {}, 6, 6, (4, 5, 6, 7))]
    kept = trimming.choose(Step(0, 0, ()), [batch.examples for batch in batches], losses)
    assert (losses[1].of_rows(kept.rows[1]) / kept.labels).shape == ()
    trimming.close()
