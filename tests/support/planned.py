"""Stacks of every kind, drawn at random: what a configuration can say of a layer, in all combinations. With their inputs."""

from __future__ import annotations

import random
from typing import Any

import torch

from plainformer.config import (
    Disentangled,
    Dropout,
    ModelConfig,
    NormConfig,
    RelativeBias,
    RopeConfig,
    StackConfig,
    TokenFrontend,
)

WORDS, WIDTH, ROWS, LENGTH, TARGET = 300, 40, 3, 17, 12
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu", "tanh", "identity")
FIXED = ((), (), ("*.frontend.*",), ("*",), ("*norm*",), ("*.ffn.*",), ("*.attention.*",))


def any_model(draw: random.Random) -> ModelConfig:
    """Return an encoder, a decoder or both."""
    if draw.random() < 0.25:
        encoder, decoder = any_stack(draw, direction="both"), any_stack(draw, direction="causal", cross=True)
        fixed = draw.choice(((), ("encoder.*",), ("*.tokens.weight",)))
        return ModelConfig("both", encoder=encoder, decoder=decoder, fixed=fixed)
    stack = any_stack(draw)
    name = "decoder" if stack.direction == "causal" else "encoder"
    return ModelConfig("one", **{name: stack}, fixed=draw.choice(FIXED))  # type: ignore[arg-type]


def any_stack(draw: random.Random, direction: str = "", cross: bool = False) -> StackConfig:
    """Return a stack of two layers."""
    scores = "cross" if cross else draw.choices(("plain", "bias", "table"), (0.7, 0.15, 0.15))[0]
    direction = direction or draw.choice(("both", "causal"))
    kind, size = draw.choice(("layer", "rms")), draw.choice((10, 12))
    residual = "sequential" if cross else draw.choices(("sequential", "parallel"), (0.85, 0.15))[0]
    shared_kv = draw.choice((4, 2)) if cross else draw.choice((4, 2, 1))
    return StackConfig(
        frontend=_frontend(draw),
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4 if scores in ("bias", "table") else shared_kv,
        head_dim=size,
        ffn_size=72,
        activation=draw.choice(ACTIVATIONS),
        ffn=draw.choice(("plain", "gated")),
        norm=_norm(draw, kind),
        norm_place="pre" if residual == "parallel" else draw.choice(("pre", "post", "both", "branch")),
        residual=residual,
        first_norm=draw.choice(("norm", "identity")) if residual == "sequential" else "norm",
        final_norm=draw.choice(("none", "norm")),
        direction="both" if scores == "table" else direction,  # type: ignore[arg-type]
        qkv_bias=draw.random() < 0.5,
        out_bias=draw.random() < 0.5,
        ffn_bias=draw.random() < 0.5,
        qk_norm="none" if scores == "table" else draw.choice(("none", "head", "all")),
        relative_bias=RelativeBias() if scores == "bias" else None,
        score_softcap=draw.choice((None, None, 30.0)),
        disentangled=_table(draw) if scores == "table" else None,
        windows=draw.choice(((), (), (5, None), (5, 5))),
        rope=_rope(draw, size) if scores in ("plain", "cross") else (),
        cross_attention=cross,
        layer_ids=draw.choice(((), (), (0, 0))),
        dropout=_dropout(draw),
    )


def _frontend(draw: random.Random) -> TokenFrontend:
    return TokenFrontend(
        vocab_size=WORDS,
        embedding_size=WIDTH,
        positions=draw.choice(("none", "learned", "sinusoidal")),
        max_positions=64,
        token_types=draw.choice((0, 2)),
        norm=draw.choice((None, NormConfig("layer", 1e-5), NormConfig("rms", 1e-6))),
        scale=draw.choice((1.0, 3.0)),
        padding=draw.choice(("kept", "zeroed")),
    )


def _norm(draw: random.Random, kind: Any) -> NormConfig:
    offset = draw.choice((0.0, 1.0)) if kind == "rms" else 0.0
    return NormConfig(kind, 1e-5, draw.random() < 0.7, offset, draw.choice(("first", "last")))


def _rope(draw: random.Random, size: int) -> tuple[RopeConfig | None, ...]:
    if draw.random() < 0.4:
        return ()
    rope = RopeConfig(1e4, draw.choice((size, 4)))
    return draw.choice(((rope, rope), (rope, rope), (rope, None)))


def _table(draw: random.Random) -> Disentangled:
    return Disentangled(
        max_distance=16,
        buckets=draw.choice((0, 8)),
        terms=draw.choice((("c2p", "p2c"), ("c2p",), ("p2c",), ())),
        shared_projection=draw.random() < 0.5,
        norm=draw.random() < 0.5,
        conv_kernel=draw.choice((0, 3)),
        conv_groups=draw.choice((1, 2)),
    )


def _dropout(draw: random.Random) -> Dropout:
    if draw.random() < 0.5:
        return Dropout()
    places = ("embedding", "attention", "attention_output", "ffn_output", "activation", "positions", "final")
    return Dropout(**{place: draw.choice((0, 0, 0.1)) for place in places})


def inputs_of(config: ModelConfig, padded: bool, padded_target: bool) -> dict[str, torch.Tensor]:
    """Return a batch of ids for a model of `any_model`."""
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[1, -3:] = 0
    given = {"input_ids": torch.randint(1, WORDS, (ROWS, LENGTH))}
    if padded:
        given["attention_mask"] = mask
    if config.kind == "encoder-decoder":
        given["decoder_input_ids"] = torch.randint(1, WORDS, (ROWS, TARGET))
        if padded_target:
            given["decoder_attention_mask"] = mask[:, LENGTH - TARGET :].contiguous()
    return given
