"""From the first bad step on, the fused optimizer changes nothing, until somebody looks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from plainformer.errors import TrainingError
from plainformer.train.finite import STOPPED, Finite
from plainformer.train.plan import Piece, Step

PLANNED = ((Piece(4),), (Piece(2, 3), Piece(9)))


def test_weights_stay_as_they_were_before_the_first_bad_step(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    finite = Finite(optimizer, torch.device("cpu"))
    finite.at_once, optimizer.found_inf = False, finite.bad  # type: ignore[attr-defined]  # as on a GPU
    states = []
    for step, norm in enumerate((1.0, float("inf"), 1.0, float("nan"))):
        weight.grad = torch.full((3,), norm)
        finite.watch(step, torch.tensor(2.0), torch.tensor(norm))
        optimizer.step()
        states.append((weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()))
    assert not torch.equal(states[0][0], torch.ones(3))
    for weights, momentum in states[1:]:
        assert torch.equal(weights, states[0][0]) and torch.equal(momentum, states[0][1])
    with pytest.raises(TrainingError, match="step 2: the loss or its gradient is not finite"):
        finite.check(tmp_path, lambda step: Step(step, 7, (PLANNED, PLANNED)))
    about = json.loads((tmp_path / STOPPED).read_text())
    assert about["step"] == 2 and about["epoch"] == 8 and about["examples"] == [2, 4, 9]


def test_a_loss_may_be_bad_with_a_finite_gradient(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    finite = Finite(torch.optim.AdamW([weight], fused=True), torch.device("cpu"))
    finite.watch(0, torch.tensor(1.0), torch.tensor(1.0))
    finite.check(tmp_path, lambda step: Step(step, 0, ()))
    finite.watch(1, torch.tensor(float("-inf")), torch.tensor(1.0))
    with pytest.raises(TrainingError):
        finite.check(tmp_path, lambda step: Step(step, 0, (PLANNED,)))
