"""Losses and regularisers of whole runs: the reference's Trainer with the same in a few lines, and numpy by brute force."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers.trainer as trainer_module
from torch import Tensor

import plainformer.train.loop as loop
from tests.support.learning import STEPS, config_of, learnt, rows_of, saved_tensors
from tests.support.trainer import RecordingTrainer, batches_of, trained_by_reference
from tests.support.trainer_cases import CASES, labelled

Compute = Callable[[Tensor, Tensor], Tensor]  # logits, labels → a loss for each row
NAME = "text-classification"


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    chance = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
    return -((1 - chance) ** 2.0) * chance.log()


def generalised(logits: Tensor, labels: Tensor) -> Tensor:
    chance = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
    return (1 - chance**0.7) / 0.7


def trimmed(logits: Tensor, labels: Tensor) -> Tensor:
    """What a step of six rows keeps, where 0.35 are left out: the four of the lowest loss, found by sorting."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    order = sorted(range(len(losses)), key=lambda row: losses[row].item())
    return losses[order[: len(order) - int(0.35 * len(order))]]


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any], Compute | None]] = {
    "smoothing": ({"loss": {"label_smoothing": 0.2}}, {"label_smoothing_factor": 0.2}, None),
    "decay": ({"optimizer": {"weight_decay": 0.3}}, {}, None),
    "focal": ({"loss": {"kind": "focal"}}, {}, focal),
    "gce": ({"loss": {"kind": "gce"}}, {}, generalised),
    "trim": ({"loss": {"trim": 0.35, "trim_after": 0}}, {}, trimmed),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_run_is_the_trainers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 steps: every loss, and all weights at the end."""
    ours, theirs, compute = WAYS[name]
    reference = CASES[NAME].model(tmp_path / "model", 0.0)
    config = config_of(tmp_path, NAME, rows_of(tmp_path, NAME), model={"ref": str(tmp_path / "model")}, **ours)
    lines = learnt(config)
    if compute is not None:
        use = compute

        def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **more: Any) -> Tensor:
            labels = inputs.pop("labels")
            return use(model(**inputs).logits, labels).mean()

        monkeypatch.setattr(RecordingTrainer, "compute_loss", compute_loss)
    trainer = trained_by_reference(
        reference, [labelled(batch) for (batch,) in batches_of(config)], config, tmp_path, **theirs
    )
    assert [line["loss"] for line in lines] == pytest.approx(trainer.losses, rel=2e-5) and len(lines) == STEPS
    reference.save_pretrained(tmp_path / "theirs")
    found = saved_tensors(tmp_path / "run" / "last")
    for key, expected in saved_tensors(tmp_path / "theirs").items():
        if not key.endswith("key.bias"):  # softmax takes it away: AdamW makes steps of its rounding
            assert float((found[key] - expected).abs().max()) < 5e-6, key


# ---- noise on embeddings


def test_noise_is_as_large_as_the_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws differ. On texts without padding both are uniform in ± alpha / sqrt(T W), and evaluation has none."""
    alpha = 15.0
    reference = CASES[NAME].model(tmp_path / "model", 0.0)
    data = rows_of(tmp_path, NAME, even=True)
    augment = {"embedding_noise": alpha}
    own = {"model": {"ref": str(tmp_path / "model")}, "augment": augment}
    split = {"split": {"validation": 0.25}, "train": data, "cache": str(tmp_path / "cache")}
    config = config_of(tmp_path, NAME, data, **own, data=split)
    drawn: list[Tensor] = []
    noised = loop.noised

    def kept(model: Any, noise: Tensor | None) -> Any:
        assert noise is not None
        drawn.append(noise.flatten())
        return noised(model, noise)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "noised", kept)
        noisy = learnt(config)
    assert len(drawn) == STEPS
    ours = torch.cat(drawn).numpy()
    seen: list[Tensor] = []
    activate = trainer_module.activate_neftune

    def watched(model: Any, *args: Any) -> Any:
        handle = activate(model, *args)
        model.get_input_embeddings().register_forward_hook(
            lambda table, ids, output: seen.append((output - F.embedding(ids[0], table.weight)).detach())
        )
        return handle

    monkeypatch.setattr(trainer_module, "activate_neftune", watched)
    steps = [labelled(batch) for (batch,) in batches_of(config)]
    trained_by_reference(reference, steps, config, tmp_path, neftune_noise_alpha=alpha)
    theirs = torch.cat([one.flatten() for one in seen]).numpy()
    length, width = steps[0]["input_ids"].shape[1], 32
    bound = alpha / np.sqrt(length * width)
    for one in (ours, theirs):
        assert np.abs(one).max() <= bound * (1 + 1e-5) and np.abs(one).max() > 0.99 * bound
        assert one.std() == pytest.approx(bound / np.sqrt(3), rel=0.02) and abs(one.mean()) < 0.02 * bound
    quantiles = np.linspace(0.02, 0.98, 25)
    assert np.quantile(ours, quantiles) == pytest.approx(np.quantile(theirs, quantiles), abs=0.03 * bound)
    # Evaluations before the first step are those of a run without noise.
    plain = config_of(tmp_path / "plain", NAME, data, model=own["model"], data={**split})
    first = [next(line for line in lines if "validation" in line) for lines in (noisy, learnt(plain))]
    assert first[0] == first[1]


