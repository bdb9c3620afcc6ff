"""Tensor parallel ranks compute what one process computes: losses, gradients, norms, steps. One launch walks all models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from plainformer.config.layout import Layout
from plainformer.model.transformer import Transformer
from plainformer.parallel.mesh import Mesh, start
from plainformer.parallel.sync import gradient_norm
from plainformer.parallel.tensor import add_up_gradients
from tests.support.ranks import run_ranks
from tests.support.shares import SHARED, config_of, inputs_of, loss_of, own_part, rows_of, whole
from tests.support.tensor_traps import TRAPS

LOSS, GRADIENT = 5e-6, 1e-5
LATER = 1e-4  # weights differ by the rounding of the steps before


def _far(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the scale of what is compared with."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max().clamp_min(1e-3))


def _check_gradients(name: str, model: Transformer, alone: Transformer, mesh: Mesh, within: float) -> None:
    assert model.local is not None
    theirs = dict(alone.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None)
    for own, parameter in model.named_parameters():
        part = model.local.part(own)
        wanted = theirs[part.name].grad
        if wanted is None:
            assert parameter.grad is None, (name, own)
            continue
        assert parameter.grad is not None, (name, own)
        far = (parameter.grad - rows_of(wanted, part)).abs().max()
        assert float(far) <= within * largest, (name, own, float(far), largest)
    norm = torch.stack([p.grad.norm() for p in theirs.values() if p.grad is not None]).norm()
    assert _far(gradient_norm(model, mesh), norm) < within, name


def _between(model: Transformer, step: int) -> None:
    """Do what someone may do between two steps: all of it must leave what ranks tell each other in place."""
    if step == 0:
        model.eval().train()
    elif step == 1:
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
        model.to(torch.float64).to(torch.float32)


MAKE: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda parameters: torch.optim.SGD(parameters, lr=0.01),  # which shows how long a gradient is
    lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
]


def _trains(name: str, mesh: Mesh, make: Callable[[Any], torch.optim.Optimizer]) -> None:
    config = config_of(name)
    inputs = inputs_of(config)
    alone = whole(config)
    model = own_part(alone, mesh)
    both: Any = (alone, model)
    optimizers = [make([p for p in each.parameters() if p.requires_grad]) for each in both]
    for step in range(3):
        losses = [loss_of(each, inputs) for each in both]
        assert _far(losses[1], losses[0]) < (LOSS if step == 0 else LATER), (name, step, losses)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
        add_up_gradients(model, mesh)
        _check_gradients(f"{name}, step {step}", model, alone, mesh, GRADIENT if step == 0 else LATER)
        for optimizer in optimizers:
            optimizer.step()
        _between(model, step)


def _walk(rank: int, tp: int, names: Collection[str], traps: Sequence[Callable[[Mesh], None]]) -> None:
    mesh = start(Layout(tp=tp))
    for trap in traps:
        trap(mesh)
    for number, name in enumerate(names):
        _trains(name, mesh, MAKE[(number + tp // 4) % 2])  # the other one on four ranks


def test_two_ranks_are_one_process() -> None:
    run_ranks(_walk, 2, 2, list(SHARED), TRAPS)


def test_four_ranks_with_two_key_value_heads_are_one_process() -> None:
    run_ranks(_walk, 4, 4, ["llama", "qwen3", "olmo2", "bert", "t5"], [])
