"""Llama 1-3 (Touvron et al. 2023): causal, RMS norms first, rotary positions, gated feed-forward."""

from __future__ import annotations

from dataclasses import replace

from plainformer.config import ModelConfig
from plainformer.families.decoder_line import HEADS, SENTENCEPIECE, build, decoder
from plainformer.families.decoder_line import table_with_spans as table
from plainformer.families.hf_config import HfConfig

__all__ = ["HEADS", "TOKENIZERS", "config", "table"]
TOKENIZERS = dict.fromkeys(("llama", "codellama"), replace(SENTENCEPIECE, legacy_prefix=True))


def config(source: HfConfig, head: str) -> ModelConfig:
    return build("llama", source, head, decoder(source), tie=False)
