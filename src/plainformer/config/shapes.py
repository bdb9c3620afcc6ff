"""Every parameter of a model, with its shape, from the configuration alone: nothing is built, and torch is not needed.

Each function here speaks of one module of `model/` and has its name; the order is that of `named_parameters()`: what a
module holds itself comes before what its children hold.

Shapes: V vocabulary, P positions, W width of the token vectors, D hidden size, H heads, K key-value heads, E channels of a
head, F feed-forward size, C channels, N relative positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from plainformer.config.model import HeadConfig, ModelConfig, StackConfig
from plainformer.config.parts import Frontend, MelFrontend, NormConfig, PatchFrontend, TokenFrontend, WaveFrontend

Shape = tuple[int, ...]
# What a parameter belongs to: a matrix of a `Linear` (what int8 rounds, and what adapters add to) and its bias, a table
# that is looked up, a norm's weight or bias, a convolution's, or a vector or table that is used as it is.
Kind = Literal["linear", "bias", "table", "norm", "convolution", "free"]


class Parameter(NamedTuple):
    """A parameter's shape, and what it belongs to."""

    shape: Shape
    kind: Kind

    @property
    def size(self) -> int:
        """Return how many numbers it has."""
        return math.prod(self.shape)


Named = Iterator[tuple[str, Parameter]]


def shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the shape of each parameter by its name, in the order of `Transformer(config).named_parameters()`."""
    return {name: parameter.shape for name, parameter in parameters(config).items()}


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """Return each parameter by its name; one that is tied has the first of its names."""
    return dict(_parameters(config))


@lru_cache(maxsize=32)  # a search for a layout asks for the same ones hundreds of times
def _parameters(config: ModelConfig) -> dict[str, Parameter]:
    every, first = every_name(config), first_names(config)
    return {name: every[name] for name in every if first[name] == name}


def num_parameters(config: ModelConfig) -> int:
    """Return how many numbers the model has, tied ones counted once."""
    return sum(parameter.size for parameter in parameters(config).values())


def every_name(config: ModelConfig) -> dict[str, Parameter]:
    """Return the parameters by all their names: one that is tied has several."""
    made: dict[str, Parameter] = {}
    for name, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        if stack is not None:
            made.update(_within(name, _stack(stack)))
    made.update(_within("head", _head(config.head, config.main_stack.hidden_size)))
    return made


def first_names(config: ModelConfig) -> dict[str, str]:
    """Return, for each name, the first name of the same parameter: itself, unless it is tied to an earlier one."""
    same = {name: name for name in every_name(config)}
    for name, source in config.tied:  # as `Transformer.tie` does it, one after the other
        same[name] = same[source]
    first: dict[str, str] = {}
    return {name: first.setdefault(source, name) for name, source in same.items()}


def _within(name: str, parts: Iterable[tuple[str, Parameter]]) -> Named:
    for inner, parameter in parts:
        yield f"{name}.{inner}", parameter


def _free(name: str, *shape: int) -> Named:
    yield name, Parameter(shape, "free")


def _linear(name: str, in_size: int, out_size: int, bias: bool = True) -> Named:
    yield f"{name}.weight", Parameter((out_size, in_size), "linear")
    if bias:
        yield f"{name}.bias", Parameter((out_size,), "bias")


def _norm(name: str, size: int, config: NormConfig | None) -> Named:
    if config is not None:
        yield f"{name}.weight", Parameter((size,), "norm")
    if config is not None and config.kind == "layer" and config.bias:
        yield f"{name}.bias", Parameter((size,), "norm")


def _table(name: str, rows: int, size: int) -> Named:
    yield f"{name}.weight", Parameter((rows, size), "table")


def _convolution(name: str, in_size: int, out_size: int, kernel: Shape, bias: bool = True) -> Named:
    """`in_size`: channels that each output reads, those of its group."""
    yield f"{name}.weight", Parameter((out_size, in_size, *kernel), "convolution")
    if bias:
        yield f"{name}.bias", Parameter((out_size,), "convolution")


# ---- frontends ----------------------------------------------------------------------------------------------------


def _frontend(config: Frontend, hidden_size: int) -> Named:
    if isinstance(config, TokenFrontend):
        return _token_embedding(config, hidden_size)
    if isinstance(config, PatchFrontend):
        return _patch_embedding(config, hidden_size)
    return (
        _wave_embedding(config, hidden_size)
        if isinstance(config, WaveFrontend)
        else _mel_embedding(config, hidden_size)
    )


def _token_embedding(config: TokenFrontend, hidden_size: int) -> Named:
    size, projected = config.embedding_size, config.projection != "none"
    yield from _table("tokens", config.vocab_size, size)
    if config.positions == "learned":
        yield from _table("positions", config.max_positions, size)
    if config.token_types:
        yield from _table("token_types", config.token_types, size)
    before, affine = config.projection_place == "before_norm", config.projection == "affine"
    if projected and before:
        yield from _linear("before_norm", size, hidden_size, affine)
    yield from _norm("norm", hidden_size if before else size, config.norm)
    if projected and not before:
        yield from _linear("after_norm", size, hidden_size, affine)


def _patch_embedding(config: PatchFrontend, hidden_size: int) -> Named:
    yield from _free("positions", config.class_tokens + config.grid[0] * config.grid[1], hidden_size)
    yield from _convolution("patches", config.channels, hidden_size, config.patch_size, config.bias)
    for index in range(config.class_tokens):
        yield from _free(f"class_tokens.{index}", hidden_size)


def _wave_embedding(config: WaveFrontend, hidden_size: int) -> Named:
    if config.hidden_vector:
        yield from _free("hidden", hidden_size)
    before = 1
    for index, (channels, kernel) in enumerate(zip(config.channels, config.kernels, strict=True)):
        yield from _convolution(f"steps.{index}.conv", before, channels, (kernel,), config.conv_bias)
        layer, group = config.conv_norm == "layer", config.conv_norm == "group" and index == 0
        yield from _norm(
            f"steps.{index}.{'norm' if layer else 'time_norm'}", channels, _PLAIN if layer or group else None
        )
        before = channels
    yield from _norm("projection_norm", before, config.projection_norm)
    yield from _linear("project", before, hidden_size)
    yield "positions.magnitude", Parameter((1, 1, config.position_kernel), "convolution")
    in_group = hidden_size // config.position_groups
    yield "positions.direction", Parameter((hidden_size, in_group, config.position_kernel), "convolution")
    yield "positions.bias", Parameter((hidden_size,), "convolution")
    yield from _norm("norm", hidden_size, config.norm)


_PLAIN = NormConfig()  # torch's own LayerNorm and GroupNorm have the parameters of this one


def _mel_embedding(config: MelFrontend, hidden_size: int) -> Named:
    yield from _free("positions", config.max_positions, hidden_size)
    yield from _convolution("conv1", config.mels, hidden_size, (3,))
    yield from _convolution("conv2", hidden_size, hidden_size, (3,))


# ---- stacks -------------------------------------------------------------------------------------------------------


def _stack(config: StackConfig) -> Named:
    yield from _within("frontend", _frontend(config.frontend, config.hidden_size))
    for index in range(len(set(config.layer_ids))):
        yield from _within(f"layers.{index}", _block(config, index))
    yield from _norm("norm", config.hidden_size, config.norm if config.final_norm == "norm" else None)
    if config.relative_bias is not None:
        yield from _table("bias", config.relative_bias.buckets, config.num_heads)
    table = config.disentangled
    if table is None:
        return
    yield from _table("relative", 2 * table.span, config.hidden_size)
    yield from _norm("relative.norm", config.hidden_size, config.norm if table.norm else None)
    if table.conv_kernel > 0:
        in_group = config.hidden_size // table.conv_groups
        yield from _convolution("local.conv", in_group, config.hidden_size, (table.conv_kernel,))
        yield from _norm("local.norm", config.hidden_size, config.norm)


def _block(config: StackConfig, index: int) -> Named:
    """`Block` and `ParallelBlock`: the latter has neither cross-attention nor norms around its sub-layers' outputs."""
    size, norm, sequential = config.hidden_size, config.norm, config.residual == "sequential"
    after = norm if sequential and config.norm_place == "both" else None
    has_first = index > 0 or config.first_norm == "norm" or not sequential
    yield from _within("attention", _self_attention(config))
    yield from _norm("attention_norm", size, norm if has_first else None)
    yield from _norm("attention_after_norm", size, after)
    if config.cross_attention and sequential:
        yield from _within("cross", _cross_attention(config))
        yield from _norm("cross_norm", size, norm)
    yield from _within("ffn", _feed_forward(config))
    yield from _norm("ffn_norm", size, norm)
    yield from _norm("ffn_after_norm", size, after)


