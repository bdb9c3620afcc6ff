"""ModernBERT (Warner et al. 2024): an encoder with rotary positions, gated feed-forward networks, and local windows in
two layers of three."""

from __future__ import annotations

from typing import Any

from plainformer.checkpoint.rows import OLD_NORM_NAMES, Split, WeightTable, fused, ignore, linear, row
from plainformer.config import Dropout, HeadConfig, ModelConfig, NormConfig, RopeConfig, StackConfig, TokenFrontend
from plainformer.config.checks import MAX_LAYERS, require, require_choice, require_size
from plainformer.config.initial import FirstWeights, truncated
from plainformer.families.encoder_line import word_ties
from plainformer.families.first import RESIDUAL, deviation
from plainformer.families.heads import BASE, Head, Kind, classifier, vocabulary
from plainformer.families.hf_config import HfConfig, rope_from

DEFAULTS = {"num_hidden_layers": 22, "intermediate_size": 1152}
GLOBAL, LOCAL = "full_attention", "sliding_attention"


def layer_types(source: HfConfig, layers: int) -> list[str]:
    """Global or local attention for each layer: listed, or every n-th global as older files say."""
    every = source.integer("global_attn_every_n_layers", default=3)
    require(every > 0, f"global_attn_every_n_layers={every} is not positive")
    types = source.get("layer_types", default=[LOCAL if i % every else GLOBAL for i in range(layers)])
    require(
        isinstance(types, list) and len(types) == layers, f"layer_types has not one entry for each of {layers} layers"
    )
    for kind in types:
        require_choice("layer_types", kind, (GLOBAL, LOCAL))
    return list(types)


def rope(source: HfConfig, kind: str, head_dim: int) -> RopeConfig:
    """Return a kind of layer's rotary positions: `rope_parameters` has one entry for each kind, older files two thetas."""
    parameters = HfConfig(source.object("rope_parameters")).object(kind)
    theta = source.number("global_rope_theta", default=160_000.0)
    if kind == LOCAL and source.raw.get("local_rope_theta", 10_000.0) is not None:  # a null: the global one
        theta = source.number("local_rope_theta", default=10_000.0)
    raw: dict[str, Any] = {"rope_parameters": parameters, "rope_scaling": source.get("rope_scaling")}
    length = source.integer("max_position_embeddings", default=8192)
    return rope_from({"rope_theta": theta, **raw}, head_dim, length)


