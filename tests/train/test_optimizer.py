"""Groups beside the reference Trainer's, steps beside torch's plain AdamW, and state that comes back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from plainformer.checkpoint.weights import export_weights
from plainformer.config.training import OptimizerConfig
from plainformer.errors import CheckpointError, UsageError
from plainformer.families import table_for
from plainformer.loading import load_model
from plainformer.model.transformer import Transformer
from plainformer.train.optimizer import (
    Average,
    clip_gradients,
    decays,
    depth,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
    shrink,
    shrinks,
    trained,
)
from tests.support import models
from tests.support.close import close


def model_of(name: str, **changes: Any) -> Transformer:
    return models.make(name, **changes).train().requires_grad_(True)


def learn(model: Transformer, optimizer: torch.optim.AdamW, steps: range, limit: float | None = 1.0) -> list[float]:
    """Steps on ids that depend on the step alone."""
    losses = []
    both = model.encoder is not None and model.decoder is not None
    for k in steps:
        torch.manual_seed(k)  # dropout
        ids = torch.randint(5, 60, (2, 8), generator=torch.Generator().manual_seed(k))
        logits = model(ids, **({"decoder_input_ids": ids} if both else {})).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        clip_gradients(optimizer, limit)
        set_learning_rate(optimizer, 1e-2 / (1 + k))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def weights(model: Transformer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "bart"])
def test_what_decays_is_what_the_reference_decays(name: str, tmp_path: Path) -> None:
    """Ours is marked by 1 and 0, written by the names of the reference, and compared with the Trainer's list."""
    kinds = {
        "bert": "BertForSequenceClassification",
        "gpt2": "GPT2LMHeadModel",
        "llama": "LlamaForCausalLM",
        "t5": "T5ForConditionalGeneration",
        "bart": "BartForConditionalGeneration",
    }
    raw = models.BERT if name == "bert" else models.CONFIGS[name]
    config = transformers.AutoConfig.for_model(**raw)
    reference = getattr(transformers, kinds[name])(config)
    reference.save_pretrained(tmp_path)
    ours = load_model(tmp_path, backend="plain")
    with torch.no_grad():
        for path, parameter in ours.named_parameters():
            parameter.fill_(float(decays(path, parameter)))
    marked = dict(export_weights(ours, table_for(ours.config)))
    trainer = transformers.Trainer.__new__(transformers.Trainer)
    expected = set(trainer.get_decay_parameter_names(reference))
    tied = set(dict(reference.named_parameters())) & set(marked)
    assert len(tied) > 10
    # Any, not all: a saved table of positions has two rows of zeros more than ours.
    found = {path for path in tied if bool(marked[path].any())}
    assert found == expected & tied


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_fused_is_the_plain_formula(name: str) -> None:
    config = OptimizerConfig(weight_decay=0.1, layer_decay=0.8)
    runs = []
    for fused in (True, False):
        model = model_of(name, seed=1)
        optimizer = make_optimizer(model, config, 1e-2, fused=fused)
        generator = torch.Generator().manual_seed(0)
        # Random gradients: the true one of a key's bias is 0, so that its steps would follow rounding alone.
        for _ in range(8):
            for parameter in trained(model).values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            clip_gradients(optimizer, 1.0)
            optimizer.step()
        runs.append(weights(model))
    for path, weight in runs[0].items():
        scale = runs[1][path].abs().max()
        assert (weight - runs[1][path]).abs().max() <= 2e-6 * scale, path


def test_one_step_by_hand() -> None:
    """AdamW's first step moves each weight by the rate times the sign of its gradient, after the decay."""
    model = model_of("gpt2")
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.5, layer_decay=0.5, eps=1e-12), 1.0)
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, -3.0)
    set_learning_rate(optimizer, 0.01)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 0.01 * 0.5 ** depth(model, name)
        decay = 0.5 if decays(name, parameter) else 0.0
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - rate * decay) + rate)


def test_depth_of_an_encoder_decoder_and_of_a_decoder() -> None:
    bart, gpt2 = model_of("bart"), model_of("gpt2")
    seen = {name: depth(bart, name) for name in trained(bart)}
    levels = {
        "encoder.frontend.": 5,
        "encoder.layers.0.": 4,
        "encoder.layers.1.": 3,
        "decoder.layers.0.": 2,
        "decoder.layers.1.": 1,
        "decoder.frontend.": 3,
        "head.": 0,
    }
    for start, level in levels.items():
        found = {deep for name, deep in seen.items() if name.startswith(start)}
        assert found <= {level}, (start, found)
    assert set(seen.values()) == {5, 4, 3, 2, 1} | {deep for name, deep in seen.items() if name.startswith("head.")}
    assert {depth(gpt2, f"decoder.{part}") for part in ("norm.weight", "frontend.tokens.weight")} == {0, 3}


