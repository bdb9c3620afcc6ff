"""What learning gave for each example, against a count by hand."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch

from plainformer.config.learning import LossConfig
from plainformer.train.history import History, learnt_below
from plainformer.train.objectives.base import Batch, Loss


def batch(*examples: int) -> Batch:
    return Batch({}, {}, len(examples), len(examples), examples)


def test_it_counts_as_by_hand() -> None:
    draw, count = random.Random(0), 7
    history = History(count, 0.5)
    seen: dict[int, list[tuple[int, float]]] = {i: [] for i in range(count)}
    for step in range(40):
        examples = draw.sample(range(count - 1), 3)
        losses = [draw.random() for _ in examples]
        loss = Loss(torch.tensor(losses))
        history.take(step, batch(*examples), loss)
        for example, value in zip(examples, losses, strict=True):
            seen[example].append((step, value))
        if step == 21:  # saved, and gone on with by another process
            saved, history = history.tensors(), History(count, 0.5)
            history.load(saved)
    history.settle()
    for example, lines in seen.items():
        learnt = [value < 0.5 for _, value in lines]
        assert history.forgotten[example] == sum(a and not b for a, b in itertools.pairwise(learnt))
        assert history.first[example] == next((step + 1 for step, value in lines if value < 0.5), 0)
        last = lines[-1][1] if lines else math.nan
        assert history.last[example] == pytest.approx(last, nan_ok=True)
    assert history.forgotten.sum() > 3


def test_a_row_of_several_labels_has_their_mean() -> None:
    history = History(3, 1.0)
    loss = Loss(torch.tensor([0.5, 1.0, 4.0]), torch.tensor([2, 1, 0]))
    history.take(0, batch(2, 0, 1), loss)
    history.settle()
    assert history.last.tolist() == [4.0, 0.0, 0.75] and history.first.tolist() == [0, 1, 1]


def test_nothing_is_kept_of_rows_of_several_examples() -> None:
    history = History(0, 1.0)
    history.take(0, batch(5), Loss(torch.tensor([1.0])))
    assert history.tensors() == {} and not history._waiting


@pytest.mark.parametrize(
    ("config", "loss_at_half"),
    [
        (LossConfig(), -math.log(0.5)),
        (LossConfig(kind="focal", gamma=3.0), -(0.5**3) * math.log(0.5)),
        (LossConfig(kind="gce", q=0.4), (1 - 0.5**0.4) / 0.4),
    ],
)
def test_learnt_is_more_than_half_of_the_probability(config: LossConfig, loss_at_half: float) -> None:
    assert learnt_below(config) == pytest.approx(loss_at_half)
    assert learnt_below(LossConfig(kind="huber")) is None
    assert np.isfinite(loss_at_half)