def encoder(source: HfConfig) -> StackConfig:
    """Return the stack: pre-norm, but the first layer's attention reads the embeddings' norm directly."""
    sizes = source.stack_sizes("hidden_activation")
    hidden, layers, heads = sizes["hidden_size"], sizes["num_layers"], sizes["num_heads"]
    require_size("num_hidden_layers", layers, MAX_LAYERS)
    require(
        heads > 0 < hidden and hidden % heads == 0, f"hidden_size {hidden} is not a multiple of {heads} attention heads"
    )
    norm = NormConfig(eps=source.number("norm_eps", default=1e-5), bias=source.flag("norm_bias", default=False))
    types = layer_types(source, layers)
    ropes = {kind: rope(source, kind, hidden // heads) for kind in sorted(set(types))}
    # `local_attention` counts both sides; ours counts one side and the position itself.
    window = source.integer("local_attention", default=128) // 2 + 1
    attention_bias, attention = source.flag("attention_bias", default=False), source.probability("attention_dropout")
    return StackConfig(
        frontend=TokenFrontend(vocab_size=source.integer("vocab_size"), embedding_size=hidden, norm=norm),
        **sizes,
        ffn="gated",
        norm=norm,
        norm_place="pre",
        first_norm="identity",
        final_norm="norm",
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        ffn_bias=source.flag("mlp_bias", default=False),
        windows=tuple(window if kind == LOCAL else None for kind in types),
        rope=tuple(ropes[kind] for kind in types),
        dropout=Dropout(
            embedding=source.probability("embedding_dropout"),
            attention=attention,
            attention_output=attention,
            activation=source.probability("mlp_dropout"),
        ),
    )


def _scores(kind: Kind, pick: str = "") -> Head:
    """Return a classifier after the transform; `pick` "" is the file's own choice."""

    def config(source: HfConfig, stack: StackConfig) -> HeadConfig:
        dropout = source.probability("classifier_dropout")
        return classifier(source, kind, pick or _pooling(source), dropout=dropout, **_transform(source, stack))

    return Head(config, [*TRANSFORM, *linear("classifier", "head.out")])


def _pooling(source: HfConfig) -> str:
    pooling = source.text("classifier_pooling", default="cls")
    require_choice("classifier_pooling", pooling, ("cls", "mean"))
    return "mean" if pooling == "mean" else "first"


def _words(source: HfConfig, stack: StackConfig) -> HeadConfig:
    bias = source.flag("decoder_bias", default=True)
    return HeadConfig("masked_lm", out_size=vocabulary(stack), out_bias=bias, **_transform(source, stack))


def _transform(source: HfConfig, stack: StackConfig) -> dict[str, Any]:
    return {
        "transform_size": stack.hidden_size,
        "transform_bias": source.flag("classifier_bias", default=False),
        "transform_activation": source.activation("classifier_activation", default="gelu"),
        "transform_norm": stack.norm,
    }


TRANSFORM = [*linear("head.dense", "head.dense"), *linear("head.norm", "head.norm")]
HEADS = {
    "none": BASE,
    "masked_lm": Head(_words, [*TRANSFORM, *linear("decoder", "head.out")]),
    "sequence": _scores("sequence"),
    "choice": _scores("choice"),
    "token": _scores("token", "all"),
    "span": _scores("span", "all"),
}


def config(source: HfConfig, head: str) -> ModelConfig:
    stack = encoder(source)
    _pooling(source)  # a value that is not known is refused whatever the head
    return ModelConfig("modernbert", encoder=stack, tied=word_ties(source, head))


def first_weights(source: HfConfig, config: ModelConfig) -> FirstWeights:
    """Normal, cut off at three deviations; smaller where it is added to the residual path, and in heads."""
    stack, std = config.main_stack, deviation(source)
    cutoff = source.number("initializer_cutoff_factor", default=3.0)
    out = std / (2 * stack.num_layers) ** 0.5
    words = config.head.kind == "masked_lm"
    stds = dict.fromkeys((*RESIDUAL, "head.dense.weight"), out)
    stds["head.out.weight"] = out if words else stack.hidden_size**-0.5
    stds["encoder.frontend.tokens.weight"] = std
    stds["encoder.layers.*.qkv.*.weight"] = stds["encoder.layers.*.gate_up.*.weight"] = std
    return FirstWeights(std, tuple((name, truncated(value, cutoff * value)) for name, value in stds.items()))


def table(config: ModelConfig) -> WeightTable:
    stack = config.main_stack
    theirs, ours = "model.layers.{}", "encoder.layers.{}"
    qkv, gate_up = Split((stack.hidden_size,) * 3), Split((stack.ffn_size,) * 2)
    rows = [
        row("model.embeddings.tok_embeddings.weight", "encoder.frontend.tokens.weight"),
        *linear("model.embeddings.norm", "encoder.frontend.norm"),
        *linear(f"{theirs}.attn_norm", f"{ours}.attention_norm"),
        *fused(f"{theirs}.attn.Wqkv", [f"{ours}.attention.qkv.{part}" for part in "qkv"], qkv),
        *linear(f"{theirs}.attn.Wo", f"{ours}.attention.out"),
        *linear(f"{theirs}.mlp_norm", f"{ours}.ffn_norm"),
        *fused(f"{theirs}.mlp.Wi", [f"{ours}.ffn.gate_up.gate", f"{ours}.ffn.gate_up.up"], gate_up),
        *linear(f"{theirs}.mlp.Wo", f"{ours}.ffn.down"),
        *linear("model.final_norm", "encoder.norm"),
        *ignore("head.*", "decoder.*", "classifier.*"),
    ]
    return WeightTable(tuple(rows), prefix="model.", aliases=OLD_NORM_NAMES)
