"""SmolLM3 (Bakouch et al. 2025): Llama in which every fourth layer has no positions (NoPE; Yang et al. 2025)."""

from __future__ import annotations

from plainformer.config import ModelConfig
from plainformer.config.checks import MAX_LAYERS, require, require_size
from plainformer.families.decoder_line import HEADS, build, decoder, sliding_layers, windows
from plainformer.families.decoder_line import table_with_spans as table
from plainformer.families.hf_config import HfConfig

__all__ = ["HEADS", "config", "table"]


def config(source: HfConfig, head: str) -> ModelConfig:
    """`no_rope_layers` is 1 where a layer has rotary positions."""
    layers = source.integer("num_hidden_layers", default=36)
    source.raw.setdefault("num_key_value_heads", 4)  # absent is this default, null is one for each head
    source.raw.setdefault("rope_theta", 2_000_000.0)
    every = source.integer("no_rope_layer_interval", default=4)
    require_size("no_rope_layer_interval", every, MAX_LAYERS)
    usual = tuple(int((index + 1) % every != 0) for index in range(min(layers, 1 << 13)))
    rotated = source.sizes("no_rope_layers", usual)
    require(len(rotated) == layers, f"no_rope_layers has {len(rotated)} entries for {layers} layers")
    uses_window = source.flag("use_sliding_window", default=False)
    window = source.integer("sliding_window") if uses_window and source.get("sliding_window") is not None else None
    sliding = sliding_layers(source, layers, window, lambda index: not rotated[index])
    stack = decoder(source, windows=windows(sliding, window))
    rope = tuple(r if keep else None for r, keep in zip(stack.rope, rotated, strict=True))
    return build("smollm3", source, head, decoder(source, windows=stack.windows, rope=rope), tie=True)
