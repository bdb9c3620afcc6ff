"""What a run needs of memory and disk, against what PyTorch says that it takes."""

from __future__ import annotations

import torch
from safetensors.torch import save

from plainformer.config.building import as_config
from plainformer.config.training import TrainConfig
from plainformer.train.needs import activation_bytes, needs


def config(**more: object) -> TrainConfig:
    return as_config(
        {"objective": "ctc", "folder": "x", "model": {"ref": "x"}, "data": {"train": {"path": "x"}}, **more}
    )


def test_what_is_counted_is_what_is_there() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64, bias=False), torch.nn.LayerNorm(64))
    model[1].weight = model[0].weight  # tied: counted once
    model[2].requires_grad_(False)
    model(torch.ones(2, 64)).sum().backward()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    optimizer.step()
    found = needs(config(optimizer={"ema": 0.9}, checkpoints={"keep": 4}), model.parameters())
    assert found.parameters == 64 * 64 + 64 + 128 and found.trained == 64 * 64 + 64
    tensors = {f"{i}.{k}": v for i, s in enumerate(optimizer.state.values()) for k, v in s.items() if v.dim()}
    assert found.optimizer == sum(t.nbytes for t in tensors.values())
    assert found.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    assert 0 <= len(save({**weights, **tensors})) + found.average - found.checkpoint < 2000  # headers
    assert found.checkpoints == 7 and found.memory == found.weights + 4 * found.gradients


def test_activations_are_what_a_backward_pass_needs() -> None:
    """Three products of (1000, 64) keep their inputs, once each, though two operations need the same; no weights."""
    weights = [torch.nn.Parameter(torch.randn(64, 64)) for _ in range(3)]
    x = torch.randn(1000, 64)

    def forward() -> torch.Tensor:
        y = x @ weights[0]
        return (y @ weights[1] + y @ weights[2]).sum()

    assert activation_bytes(forward, weights) == 2 * 1000 * 64 * 4
    with torch.no_grad():
        assert activation_bytes(forward, weights) == 0
