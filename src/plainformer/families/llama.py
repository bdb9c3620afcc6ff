"""Llama 1-3 (Touvron et al. 2023): causal, RMS norms first, rotary positions, gated feed-forward."""

from __future__ import annotations

from dataclasses import replace

from plainformer.checkpoint.rows import WeightTable
from plainformer.config import ModelConfig
from plainformer.families import decoder_line
from plainformer.families.decoder_line import HEADS, SENTENCEPIECE, build, decoder
from plainformer.families.hf_config import HfConfig

__all__ = ["HEADS", "TOKENIZERS", "config", "table"]
TOKENIZERS = dict.fromkeys(("llama", "codellama"), replace(SENTENCEPIECE, legacy_prefix=True))


def config(source: HfConfig, head: str) -> ModelConfig:
    """config.json → ModelConfig."""
    return build("llama", source, head, decoder(source), tie=False)


def table(config: ModelConfig) -> WeightTable:
    """One row for each tensor of a layer."""
    return decoder_line.table(config, span_base="transformer.")
