"""Pegasus (Zhang et al. 2020): BART's layers with norms before each sub-layer and sinusoidal positions."""

from __future__ import annotations

from plainformer.checkpoint.rows import Row, Sinusoids, WeightTable, constant
from plainformer.config import HeadConfig, ModelConfig
from plainformer.families.bart import rows, stacks, tied, token_rows
from plainformer.families.hf_config import Source


def config(source: Source, head: str) -> ModelConfig:
    """config.json → ModelConfig."""
    heads = {
        "none": HeadConfig,
        "seq2seq_lm": lambda: HeadConfig("seq2seq_lm", out_size=source.integer("vocab_size")),
    }
    return ModelConfig(
        "pegasus",
        *stacks(source, {"positions": "sinusoidal"}, norm_place="pre", final_norm="norm"),
        head=heads[head](),
        tied=tied(source, head),
        pad_id=source.id("pad_token_id", 0),
        eos_ids=source.ids("eos_token_id") or (1,),
        decoder_start_id=0,
    )


def position_rows(config: ModelConfig) -> list[Row]:
    """The reference stores its sinusoids; here they are computed, for any length."""
    stored = Source(config.source).integer("max_position_embeddings", default=1024)
    sinusoids = Sinusoids(stored, config.main_stack.hidden_size)
    return [constant(f"model.{side}.embed_positions.weight", sinusoids) for side in ("encoder", "decoder")]


def table(config: ModelConfig) -> WeightTable:
    """BART's rows without norms on the embeddings."""
    return rows(config, token_rows(config, "model."), position_rows(config))
