"""Phi-3 (Abdin et al. 2024): Llama with fused projections in its files, and longrope in its long-context sizes."""

from __future__ import annotations

from dataclasses import replace

from plainformer.checkpoint.rows import Split, WeightTable, fused, linears
from plainformer.config import Dropout, ModelConfig
from plainformer.families.decoder_line import (
    ATTENTION,
    FEED_FORWARD,
    HEADS,
    NORMS,
    SENTENCEPIECE,
    build,
    decoder,
    every_layer,
    rows,
)
from plainformer.families.hf_config import HfConfig

__all__ = ["HEADS", "TOKENIZERS", "config", "table"]
DEFAULTS = {"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
TOKENIZERS = {"phi3": replace(SENTENCEPIECE, json_alone=True)}


def config(source: HfConfig, head: str) -> ModelConfig:
    """Early files call longrope "su" or "yarn"."""
    scaling = source.raw.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("type", scaling.get("rope_type")) == "yarn":
        source = HfConfig({**source.raw, "rope_scaling": {**scaling, "type": "longrope", "rope_type": "longrope"}})
    layers = source.integer("num_hidden_layers", default=32)
    window = source.integer("sliding_window") if source.get("sliding_window") is not None else None
    outputs = source.probability("resid_pdrop")
    stack = decoder(
        source,
        windows=every_layer(window, layers),
        qkv_bias=False,
        out_bias=False,
        ffn_bias=False,
        dropout=Dropout(
            attention=source.probability("attention_dropout"), attention_output=outputs, ffn_output=outputs
        ),
    )
    return build("phi3", source, head, stack, tie=False)


def table(config: ModelConfig) -> WeightTable:
    """qkv_proj and gate_up_proj are split."""
    stack = config.decoder
    assert stack is not None
    q, kv = stack.num_heads * stack.head_dim, stack.num_kv_heads * stack.head_dim
    theirs, ours = "model.layers.{}", "decoder.layers.{}"
    qkv = [f"{ours}.attention.qkv.{name}" for name in "qkv"]
    gate_up = [f"{ours}.ffn.gate_up.{name}" for name in ("gate", "up")]
    pairs = {
        ".self_attn.o_proj": ATTENTION[".self_attn.o_proj"],
        ".mlp.down_proj": FEED_FORWARD[".mlp.down_proj"],
        **NORMS,
    }
    layers = [
        *fused(f"{theirs}.self_attn.qkv_proj", qkv, Split((q, kv, kv))),
        *fused(f"{theirs}.mlp.gate_up_proj", gate_up, Split((stack.ffn_size, stack.ffn_size))),
        *linears(pairs, theirs, ours),
    ]
    return rows(layers)