def test_tied_weights_are_trained_once_and_frozen_ones_not_at_all() -> None:
    model = model_of("gpt2")
    assert any(name.startswith("head.") for name, _ in model.named_parameters(remove_duplicate=False))
    optimizer = make_optimizer(model, OptimizerConfig(layer_decay=0.9), 1e-3)
    members = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(members) == len(set(map(id, members))) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1." in name)
    few = make_optimizer(model, OptimizerConfig(), 1e-3)
    before = weights(model)
    learn(model, few, range(3))
    assert all(torch.equal(before[name], p) != ("layers.1." in name) for name, p in model.named_parameters())
    model.requires_grad_(False)
    with pytest.raises(UsageError, match="frozen"):
        make_optimizer(model, OptimizerConfig(), 1e-3)


@pytest.mark.parametrize("fused", [True, False])
def test_state_comes_back_bit_for_bit(fused: bool) -> None:
    config = OptimizerConfig(layer_decay=0.9, ema=0.9)

    def fresh() -> tuple[Transformer, torch.optim.AdamW, Average]:
        model = model_of("bart", seed=2)
        return model, make_optimizer(model, config, 1e-2, fused=fused), Average(model, 0.9)

    model, optimizer, average = fresh()
    losses = learn(model, optimizer, range(4))
    average.update(4)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model).items()}
    kept_weights, kept_average = weights(model), {n: t.clone() for n, t in average.tensors().items()}
    losses += learn(model, optimizer, range(4, 8))
    average.update(8)

    again, its, other = fresh()
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            parameter.copy_(kept_weights[name])
    load_optimizer_tensors(its, again, dict(reversed(kept.items())))
    other.load(kept_average)
    assert learn(again, its, range(4, 8)) == losses[4:]
    other.update(8)
    assert same(weights(again), weights(model))
    assert same(optimizer_tensors(its, again), optimizer_tensors(optimizer, model))
    assert same(other.tensors(), average.tensors())


def test_what_has_no_gradient_keeps_its_own_count() -> None:
    """A part that some steps do not reach has taken fewer of them."""
    model = model_of("gpt2")
    optimizer = make_optimizer(model, OptimizerConfig(), 1e-2)
    first, *others = trained(model).values()
    for k in range(3):
        for parameter in (first, *others) if k == 2 else others:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    kept = optimizer_tensors(optimizer, model)
    names = list(trained(model))
    assert (kept[f"{names[0]}:step"].item(), kept[f"{names[1]}:step"].item()) == (1, 3)
    new = make_optimizer(model, OptimizerConfig(), 1e-2)
    del kept[f"{names[0]}:step"], kept[f"{names[0]}:exp_avg"], kept[f"{names[0]}:exp_avg_sq"]
    load_optimizer_tensors(new, model, kept)
    assert first not in new.state and others[0] in new.state


def test_state_of_another_model_is_refused() -> None:
    model = model_of("gpt2")
    optimizer = make_optimizer(model, OptimizerConfig(), 1e-2)
    learn(model, optimizer, range(1))
    kept = optimizer_tensors(optimizer, model)
    name = "decoder.norm.weight"
    bad: dict[str, dict[str, Tensor]] = {
        "not trained here": {**kept, "decoder.nothing:exp_avg": torch.ones(1)},
        "the shape": {**kept, f"{name}:exp_avg": torch.ones(3)},
        "lacks step": {key: tensor for key, tensor in kept.items() if key != f"{name}:step"},
    }
    for message, tensors in bad.items():
        with pytest.raises(CheckpointError, match=message):
            load_optimizer_tensors(optimizer, model, tensors)
    assert same(optimizer_tensors(optimizer, model), kept)
    average = Average(model, 0.9)
    held = average.tensors()
    for message, tensors in {
        "is missing": {key: tensor for key, tensor in held.items() if key != name},
        "not trained": {**held, "x": torch.ones(1)},
        "the shape": {**held, name: torch.ones(3)},
    }.items():
        with pytest.raises(CheckpointError, match=message):
            average.load(tensors)


@pytest.mark.parametrize("limit", [None, 1e-3, 1e9])
def test_clipping_is_torch_s(limit: float | None) -> None:
    model = model_of("gpt2")
    optimizer = make_optimizer(model, OptimizerConfig(layer_decay=0.9), 1e-3)
    for k, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)) if k % 3 else None
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    norm = clip_gradients(optimizer, limit)
    exact = torch.cat([g.double().flatten() for g in gradients]).norm()
    assert norm.shape == () and norm.item() == pytest.approx(exact.item(), rel=1e-6)
    scale = 1.0 if limit is None else min(1.0, limit / exact.item())
    for parameter, gradient in zip([p for p in model.parameters() if p.grad is not None], gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * scale, rtol=1e-5, atol=0)


def test_rates_follow_the_share_of_their_group() -> None:
    model = model_of("gpt2")
    optimizer = make_optimizer(model, OptimizerConfig(layer_decay=0.5), 8.0)
    assert {group["lr"] for group in optimizer.param_groups} == {8.0, 4.0, 2.0, 1.0}
    set_learning_rate(optimizer, 4.0)
    assert {group["lr"] for group in optimizer.param_groups} == {4.0, 2.0, 1.0, 0.5}


