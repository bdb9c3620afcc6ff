"""Feed-forward chunking: the same numbers, and less memory at once, as the arithmetic says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from plainformer.config import ModelConfig, StackConfig, TokenFrontend
from plainformer.errors import UsageError
from plainformer.model.block import set_ffn_chunk_size
from plainformer.model.fast.prepare import prepare_for_inference
from plainformer.model.initial import initialise
from plainformer.model.transformer import Transformer
from tests.support.close import close

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


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that were allocated at any time while `run` ran, beyond those allocated before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    assert seen.profiler is not None
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


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
    with pytest.raises(UsageError, match="not a count of positions"):
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
        close(whole, chunked, rel=2e-5)
