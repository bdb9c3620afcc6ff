"""Mistral (Jiang et al. 2023): Llama whose layers all see a sliding window."""

from __future__ import annotations

from dataclasses import replace

from plainformer.config import ModelConfig
from plainformer.families.decoder_line import HEADS, SENTENCEPIECE, build, decoder, every_layer, table
from plainformer.families.hf_config import HfConfig

__all__ = ["HEADS", "TOKENIZERS", "config", "table"]
DEFAULTS = {"num_key_value_heads": 8, "intermediate_size": 14336}
TOKENIZERS = {"mistral": replace(SENTENCEPIECE, json_alone=True)}


def config(source: HfConfig, head: str) -> ModelConfig:
    source.refuse("layer_types", why="a model that alternates windows is another family")
    # Absent is the default of the first release, null is the later releases' whole sequence.
    window = source.integer("sliding_window", default=4096) if source.raw.get("sliding_window", 0) is not None else None
    layers = source.integer("num_hidden_layers", default=32)
    stack = decoder(
        source,
        windows=every_layer(window, layers),
        qkv_bias=False,
        out_bias=False,
        ffn_bias=False,
    )
    return build("mistral", source, head, stack, tie=False)