# ---- L1, and averages


@pytest.mark.parametrize("ema", [None, 0.8])
def test_sparse_weights_are_those_of_numpy(ema: float | None, tmp_path: Path) -> None:
    """20 steps of AdamW and soft thresholds, written out in float64, on gradients of the reference's model in float64."""
    reference = CASES[NAME].model(tmp_path / "model", 0.0).double()
    optimizer = {"learning_rate": 2e-3, "l1": 3.0, "weight_decay": 0.1, "ema": ema, "max_grad_norm": 0.5}
    own: dict[str, Any] = {"model": {"ref": str(tmp_path / "model")}, "optimizer": optimizer}
    config = config_of(tmp_path, NAME, rows_of(tmp_path, NAME), **own)
    rates = [line["learning_rate"] for line in learnt(config)]
    linear = {f"{name}.weight" for name, part in reference.named_modules() if isinstance(part, torch.nn.Linear)}
    weights = dict(reference.named_parameters())
    first, second = ({name: np.zeros(p.shape) for name, p in weights.items()} for _ in range(2))
    average = {name: p.detach().numpy().copy() for name, p in weights.items()}
    for step, ((batch,), rate) in enumerate(zip(batches_of(config), rates, strict=True), start=1):
        reference.zero_grad()
        reference(**labelled(batch)).loss.backward()
        gradients = {name: p.grad.numpy() for name, p in weights.items() if p.grad is not None}
        norm = np.sqrt(sum((each**2).sum() for each in gradients.values()))
        for name, gradient in gradients.items():
            own_gradient = gradient * min(1.0, 0.5 / (norm + 1e-6))
            value = weights[name].detach().numpy()
            first[name] = 0.9 * first[name] + 0.1 * own_gradient
            second[name] = 0.999 * second[name] + 0.001 * own_gradient**2
            moved = value * (1 - rate * 0.1 * (value.ndim > 1))
            moved -= rate * (first[name] / (1 - 0.9**step)) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
            if name in linear:
                moved = np.sign(moved) * np.maximum(np.abs(moved) - rate * 3.0, 0)
            weights[name].data.copy_(torch.from_numpy(moved))
            share = 1 - min(ema or 0.0, (1 + step) / (10 + step))
            average[name] += share * (moved - average[name])
            if name in linear:
                average[name] *= moved != 0
    found = saved_tensors(tmp_path / "run" / "last")
    zeros = 0
    for name, expected in average.items():
        given = found[name].double().numpy()
        if name.endswith("key.bias"):  # its gradient is 0, and AdamW makes steps of its rounding
            continue
        # A weight that ends within rounding of the threshold may be 0 on one side alone.
        assert np.abs(given - expected).max() < 2e-5, name
        assert ((given == 0) != (expected == 0)).mean() < 2e-3, name
        zeros += int((given == 0).sum()) if name in linear else 0
        assert name in linear or (given != 0).mean() > 0.9, name
    assert zeros > 100
