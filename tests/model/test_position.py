"""Positions and masks against plain formulas, entry by entry, and the reference library where the formula is its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention

from plainformer.config import RelativeBias, RopeConfig, RopeScaling
from plainformer.model.position import (
    BucketBias,
    Rotary,
    positions_from_mask,
    rope_frequencies,
    rotate,
    sinusoid,
    visible,
)
from tests.support.close import close

THETA, DIM = 10000.0, 8


def test_positions_count_real_tokens() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]])
    assert positions_from_mask(mask, 0).tolist() == [[0, 1, 2, 3], [0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1]]
    assert positions_from_mask(mask, 3).tolist() == [[3], [1], [1], [1]]


@pytest.mark.parametrize("factor", [None, 4.0])
def test_frequencies(factor: float | None) -> None:
    scaling = RopeScaling(kind="linear", factor=factor) if factor is not None else None
    found = rope_frequencies(RopeConfig(THETA, DIM, scaling=scaling))
    expected = [THETA ** (-2 * i / DIM) / (factor or 1) for i in range(DIM // 2)]
    torch.testing.assert_close(found, torch.tensor(expected))


SCALED: dict[str, dict[str, Any]] = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0},
}


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_frequencies_are_the_references(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": THETA, "original_max_position_embeddings": 64, **SCALED[kind]}
    theirs = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=256, rope_parameters=rope)
    expected, _ = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"))
    scaling = RopeScaling(kind=kind, original_max_positions=64, **SCALED[kind])  # type: ignore[arg-type]
    torch.testing.assert_close(rope_frequencies(RopeConfig(THETA, 32, scaling=scaling)), expected)


@pytest.mark.parametrize("size", [DIM, DIM + 4])
def test_a_rotation_multiplies_by_a_complex_number(size: int) -> None:
    """Channels i and i + dim / 2 are the real and the imaginary part; channels past `dim` stay as they are."""
    positions = torch.tensor([[0, 1, 5], [3, 3, 90]])
    rotation = Rotary(RopeConfig(THETA, DIM))(positions, torch.float32)
    x_BHTE = torch.randn(2, 3, 3, size, generator=torch.Generator().manual_seed(0))
    found = rotate(x_BHTE, rotation)
    half = DIM // 2
    for b, t in ((0, 0), (0, 2), (1, 1), (1, 2)):
        for i in range(half):
            angle = positions[b, t].item() * THETA ** (-2 * i / DIM)
            turn = torch.polar(torch.ones(()), torch.tensor(angle))
            expected = torch.complex(x_BHTE[b, :, t, i], x_BHTE[b, :, t, i + half]) * turn
            torch.testing.assert_close(torch.complex(found[b, :, t, i], found[b, :, t, i + half]), expected)
    assert torch.equal(found[..., DIM:], x_BHTE[..., DIM:])


def test_scores_of_rotated_vectors_depend_on_the_distance_alone() -> None:
    rotary = Rotary(RopeConfig(THETA, DIM))
    q, k = torch.randn(2, 1, 1, 1, DIM, generator=torch.Generator().manual_seed(0))

    def score(at_q: int, at_k: int) -> Tensor:
        turned = [rotate(x, rotary(torch.tensor([[at]]), torch.float32)) for x, at in ((q, at_q), (k, at_k))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(7, 3), score(104, 100), rtol=1e-4, atol=1e-5)
    assert (score(7, 3) - score(7, 4)).abs() > 1e-3


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("style", ["paper", "tensor2tensor"])
def test_sinusoids(style: str, size: int) -> None:
    found, half = sinusoid(torch.tensor([0, 1, 30]), size, style), size // 2
    for row, position in enumerate((0, 1, 30)):
        if style == "paper":
            sines = [math.sin(position / 10000 ** (2 * i / size)) for i in range(size - half)]
            cosines = [math.cos(position / 10000 ** (2 * i / size)) for i in range(half)]
        else:
            angles = [position / 10000 ** (i / (half - 1)) for i in range(half)]
            sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles] + [0.0] * (size % 2)
        close(found[row], sines + cosines)


@pytest.mark.parametrize("causal", [False, True])
def test_buckets_are_those_of_t5(causal: bool) -> None:
    layer = BucketBias(RelativeBias(buckets=16, max_distance=40), 3, causal)
    distance = torch.arange(-60, 61)
    expected = T5Attention._relative_position_bucket(distance, not causal, 16, 40)
    assert torch.equal(layer.bucket(distance), expected)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(16, 3, generator=torch.Generator().manual_seed(0)))
        bias_1HTS = layer(2, 5)
    for t in range(2):  # the last two of five positions
        for s in range(5):
            bucket = layer.bucket(torch.tensor(s - (3 + t)))
            assert torch.equal(bias_1HTS[0, :, t, s], layer.weight[bucket])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 6])
@pytest.mark.parametrize("queries", [1, 2, 5])
def test_what_a_query_sees(queries: int, window: int | None, causal: bool) -> None:
    seen = visible(queries, 5, causal, window, torch.device("cpu"))
    for t in range(queries):
        at = 5 - queries + t
        expected = [(s <= at or not causal) and (window is None or abs(at - s) < window) for s in range(5)]
        assert (seen[t].tolist() if seen is not None else [True] * 5) == expected
