"""M2M-100 (Fan et al. 2021) and NLLB-200 (NLLB team 2022): mBART's pre-norm layers with fairseq's sinusoids."""

from __future__ import annotations

from typing import Any

from plainformer.checkpoint.rows import WeightTable, ignore
from plainformer.config import HeadConfig, ModelConfig, require
from plainformer.families.bart import rows, stacks, tied, token_rows
from plainformer.families.hf_config import Source


def config(source: Source, head: str) -> ModelConfig:
    """config.json → ModelConfig."""
    pad = source.id("pad_token_id", 1)
    require(pad is not None and pad >= 0, "pad_token_id is missing: positions are counted from it")
    assert pad is not None
    # fairseq numbers positions from its padding row on: the first token has row pad_token_id + 1.
    frontend: dict[str, Any] = {"positions": "sinusoidal", "sinusoid": "tensor2tensor", "sinusoid_start": pad + 1}
    if source.flag("scale_embedding", default=True):
        frontend["scale"] = source.integer("d_model", default=1024) ** 0.5
    activation = source.activation("activation_function", default="relu")
    heads = {
        "none": HeadConfig,
        "seq2seq_lm": lambda: HeadConfig("seq2seq_lm", out_size=source.integer("vocab_size"), out_bias=False),
    }
    return ModelConfig(
        "m2m",
        *stacks(source, frontend, activation=activation, norm_place="pre", final_norm="norm"),
        head=heads[head](),
        tied=tied(source, head),
        pad_id=pad,
        eos_ids=source.ids("eos_token_id") or (2,),
        decoder_start_id=2,
    )


def table(config: ModelConfig) -> WeightTable:
    """BART's rows without norms on the embeddings; old files carry the sinusoids."""
    positions = ignore("*.embed_positions.weight", "*.embed_positions.weights", "*.embed_positions._float_tensor")
    return rows(config, token_rows(config, "model."), positions)
