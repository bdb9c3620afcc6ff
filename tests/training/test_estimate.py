"""What a run needs, counted before anything is loaded, against the model that is made then and the step that it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plainformer.config.building import as_config
from plainformer.plan.devices import of_size
from plainformer.train.feeder import collated
from plainformer.train.optimizer import make_optimizer
from plainformer.training import estimate, prepare
from plainformer.training.estimate import largest, needs_of
from plainformer.training.models import made_model
from tests.support.memory import peak_bytes
from tests.support.runs import run_config, run_data

Tiny = Callable[[str], Path]
WAYS: dict[str, dict[str, Any]] = {
    "all": {},
    "head": {"train": "head"},
    "lora": {"lora": {"rank": 2}},
    "all-linear": {"lora": {"rank": 3, "targets": ["all-linear"], "merge": True}},
}
# Two micro-batches; rows of one document each, since a packed row has fewer labels than positions.
BATCHES = {"causal-lm": {"size": 8, "packed": False}, "text-classification": {"size": 8}, "seq2seq": {"size": 8}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("objective", ["causal-lm", "text-classification"])
def test_parameters_are_those_of_the_model(objective: str, way: str, tiny: Tiny, tmp_path: Path) -> None:
    if (objective, way) == ("causal-lm", "head"):
        pytest.skip("its head is tied to the words")
    name = {"causal-lm": "text-generation", "text-classification": "text-classification"}[objective]
    data = run_data(tmp_path, objective, tiny(name))
    prepared = prepare(as_config({**data, "model": {**data["model"], **WAYS[way]}}))
    needs = needs_of(prepared)
    model, _ = made_model(prepared.config, prepared.start, type(prepared.objective), None)
    parameters = list(model.parameters())
    assert needs.parameters == sum(one.numel() for one in parameters)
    assert needs.trained == sum(one.numel() for one in parameters if one.requires_grad)
    base = sum(one.numel() for name, one in model.named_parameters() if ".adapter." not in name)
    saved = needs.trained if way == "lora" else base
    assert 0 <= needs.checkpoint - 4 * (saved + 2 * needs.trained) < 4000  # what is known of each example


@pytest.mark.parametrize("objective", ["causal-lm", "text-classification", "seq2seq"])
def test_memory_is_what_the_largest_step_takes(objective: str, tiny: Tiny, tmp_path: Path) -> None:
    names = {"causal-lm": "text-generation", "seq2seq": "text2text"}
    config = run_config(tmp_path, objective, tiny(names.get(objective, objective)), batches=BATCHES[objective])
    prepared = prepare(config)
    needs = needs_of(prepared)
    model, _ = made_model(prepared.config, prepared.start, type(prepared.objective), None)
    held = sum(parameter.nbytes for parameter in model.parameters())
    optimizer = make_optimizer(model, prepared.config.optimizer, 1e-5)
    batch = collated(prepared.objective, prepared.examples, largest(prepared.plan), 0, 0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for _ in range(2):  # micro-batches: the second finds gradients
            prepared.objective.loss(model, batch).total.backward()
        optimizer.step()

    step()
    states = sum(
        tensor.nbytes for state in optimizer.state.values() for tensor in state.values() if hasattr(tensor, "nbytes")
    )
    optimizer.zero_grad(set_to_none=True)
    assert needs.step.peak == pytest.approx(held + states + peak_bytes(step), rel=0.05)


def test_what_is_not_available_is_said(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plainformer.cli.prepared import remembered

    prepared = prepare(run_config(tmp_path, "causal-lm", tiny("text-generation")))
    assert "available" not in remembered(needs_of(prepared).step)
    monkeypatch.setattr(estimate, "room", lambda config, count: of_size(10_000))
    assert "only 10 kB are available" in remembered(needs_of(prepared).step)
