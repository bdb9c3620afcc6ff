"""Norms against the formulas in plain arithmetic, activations against the reference library's."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.activations import ACT2FN

from plainformer.config import NormConfig
from plainformer.model.norm import ACTIVATION_FUNCTIONS, make_norm

X, WEIGHT, BIAS, EPS = [0.5, -2.0, 3.0, 1.5], [1.0, 0.5, -1.0, 2.0], [0.1, 0.0, -0.2, 1.0], 1e-3


def made(config: NormConfig) -> torch.nn.Module:
    norm = make_norm(4, config)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(WEIGHT))
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(torch.tensor(BIAS))
    return norm


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(bias: bool) -> None:
    mean = sum(X) / 4
    deviation = math.sqrt(sum((x - mean) ** 2 for x in X) / 4 + EPS)
    expected = [(x - mean) / deviation * w + (b if bias else 0) for x, w, b in zip(X, WEIGHT, BIAS, strict=True)]
    found = made(NormConfig("layer", EPS, bias=bias))(torch.tensor([X, X]))
    torch.testing.assert_close(found, torch.tensor([expected] * 2))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(offset: float) -> None:
    size = math.sqrt(sum(x * x for x in X) / 4 + EPS)
    expected = torch.tensor([x / size * (offset + w) for x, w in zip(X, WEIGHT, strict=True)])
    for cast in ("first", "last"):
        norm = made(NormConfig("rms", EPS, bias=False, weight_offset=offset, cast=cast))  # type: ignore[arg-type]
        torch.testing.assert_close(norm(torch.tensor([X]))[0], expected)


def test_where_half_precision_is_rounded() -> None:
    """The mean is in fp32 always; "first" rounds before the weight is applied, "last" after."""
    x, weight = torch.tensor(X).bfloat16(), torch.tensor(WEIGHT).bfloat16() * 1.01
    normed = x.float() / (x.float().square().mean() + EPS).sqrt()
    expected = {"first": normed.bfloat16() * weight, "last": (normed * weight.float()).bfloat16()}
    for cast, value in expected.items():
        norm = make_norm(4, NormConfig("rms", EPS, bias=False, cast=cast)).bfloat16()  # type: ignore[arg-type]
        with torch.no_grad():
            norm.weight.copy_(weight)
        assert torch.equal(norm(x), value), cast


THEIRS = {"gelu_tanh": "gelu_pytorch_tanh", "identity": "linear"}


@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_activations_are_the_references(name: str) -> None:
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(ACTIVATION_FUNCTIONS[name](x), ACT2FN[THEIRS.get(name, name)](x))