def _self_attention(config: StackConfig) -> Named:
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for name, size in (("q", q_size), ("k", kv_size), ("v", kv_size)):
        yield from _linear(f"qkv.{name}", config.hidden_size, size, config.qkv_bias)
    yield from _linear("out", q_size, config.hidden_size, config.out_bias)
    if config.qk_norm == "all":
        yield from _norm("q_norm_all", q_size, config.norm)
        yield from _norm("k_norm_all", kv_size, config.norm)
    if config.qk_norm == "head":
        yield from _norm("q_norm", config.head_dim, config.norm)
        yield from _norm("k_norm", config.head_dim, config.norm)
    table = config.disentangled
    if table is not None and not table.shared_projection:
        for name, term in (("k", "c2p"), ("q", "p2c")):
            if term in table.terms:
                yield from _linear(f"scores.{name}", config.hidden_size, q_size)


def _cross_attention(config: StackConfig) -> Named:
    size = config.num_heads * config.head_dim
    for name in ("q", "kv.k", "kv.v"):
        yield from _linear(name, config.hidden_size, size, config.qkv_bias)
    yield from _linear("out", size, config.hidden_size, config.out_bias)


def _feed_forward(config: StackConfig) -> Named:
    yield from _linear("down", config.ffn_size, config.hidden_size, config.ffn_bias)
    for name in ("gate_up.gate", "gate_up.up") if config.ffn == "gated" else ("up",):
        yield from _linear(name, config.hidden_size, config.ffn_size, config.ffn_bias)


# ---- heads --------------------------------------------------------------------------------------------------------


def _head(config: HeadConfig, hidden_size: int) -> Named:
    size = config.transform_size or hidden_size
    if config.mixed_states:
        yield from _free("layer_weights", config.mixed_states)
    if config.transform_size:
        yield from _linear("dense", hidden_size, size, config.transform_bias)
    yield from _norm("norm", size, config.transform_norm)
    if config.out_size:
        yield from _linear("out", size, config.out_size, config.out_bias)
    if config.pick == "first_two":
        yield from _linear("distilled", size, config.out_size, config.out_bias)
