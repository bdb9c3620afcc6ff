"""Llama 1-3 (Touvron et al. 2023) and its kin: causal, RMS norms first, rotary positions, gated feed-forward.

Mistral, Qwen2, Qwen3, SmolLM3, OLMo2, Gemma and Phi-3 are this stack with other values; their files say which.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from plainformer.checkpoint.rows import Row, WeightTable, ignore, linear, linears, row
from plainformer.config import (
    HeadConfig,
    ModelConfig,
    NormConfig,
    StackConfig,
    TokenFrontend,
    require,
    require_choice,
)
from plainformer.families.hf_config import Source, classifier, rope_from

# Their question-answering heads name the base model `transformer` in the reference; everywhere else it is `model`.
QA_CALLS_BASE_TRANSFORMER = ("llama", "qwen", "smollm3")
TIED = (("head.out.weight", "decoder.frontend.tokens.weight"),)


def decoder(source: Source, **changes: Any) -> StackConfig:
    """The stack that the Llama line shares; `changes` are the values in which a family differs."""
    hidden = source.integer("hidden_size", default=4096)
    heads = source.integer("num_attention_heads", default=32)
    layers = source.integer("num_hidden_layers", default=32)
    head_dim = source.integer("head_dim", default=hidden // max(heads, 1))
    rope = rope_from(source.raw, head_dim, source.integer("max_position_embeddings", default=2048))
    bias = source.flag("attention_bias", default=False)
    fields: dict[str, Any] = {
        "frontend": TokenFrontend(vocab_size=source.integer("vocab_size"), embedding_size=hidden),
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": source.integer("num_key_value_heads", default=heads),
        "head_dim": head_dim,
        "ffn_size": source.integer("intermediate_size", default=11008),
        "activation": source.activation("hidden_act", "hidden_activation", default="silu"),
        "ffn": "gated",
        "norm": NormConfig("rms", source.number("rms_norm_eps", default=1e-6)),
        "norm_place": "pre",
        "final_norm": "norm",
        "direction": "causal",
        "qkv_bias": bias,
        "out_bias": bias,
        "ffn_bias": source.flag("mlp_bias", default=False),
        "rope": every_layer(rope, layers),
    }
    return StackConfig(**{**fields, **changes})


def every_layer(value: Any, layers: int) -> tuple[Any, ...]:
    """One value for all layers, without building an absurd tuple for an absurd count."""
    return (value,) * min(layers, 1 << 13)


def sliding_layers(source: Source, layers: int, window: int | None, default: Callable[[int], bool]) -> tuple[bool, ...]:
    """Which layers see a window only: from `layer_types`, else by `default`."""
    types = source.texts("layer_types")
    if types:
        require(len(types) == layers, f"layer_types has {len(types)} entries for {layers} layers")
        for kind in types:
            require_choice("layer_types", kind, ("full_attention", "sliding_attention"))
        return tuple(kind == "sliding_attention" for kind in types)
    return tuple(window is not None and default(index) for index in range(min(layers, 1 << 13)))


def windows(sliding: tuple[bool, ...], window: int | None) -> tuple[int | None, ...]:
    """The window of each layer, None where it sees all."""
    return tuple(window if slides else None for slides in sliding)


def decoder_head(source: Source, head: str, stack: StackConfig, **fields: Any) -> HeadConfig:
    """The heads that decoders have: a classifier reads the last real token."""
    if head == "causal_lm":
        return HeadConfig("causal_lm", out_size=source.integer("vocab_size"), out_bias=False, **fields)
    if head == "sequence":
        return classifier(source, "sequence", "last", out_bias=False)
    if head not in ("none", "token", "span"):
        raise KeyError(head)  # as the other families' tables of heads do
    return HeadConfig() if head == "none" else classifier(source, head, "all")


def build(family: str, source: Source, head: str, stack: StackConfig, tie: bool, **fields: Any) -> ModelConfig:
    """A causal model of this line."""
    tied = TIED if head == "causal_lm" and source.flag("tie_word_embeddings", default=tie) else ()
    return ModelConfig(family, decoder=stack, head=decoder_head(source, head, stack, **fields), tied=tied)


def config(source: Source, head: str) -> ModelConfig:
    """config.json → ModelConfig."""
    return build("llama", source, head, decoder(source), tie=False)


ATTENTION = {
    ".self_attn.q_proj": ".attention.qkv.q",
    ".self_attn.k_proj": ".attention.qkv.k",
    ".self_attn.v_proj": ".attention.qkv.v",
    ".self_attn.o_proj": ".attention.out",
    ".self_attn.q_norm": ".attention.q_norm",
    ".self_attn.k_norm": ".attention.k_norm",
}
FEED_FORWARD = {
    ".mlp.gate_proj": ".ffn.gate_up.gate",
    ".mlp.up_proj": ".ffn.gate_up.up",
    ".mlp.down_proj": ".ffn.down",
}
NORMS = {".input_layernorm": ".attention_norm", ".post_attention_layernorm": ".ffn_norm"}


def rows(config: ModelConfig, layers: list[Row]) -> WeightTable:
    """Embeddings, final norm and heads around a family's layer rows."""
    head: dict[str, list[Row]] = {
        "none": [],
        "causal_lm": linear("lm_head", "head.out"),
        "sequence": linear("score", "head.out"),
        "token": linear("score", "head.out"),
        "span": linear("qa_outputs", "head.out"),
    }
    table = [
        row("model.embed_tokens.weight", "decoder.frontend.tokens.weight"),
        *layers,
        *linear("model.norm", "decoder.norm"),
        *head[config.head.kind],
        *ignore("lm_head.*", "score.*", "qa_outputs.*", "model.layers.{}.self_attn.rotary_emb.inv_freq"),
        *ignore("model.rotary_emb.inv_freq"),
    ]
    if config.head.kind != "span" or config.family not in QA_CALLS_BASE_TRANSFORMER:
        return WeightTable(tuple(table), prefix="model.", aliases=((r"^transformer\.", "model."),))
    renamed = tuple(replace(r, theirs=re.sub(r"^model\.", "transformer.", r.theirs)) for r in table)
    return WeightTable(renamed, prefix="transformer.", aliases=((r"^model\.", "transformer."),))


def table(config: ModelConfig) -> WeightTable:
    """One row for each tensor of a layer."""
    pairs = {**ATTENTION, **FEED_FORWARD, **NORMS}
    return rows(config, linears(pairs, "model.layers.{}", "decoder.layers.{}"))
