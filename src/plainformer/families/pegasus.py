"""Pegasus (Zhang et al. 2020): BART's layers with norms before each sub-layer and sinusoidal positions."""

from __future__ import annotations

from plainformer.checkpoint.rows import WeightTable
from plainformer.config import ModelConfig
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.hf_config import HfConfig
from plainformer.families.seq2seq_line import ALIASES, HEADS, fixed, rows, sinusoid_rows, stacks, tied, token_rows

__all__ = ["ALIASES", "HEADS", "TOKENIZERS", "config", "table"]
DEFAULTS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
TOKENIZERS = {
    "pegasus": TokenizerConvention(
        "SentencePiece",
        "eos_token=</s> unk_token=<unk> pad_token=<pad> mask_token=<mask_2>",
        "$A {eos}",
        pieces="reserved",
    )
}


def config(source: HfConfig, head: str) -> ModelConfig:
    encoder, decoder = stacks(source, {"positions": "sinusoidal"}, norm_place="pre", final_norm="norm")
    return ModelConfig(
        "pegasus",
        encoder,
        decoder,
        tied=tied(source, head),
        fixed=fixed(head),
        trained_positions=source.integer("max_position_embeddings", default=1024),
    )


def table(config: ModelConfig) -> WeightTable:
    """BART's rows without norms on the embeddings."""
    return rows(config, token_rows(config, "model."), sinusoid_rows(config))
