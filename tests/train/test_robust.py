"""Robust losses: the papers' formulas, cross entropy in the limit, derivatives of finite differences, finite everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plainformer.config.training import LossConfig
from plainformer.train.losses import binary_losses, huber_losses, label_losses, squared_losses, word_losses
from plainformer.train.robust import Robust, robust_of
from tests.support.close import close
from tests.support.training import word_model

SIZE, WORDS, LABELS = 12, 40, 17
KINDS = [("focal", 0.5), ("focal", 1.0), ("focal", 2.0), ("focal", 5.0), ("gce", 0.1), ("gce", 0.7), ("gce", 1.0)]


def formula(kind: str, strength: float, p: Tensor) -> Tensor:
    """As the papers write it, of the probability of the label."""
    return -((1 - p) ** strength) * p.log() if kind == "focal" else (1 - p**strength) / strength


def scores(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype) * 2


@pytest.mark.parametrize(("kind", "strength"), KINDS)
def test_losses_are_the_papers(kind: str, strength: float) -> None:
    logits, labels, robust = scores(9, 5), torch.arange(9) % 5, Robust(kind, strength)
    p = logits.softmax(-1).gather(-1, labels[:, None])[:, 0]
    close(label_losses(logits, labels, robust=robust), formula(kind, strength, p), rel=1e-12)
    targets = (scores(9, 5) > 0.3).double()
    p = torch.where(targets > 0, logits.sigmoid(), 1 - logits.sigmoid())
    close(binary_losses(logits, targets, robust), formula(kind, strength, p).mean(-1), rel=1e-12)


@pytest.mark.parametrize("robust", [Robust("focal", 0.0), Robust("focal", 1e-7), Robust("gce", 1e-8)], ids=str)
def test_in_the_limit_they_are_cross_entropy(robust: Robust) -> None:
    logits, labels = scores(50, 7).requires_grad_(), torch.arange(50) % 7
    ours, plain = label_losses(logits, labels, robust=robust), label_losses(logits, labels)
    close(ours, plain, rel=1e-5)
    found, expected = (torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, plain))
    close(found, expected, rel=1e-5)
    targets = (scores(50, 7) > 0).double()
    close(binary_losses(logits, targets, robust), binary_losses(logits, targets), rel=1e-5)


@pytest.mark.parametrize(("kind", "strength"), KINDS)
def test_gradients_are_those_of_finite_differences(kind: str, strength: float) -> None:
    robust, labels = Robust(kind, strength), torch.arange(6) % 4
    logits = scores(6, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: label_losses(x, labels, robust=robust), logits)
    targets = (scores(6, 4) > 0).double()
    assert torch.autograd.gradcheck(lambda x: binary_losses(x, targets, robust), logits)


def test_hubers_gradient_and_its_limits() -> None:
    predicted, targets = scores(8, 3).requires_grad_(), scores(8, 3).flip(0)
    assert torch.autograd.gradcheck(lambda x: huber_losses(x, targets, 0.7), predicted)
    close(huber_losses(predicted, targets, 1e6), squared_losses(predicted, targets) / 2, rel=1e-9)
    far = (predicted - targets).abs()
    expected = torch.where(far <= 0.7, far**2 / 2, 0.7 * (far - 0.35)).mean(-1)
    close(huber_losses(predicted, targets, 0.7), expected, rel=1e-12)
    close(huber_losses(predicted[:, :1], targets[:, 0], 0.7), huber_losses(predicted[:, :1], targets[:, :1], 0.7))


@pytest.mark.parametrize(("kind", "strength"), [*KINDS, ("focal", 1e-6), ("gce", 1e-6)])
def test_they_are_finite_however_sure_the_model_is(kind: str, strength: float) -> None:
    robust = Robust(kind, strength)
    values = torch.tensor([0.0, 1e-38, 1e-9, 1e-3, 30, 90, 120, 1e4, 1e30])
    logits = torch.cat((torch.stack((values, -values), -1), torch.stack((-values, values), -1))).requires_grad_()
    zeros = torch.zeros(len(logits), dtype=torch.long)
    for loss in (label_losses(logits, zeros, robust=robust), binary_losses(logits, F.one_hot(zeros, 2), robust)):
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all() and gradient.isfinite().all()
        assert (loss >= 0).all() and loss.dtype == torch.float32
    if kind == "gce":
        assert float(label_losses(logits, zeros, robust=robust).detach().max()) <= (1 + 1e-6) / strength


@pytest.mark.parametrize("chunk", [None, 0, 5])
@pytest.mark.parametrize("head", ["bias", "softcap"])
@pytest.mark.parametrize("robust", [Robust("focal", 2.0), Robust("gce", 0.7)], ids=str)
def test_words_have_the_same_losses_and_gradients(robust: Robust, head: str, chunk: int | None) -> None:
    """Where scores exist a chunk at a time, and the gradient is made with them; and where each label has a weight."""
    options: dict[str, Any] = {"softcap": 2.0} if head == "softcap" else {}
    model, states = word_model(WORDS, SIZE, **options), scores(LABELS, SIZE, dtype=torch.float32).requires_grad_()
    labels, weights = torch.arange(LABELS) * 7 % WORDS, torch.linspace(0, 2, LABELS)
    whole = robust(F.cross_entropy(model.score(states), labels, reduction="none"))
    ours = word_losses(model, states, labels, 0.0, chunk, robust)
    close(ours, whole, rel=1e-6)
    for of in (lambda losses: losses.sum(), lambda losses: (losses * weights).sum()):
        parts = [states, *model.head.parameters()]
        expected = torch.autograd.grad(of(whole), parts, retain_graph=True)
        found = torch.autograd.grad(of(word_losses(model, states, labels, 0.0, chunk, robust)), parts)
        for mine, theirs in zip(found, expected, strict=True):
            close(mine, theirs, rel=1e-6)
    with torch.no_grad():
        close(word_losses(model, states, labels, 0.0, chunk, robust), whole, rel=1e-6)


def test_a_configuration_says_which() -> None:
    assert robust_of(LossConfig()) is None and robust_of(LossConfig(kind="huber")) is None
    assert robust_of(LossConfig(kind="focal")) == Robust("focal", 2.0)
    assert robust_of(LossConfig(kind="gce", q=0.5)) == Robust("gce", 0.5)
