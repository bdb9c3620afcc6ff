"""Weights rounded to eight bits: how far answers move, that rows stay independent, and what such a model refuses."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import plainformer as pf
from plainformer.errors import UsageError
from plainformer.model.fast.packed import Int8Weight
from plainformer.model.linear import outermost
from tests.support import models as make
from tests.support.close import close


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("int8") / "gpt2"
    make.gpt2(root)
    return root


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_only_the_weights_are_rounded_noticeably(rows: int) -> None:
    """The answer is that of the rounded weights with exact inputs, up to the 14 bits that the inputs keep."""
    weights, bias, x = [random(48, 96), random(16, 96, seed=1)], random(64, seed=2), random(rows, 96, seed=3)
    x[0] *= 1e-3  # rows of very different sizes, and one outlier
    x[-1, 5] = 80.0
    weight = torch.cat(weights)
    scales = weight.abs().amax(1, keepdim=True) / 127
    expected = torch.nn.functional.linear(x, (weight / scales).round() * scales, bias)
    found = Int8Weight(weights, bias)(x)
    assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < 1e-3
    exact = torch.nn.functional.linear(x, weight, bias)
    assert (found - exact).norm() / exact.norm() < 0.01


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    layer, x = Int8Weight([random(32, 64)], None), random(5, 64, seed=1)
    x[2] *= 1000
    alone = torch.cat([layer(row[None]) for row in x])
    for found, expected in zip(layer(x), alone, strict=True):  # each on its own scale
        close(found, expected)
    assert torch.equal(layer(x[None]), layer(x)[None])


def test_zeros_and_shapes() -> None:
    layer = Int8Weight([random(32, 64)], random(32, seed=1))
    assert torch.equal(layer(torch.zeros(2, 3, 64)), layer.bias_O.expand(2, 3, 32))  # type: ignore[union-attr]
    assert layer(torch.zeros(64)).shape == (32,)


def test_a_quantised_model(folder: Path, tmp_path: Path) -> None:
    """It loads without warnings, answers nearly alike, generates, and says why it cannot be saved, moved or trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = pf.load_model(folder, quantize="int8")
    full = pf.load_model(folder)
    ids = torch.arange(5, 25)[None]
    assert all(isinstance(linear.packed, Int8Weight) for linear in outermost(small))
    with torch.inference_mode():
        exact, rounded = full(ids).logits, small(ids).logits
    assert 0 < (exact - rounded).norm() / exact.norm() < 0.03
    assert len(pf.generate(small, ids, max_new_tokens=4, eos_ids=()).token_ids[0]) == 4
    for refused in (
        small.train,
        lambda: small.to(torch.bfloat16),
        lambda: pf.save(small, tmp_path / "x"),
        small.state_dict,
    ):
        with pytest.raises(UsageError, match="rounded to 8 bits"):
            refused()


def test_what_is_refused(folder: Path) -> None:
    for options, message in (
        ({"quantize": "int5"}, "unknown"),
        ({"quantize": "int8", "backend": "onednn"}, "chooses the backend"),
        ({"quantize": "int8", "prepare": False}, "chooses the backend"),
        ({"quantize": "int8", "dtype": "bf16"}, "fp32 on a CPU"),
    ):
        with pytest.raises(UsageError, match=message):
            pf.load_model(folder, **options)
