"""OLMo 2 (2025): Llama with each norm moved to the end of its branch, and norms over the whole q and k projections."""

from __future__ import annotations

from plainformer.checkpoint.rows import WeightTable, linears
from plainformer.config import ModelConfig, NormConfig
from plainformer.families.decoder_line import ATTENTION, FEED_FORWARD, HEADS, build, decoder, rows
from plainformer.families.hf_config import HfConfig

__all__ = ["HEADS", "config", "table"]


def config(source: HfConfig, head: str) -> ModelConfig:
    norm = NormConfig("rms", source.number("rms_norm_eps", default=1e-5), cast="last")
    stack = decoder(source, norm=norm, norm_place="branch", qk_norm="all")
    return build("olmo2", source, head, stack, tie=False)


def table(config: ModelConfig) -> WeightTable:
    """Norms carry other names than in Llama, because they are in other places."""
    pairs = {
        **ATTENTION,
        **FEED_FORWARD,
        ".self_attn.q_norm": ".attention.q_norm_all",
        ".self_attn.k_norm": ".attention.k_norm_all",
        ".post_attention_layernorm": ".attention_norm",
        ".post_feedforward_layernorm": ".ffn_norm",
    }
    return rows(linears(pairs, "model.layers.{}", "decoder.layers.{}"))
