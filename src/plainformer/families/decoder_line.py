"""The line of decoders that Llama began: causal, RMS norms first, rotary positions, gated feed-forward.

Llama, Mistral, Qwen, SmolLM3, OLMo 2, Gemma and Phi-3 are this stack with other values; their files say which. GPT-2 and
GPT-NeoX are older and share its heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from plainformer.checkpoint.rows import Row, WeightTable, ignore, linear, linears, row
from plainformer.config import Dropout, ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.config.checks import require, require_choice
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.heads import BASE, SPAN, Head, rate, scores, words
from plainformer.families.hf_config import HfConfig, rope_from

# As Llama 1 and 2 publish it, and others after them.
SENTENCEPIECE = TokenizerConvention(
    "SentencePiece", "bos_token=<s> eos_token=</s> unk_token=<unk>", add_bos=True, prefix_switch=True
)
TIED = (("head.out.weight", "decoder.frontend.tokens.weight"),)


def decoder(source: HfConfig, **changes: Any) -> StackConfig:
    """Return the stack that the Llama line shares; `changes` are the values in which a family differs."""
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
        "qkv_bias": bias,
        "out_bias": bias,
        "ffn_bias": source.flag("mlp_bias", default=False),
        "rope": every_layer(rope, layers),
        "dropout": Dropout(attention=source.probability("attention_dropout")),
    }
    return StackConfig(**directed(source, {**fields, **changes}))


def directed(source: HfConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """Return a stack's fields with its direction: causal, unless config.json says `is_causal: false`.

    Embedding models are decoders with that flag (gte-Qwen2). A window then reaches as far to the right as to the left,
    and its edge counts (|i - j| <= window, in transformers 5.23): one more than ours, which leaves the edge out.
    """
    if source.flag("is_causal", default=True):
        return {"direction": "causal", **fields}
    wider = tuple(None if window is None else window + 1 for window in fields.get("windows", ()))
    return {**fields, "direction": "both", "windows": wider}


def every_layer(value: Any, layers: int) -> tuple[Any, ...]:
    """Return one value for all layers, without building an absurd tuple for an absurd count."""
    return (value,) * min(layers, 1 << 13)


def sliding_layers(
    source: HfConfig, layers: int, window: int | None, default: Callable[[int], bool]
) -> tuple[bool, ...]:
    """Return which layers see a window only: from `layer_types`, else by `default`."""
    types = source.texts("layer_types")
    if types:
        require(len(types) == layers, f"layer_types has {len(types)} entries for {layers} layers")
        for kind in types:
            require_choice("layer_types", kind, ("full_attention", "sliding_attention"))
        return tuple(kind == "sliding_attention" for kind in types)
    return tuple(window is not None and default(index) for index in range(min(layers, 1 << 13)))


def windows(sliding: tuple[bool, ...], window: int | None) -> tuple[int | None, ...]:
    """Return the window of each layer, None where it sees all."""
    return tuple(window if slides else None for slides in sliding)


def decoder_heads(out: str = "lm_head", token: str = "score") -> dict[str, Head]:
    """Return the heads of decoders, by the names of their output over words and of their tagger.

    A classifier reads the last real token.
    """
    return {
        "none": BASE,
        "causal_lm": words("causal_lm", linear(out, "head.out"), out_bias=False),
        "sequence": scores("sequence", "last", "score", out_bias=False),
        "token": scores("token", "all", token, dropout=rate("classifier_dropout", "hidden_dropout")),
        "span": SPAN,
    }


HEADS = decoder_heads()


def build(family: str, source: HfConfig, head: str, stack: StackConfig, *, tie: bool) -> ModelConfig:
    """Return a causal model of this line."""
    tied = TIED if head == "causal_lm" and source.flag("tie_word_embeddings", default=tie) else ()
    return ModelConfig(family, decoder=stack, tied=tied, trained_positions=source.trained_positions())


ATTENTION = {
    ".self_attn.q_proj": ".attention.qkv.q",
    ".self_attn.k_proj": ".attention.qkv.k",
    ".self_attn.v_proj": ".attention.qkv.v",
    ".self_attn.o_proj": ".attention.out",
    ".self_attn.q_norm": ".attention.q_norm",
    ".self_attn.k_norm": ".attention.k_norm",
}
FEED_FORWARD = {".mlp.gate_proj": ".ffn.gate_up.gate", ".mlp.up_proj": ".ffn.gate_up.up", ".mlp.down_proj": ".ffn.down"}
NORMS = {".input_layernorm": ".attention_norm", ".post_attention_layernorm": ".ffn_norm"}


def rows(layers: list[Row]) -> WeightTable:
    """Embeddings and final norm around a family's layer rows."""
    table = [
        row("model.embed_tokens.weight", "decoder.frontend.tokens.weight"),
        *layers,
        *linear("model.norm", "decoder.norm"),
        *ignore("lm_head.*", "score.*", "qa_outputs.*", "model.layers.{}.self_attn.rotary_emb.inv_freq"),
        *ignore("model.rotary_emb.inv_freq"),
    ]
    return WeightTable(tuple(table), prefix="model.", aliases=((r"^transformer\.", "model."),))


def table(config: ModelConfig) -> WeightTable:
    return rows(linears({**ATTENTION, **FEED_FORWARD, **NORMS}, "model.layers.{}", "decoder.layers.{}"))


def table_with_spans(config: ModelConfig) -> WeightTable:
    """Return the same, where transformers calls the base model `transformer` under a question-answering head."""
    made = table(config)
    if config.head.kind != "span":
        return made
    renamed = tuple(replace(r, theirs=re.sub(r"^model\.", "transformer.", r.theirs)) for r in made.rows)
    return WeightTable(renamed, prefix="transformer.", aliases=((r"^model\.", "transformer."),))
