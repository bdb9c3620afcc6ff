"""Marian, the OPUS-MT models (Junczys-Dowmunt et al. 2018): BART's post-norm layers with sinusoidal positions.

Source and target may have a vocabulary each (`share_encoder_decoder_embeddings` false); the output is then tied to the
target's.
"""

from __future__ import annotations

from dataclasses import replace

from plainformer.checkpoint.rows import WeightTable
from plainformer.config import HeadConfig, ModelConfig, TokenFrontend
from plainformer.families.bart import DECODER_TOKENS, rows, separate_token_rows, stacks, tied, token_rows
from plainformer.families.hf_config import Source
from plainformer.families.pegasus import position_rows


def config(source: Source, head: str) -> ModelConfig:
    """config.json → ModelConfig."""
    encoder, decoder = stacks(source, {"positions": "sinusoidal"})
    targets = source.integer("vocab_size")
    ties = tied(source, head)
    if not shares(source):
        targets = source.integer("decoder_vocab_size", default=targets)
        assert isinstance(decoder.frontend, TokenFrontend)
        decoder = replace(decoder, frontend=replace(decoder.frontend, vocab_size=targets))
        ties = (("head.out.weight", DECODER_TOKENS),) if ties and head == "seq2seq_lm" else ()
    heads = {"none": HeadConfig, "seq2seq_lm": lambda: HeadConfig("seq2seq_lm", out_size=targets)}
    return ModelConfig(
        "marian",
        encoder,
        decoder,
        head=heads[head](),
        tied=ties,
        eos_ids=source.ids("eos_token_id") or (0,),
        decoder_start_id=source.id("pad_token_id"),  # these models start a target with padding
    )


def shares(source: Source) -> bool:
    """Whether source and target have one vocabulary."""
    return source.flag("share_encoder_decoder_embeddings", default=True)


def table(config: ModelConfig) -> WeightTable:
    """BART's rows without norms on the embeddings."""
    shared = shares(Source(config.source))
    tokens = token_rows(config, "model.") if shared else separate_token_rows("model.")
    return rows(config, tokens, position_rows(config))
