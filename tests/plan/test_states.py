"""Gradients and states of the optimizer, counted, are those that torch keeps: equal to the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plainformer.config.training import LoraConfig, OptimizerConfig
from plainformer.families import config_from_dict
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from plainformer.plan.states import adapter_shapes, own_states, shard_bytes, states, trained_shapes
from plainformer.train.optimizer import Average, make_optimizer, trained
from tests.support.every_config import every_config
from tests.support.memory import allocated
from tests.support.models import make

Maker = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
THEIRS: dict[str, Maker] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "sgd-momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters),
}


def kept(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of every tensor that it remembers."""
    found = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() * value.element_size() for value in found)


def ready(name: str, dtype: torch.dtype = torch.float32) -> Transformer:
    model = make(name).to(dtype).train()
    learned = trained(Transformer(model.config))
    for each, parameter in model.named_parameters():
        if each in learned:
            parameter.requires_grad_()
            parameter.grad = torch.ones_like(parameter)
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "bart", "t5", "gemma2"])
def test_our_optimizer(name: str) -> None:
    model = ready(name)
    found = states(trained_shapes(model.config), average=True)
    assert found.gradients == sum(p.grad.nbytes for p in trained(model).values() if p.grad is not None)
    optimizer = make_optimizer(model, OptimizerConfig(), 1e-3)
    first, second = allocated(optimizer.step), allocated(optimizer.step)
    assert first.left == found.optimizer == kept(optimizer)
    assert found.temporary == 0
    assert second.peak < 1000  # no temporary of a tensor's size
    average = Average(model, 0.9)
    assert found.average == sum(tensor.nbytes for tensor in average.averages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", THEIRS)
def test_other_optimizers(kind: str, dtype: torch.dtype) -> None:
    model = ready("llama", dtype)
    found = states(trained_shapes(model.config), optimizer=kind, number=dtype.itemsize)
    optimizer = THEIRS[kind](model.parameters())
    optimizer.step()
    left = kept(optimizer)
    if kind == "adafactor" and dtype == torch.bfloat16:  # its means of rows and columns are in the weights' dtype
        assert found.optimizer == pytest.approx(left, rel=0.05)
    else:
        assert found.optimizer == left
    again = allocated(optimizer.step)
    assert again.peak <= found.temporary * 1.2 + 4096


@pytest.mark.parametrize("name", list(every_config())[::9])
def test_what_is_trained(name: str) -> None:
    config = every_config()[name]
    model = Transformer(config)
    assert trained_shapes(config) == {name: tuple(p.shape) for name, p in trained(model).items()}
    of_head = {name for name in trained(model) if name.startswith("head.")}
    assert set(trained_shapes(config, "head")) == of_head


def test_adapters() -> None:
    from plainformer.checkpoint.low_rank import add_adapters
    from plainformer.families import table_for

    raw: dict[str, Any] = dict(
        model_type="llama", vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=37, architectures=["LlamaForSequenceClassification"], num_labels=3,
    )  # fmt: skip
    config = config_from_dict(raw)
    model = initialise(Transformer(config), seed=0)
    add_adapters(model, table_for(config), LoraConfig(rank=4))
    found = trained_shapes(config, "lora", adapter_shapes(config, 4))
    # One A and B belong to a linear each here; they are listed once.
    assert sorted(found.values()) == sorted(tuple(p.shape) for p in trained(model).values())


@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    columns=st.integers(1, 5),
    dp=st.integers(1, 6),
    zero=st.integers(0, 3),
)
def test_shares_add_up(rows: list[int], columns: int, dp: int, zero: int) -> None:
    """With ZeRO, each number's state is kept by one rank; without, by all."""
    shapes = {str(place): (count, columns) for place, count in enumerate(rows)}
    numbers = sum(rows) * columns
    shares = [own_states(shapes, zero, dp, index) for index in range(dp)]
    held = [sum(count * columns for count, _ in share.values()) for share in shares]
    assert sum(held) == numbers * (dp if zero == 0 else 1)
    for shape in shapes.values():
        parts = [share[name] for share in shares for name in share if shapes[name] == shape]
        if zero >= 2:
            assert all(count * columns * 4 <= shard_bytes(shape, 4, zero, dp) for count, _ in parts)


def test_the_vocabulary_makes_shares_uneven() -> None:
    """ZeRO-1 keeps whole parameters: whoever has the table has more than its share."""
    config = make("llama", vocab_size=4000).config
    shapes = trained_shapes(config)
    shares = [states(shapes, zero=1, dp=4, index=index).optimizer for index in range(4)]
    assert sum(shares) == states(shapes).optimizer
    assert max(shares) > 1.4 * sum(shares) / 4
