"""Qwen2 (Yang et al. 2024): Llama with biases on q, k and v. Qwen3 (2025): norms on each head's q and k instead."""

from __future__ import annotations

from plainformer.config import ModelConfig
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.decoder_line import HEADS, build, decoder, sliding_layers, windows
from plainformer.families.decoder_line import table_with_spans as table
from plainformer.families.hf_config import HfConfig

__all__ = ["HEADS", "TOKENIZERS", "config", "table"]
ROLES = "eos_token=<|endoftext|> pad_token=<|endoftext|>"
TOKENIZERS = dict.fromkeys(
    ("qwen2", "qwen3"), TokenizerConvention("byte-level BPE", ROLES, unicode="NFC", words="qwen2")
)


def config(source: HfConfig, head: str) -> ModelConfig:
    layers = source.integer("num_hidden_layers", default=32)
    uses_window = source.flag("use_sliding_window", default=False)
    window = source.integer("sliding_window", default=4096) if uses_window else None
    first = source.integer("max_window_layers", default=28)
    sliding = sliding_layers(source, layers, window, lambda index: index >= first)
    changes: dict[str, object] = {"windows": windows(sliding, window)}
    source.raw.setdefault("num_key_value_heads", 32)  # absent is this default, null is one for each head
    if source.raw["model_type"] == "qwen3":
        hidden, heads = source.integer("hidden_size", default=4096), source.integer("num_attention_heads", default=32)
        source.raw.setdefault("head_dim", min(128, hidden * heads))
        changes["qk_norm"] = "head"
    else:
        changes.update(qkv_bias=True, out_bias=False)
    return build("qwen", source, head, decoder(source, **changes), tie=False)