def test_the_average_is_torch_s() -> None:
    model = model_of("gpt2")
    optimizer, average = make_optimizer(model, OptimizerConfig(), 1e-2), Average(model, 0.4)
    count = iter(range(1, 99))

    def blend(held: Tensor, now: Tensor, _: object) -> Tensor:
        decay = min(0.4, (1 + step) / (10 + step))  # 0.4 from step 5 on
        return decay * held + (1 - decay) * now

    theirs = AveragedModel(model, avg_fn=blend)
    theirs.n_averaged += 1  # from the first weights on
    for step in (next(count) for _ in range(7)):
        learn(model, optimizer, range(step, step + 1))
        average.update(step)
        theirs.update_parameters(model)
    for name, parameter in theirs.module.named_parameters():
        close(average.tensors()[name], parameter, name, rel=1e-6)
    assert not torch.allclose(average.tensors()["decoder.norm.weight"], model.decoder.norm.weight)


def test_the_average_is_evaluated_in_place_and_taken_out_again() -> None:
    model = model_of("gpt2")
    average = Average(model, 0.9)
    learn(model, make_optimizer(model, OptimizerConfig(), 1e-2), range(2))
    own = weights(model)
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert same(weights(model), average.tensors())
        assert model.head.out.weight is model.decoder.frontend.tokens.weight
        raise ZeroDivisionError
    assert same(weights(model), own)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none")
def test_nothing_waits_for_the_gpu() -> None:
    model = model_of("llama").to("cuda")
    optimizer, average = make_optimizer(model, OptimizerConfig(layer_decay=0.9), 1e-3), Average(model, 0.9)
    gradients = [torch.randn_like(p) for p in model.parameters()]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            norm = clip_gradients(optimizer, 1.0)
            set_learning_rate(optimizer, 1e-3)
            optimizer.step()
            average.update(step + 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert norm.item() > 1
    kept = {name: tensor.cpu() for name, tensor in optimizer_tensors(optimizer, model).items()}
    again = make_optimizer(model, OptimizerConfig(layer_decay=0.9), 1e-3)
    load_optimizer_tensors(again, model, kept)
    assert same(optimizer_tensors(again, model), optimizer_tensors(optimizer, model))
    again.step()


# ---- L1


def l1_step(model: Transformer, config: OptimizerConfig, average: Average | None = None, steps: int = 1) -> None:
    optimizer = make_optimizer(model, config, 1e-2)
    for k in range(steps):
        ids = torch.randint(5, 60, (2, 8), generator=torch.Generator().manual_seed(k))
        model(ids).logits.square().mean().backward()
        optimizer.step()
        shrink(optimizer, torch.zeros(()))
        optimizer.zero_grad()
        if average is not None:
            average.update(k + 1)


def test_l1_is_a_soft_threshold_of_matrices_after_the_step() -> None:
    plain, sparse = (model_of("gpt2").eval() for _ in range(2))
    l1_step(plain, OptimizerConfig())
    l1_step(sparse, OptimizerConfig(l1=0.5))
    chosen, found = shrinks(sparse), weights(sparse)
    assert {name.split(".")[-1] for name in chosen} == {"weight"} and len(chosen) > 8
    assert not any("frontend" in name or "norm" in name for name in chosen)
    for name, before in weights(plain).items():
        threshold = 1e-2 * 0.5
        if name in chosen:
            close(found[name], before.sign() * (before.abs() - threshold).clamp_min(0), name, rel=1e-7)
            assert torch.equal(found[name] == 0, before.abs() <= torch.tensor(threshold))
        else:
            assert torch.equal(found[name], before), name


def test_zeros_grow_with_l1_and_are_in_the_average() -> None:
    shares = []
    for l1 in (0.0, 0.1, 0.5, 2.0):
        model = model_of("gpt2").eval()
        names = shrinks(model)
        average = Average(model, 0.9, names if l1 else ())
        l1_step(model, OptimizerConfig(l1=l1, ema=0.9), average, steps=4)
        kept, made = weights(model), average.tensors()
        shares.append(sum(int((kept[name] == 0).sum()) for name in names) / sum(kept[name].numel() for name in names))
        assert all(not made[name][kept[name] == 0].any() for name in names if l1)
    assert shares[0] < 0.001 and shares == sorted(shares) and shares[1] < shares[2] < shares[3] and shares[3] > 0.1


def test_a_skipped_step_is_no_step_of_l1() -> None:
    model = model_of("gpt2")
    before, optimizer = weights(model), make_optimizer(model, OptimizerConfig(l1=5.0), 1e-2)
    shrink(optimizer, torch.ones(()))
    assert all(torch.equal(now, before[name]) for name, now in weights(model).items())


def test_l1_without_a_matrix_is_refused() -> None:
    model = model_of("gpt2")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    with pytest.raises(UsageError, match=r"optimizer.l1 has no effect: what is trained has no matrix of its own"):
        make_optimizer(model, OptimizerConfig(l1=0.1), 1e-2)
