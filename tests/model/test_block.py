"""Wirings as drawn; feed-forward chunking: the same numbers, and less memory at once, as the arithmetic says."""

from __future__ import annotations

import pytest
import torch

from plainformer.config import ModelConfig, StackConfig, TokenFrontend
from plainformer.errors import UsageError
from plainformer.model.block import make_block, set_ffn_chunk_size
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.flow import Flow, Mask
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from tests.support.close import close
from tests.support.memory import peak_bytes

WIDTH, FFN, POSITIONS, FLOAT = 16, 4096, 256, 4
# (B, T, F) activations that are alive together: up and its activation; fused gate and up, and the product in place of one.
ALIVE = {"plain": 2, "gated": 3}


def model(ffn: str) -> Transformer:
    config = StackConfig(
        frontend=TokenFrontend(vocab_size=50, embedding_size=WIDTH),
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=2,
        ffn_size=FFN,
        ffn=ffn,  # type: ignore[arg-type]
    )
    made = initialise(Transformer(ModelConfig("test", encoder=config)), std=0.1)
    prepare_for_inference(made, "fused")
    return made


@pytest.mark.parametrize("ffn", ["plain", "gated"])
@torch.inference_mode()
def test_peak_memory_falls_as_the_arithmetic_says(ffn: str) -> None:
    made = model(ffn)
    input_ids = torch.arange(POSITIONS)[None] % 50
    expected = made(input_ids).last_hidden_state
    # What is no feed-forward activation: embeddings, attention, residuals; a few (B, T, D), and attention's (T, T).
    rest = 24 * POSITIONS * WIDTH * FLOAT + 4 * POSITIONS * POSITIONS * FLOAT
    peaks = {}
    for chunk in (0, 64, 16, 1):
        set_ffn_chunk_size(made, chunk)
        peaks[chunk] = peak_bytes(lambda: made(input_ids))
        close(made(input_ids).last_hidden_state, expected)
        activations = ALIVE[ffn] * (chunk or POSITIONS) * FFN * FLOAT
        assert activations <= peaks[chunk] <= activations + rest, (chunk, peaks[chunk], activations)
    assert peaks[16] < peaks[0] / 8


@torch.inference_mode()
def test_a_chunk_as_long_as_the_input_is_no_chunk() -> None:
    made = model("plain")
    input_ids = torch.arange(8)[None]
    expected = made(input_ids).last_hidden_state
    for chunk in (8, 9, 1000):
        set_ffn_chunk_size(made, chunk)
        assert torch.equal(made(input_ids).last_hidden_state, expected)


@pytest.mark.parametrize("chunk", [-1, 1.5, True, None, "4"])
def test_chunk_sizes_that_are_none(chunk: object) -> None:
    with pytest.raises(UsageError, match="not a whole number of at least 0"):
        set_ffn_chunk_size(model("plain"), chunk)  # type: ignore[arg-type]


def test_gradients_are_the_same_in_chunks() -> None:
    gradients = []
    for chunk in (0, 3):
        made = model("gated").train()
        made.requires_grad_(True)
        set_ffn_chunk_size(made, chunk)
        made(torch.arange(10)[None]).last_hidden_state.square().sum().backward()
        gradients.append([parameter.grad for parameter in made.parameters()])
    for whole, chunked in zip(*gradients, strict=True):
        assert whole is not None and chunked is not None
        close(whole, chunked, rel=1e-4)


def filled(block: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return block


def config(**values: object) -> StackConfig:
    tokens = TokenFrontend(vocab_size=50, embedding_size=WIDTH)
    given = {"num_layers": 1, "num_heads": 2, "ffn_size": 24, "direction": "causal", **values}
    return StackConfig(frontend=tokens, hidden_size=WIDTH, **given)  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("place", ["pre", "post", "both", "branch"])
def test_the_four_wirings(place: str, cross: bool) -> None:
    """As the drawing has them, with each sub-layer called by hand."""
    block = filled(make_block(config(norm_place=place, cross_attention=cross), 0))
    x, encoder_BSD = torch.randn(2, 3, 5, WIDTH, generator=torch.Generator().manual_seed(1))[:, :2]
    flow = Flow(masks=[Mask(causal=True)], rotations=[None], length=5, encoder_BSD=encoder_BSD)
    sublayers = [(lambda h: block.attention(h, 0, flow)[0], block.attention_norm, block.attention_after_norm)]
    if cross:
        sublayers.append((lambda h: block.cross(h, 0, flow)[0], block.cross_norm, block.cross_norm))
    sublayers.append((block.ffn, block.ffn_norm, block.ffn_after_norm))
    expected = x
    for sublayer, norm, after_norm in sublayers:
        if place == "pre":
            expected = expected + sublayer(norm(expected))
        elif place == "post":
            expected = norm(expected + sublayer(expected))
        elif place == "both":
            expected = expected + after_norm(sublayer(norm(expected)))
        else:
            expected = expected + norm(sublayer(expected))
    assert torch.equal(block(x, 0, flow)[0], expected)


@torch.no_grad()
def test_the_parallel_block() -> None:
    block = filled(make_block(config(residual="parallel"), 0))
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    flow = Flow(masks=[Mask(causal=True)], rotations=[None], length=5)
    expected = x + block.attention(block.attention_norm(x), 0, flow)[0] + block.ffn(block.ffn_norm(x))
    found = block(x, 0, flow)[0]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
