"""Marian, the OPUS-MT models (Junczys-Dowmunt et al. 2018): BART's post-norm layers with sinusoidal positions.

Source and target may have a vocabulary each (`share_encoder_decoder_embeddings` false); the output is then tied to the
target's.
"""

from __future__ import annotations

from dataclasses import replace

from plainformer.checkpoint.rows import WeightTable
from plainformer.config import ModelConfig, TokenFrontend
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.hf_config import HfConfig
from plainformer.families.seq2seq_line import (
    ALIASES,
    DECODER_TOKENS,
    HEADS,
    fixed,
    rows,
    separate_token_rows,
    sinusoid_rows,
    stacks,
    tied,
    token_rows,
)

__all__ = ["ALIASES", "HEADS", "TOKENIZERS", "config", "table"]
DEFAULTS = {"eos_token_id": 0}
TOKENIZERS = {
    "marian": TokenizerConvention(
        "SentencePiece",
        "eos_token=</s> unk_token=<unk> pad_token=<pad>",
        "$A {eos}",
        pieces="vocab.json",
        language_marks=(">>", "<<"),
        saved_as="MarianTokenizer",
    )
}


def config(source: HfConfig, head: str) -> ModelConfig:
    encoder, decoder = stacks(source, {"positions": "sinusoidal"})
    ties = tied(source, head)
    if not shares(source):
        assert isinstance(decoder.frontend, TokenFrontend)
        targets = source.integer("decoder_vocab_size", default=decoder.frontend.vocab_size)
        decoder = replace(decoder, frontend=replace(decoder.frontend, vocab_size=targets))
        ties = (("head.out.weight", DECODER_TOKENS),) if ties and head == "seq2seq_lm" else ()
    return ModelConfig(
        "marian",
        encoder,
        decoder,
        tied=ties,
        fixed=fixed(head),
        decoder_start_id=source.id("pad_token_id"),  # these models start a target with padding
        trained_positions=source.integer("max_position_embeddings", default=1024),
    )


def shares(source: HfConfig) -> bool:
    """Return whether source and target have one vocabulary."""
    return source.flag("share_encoder_decoder_embeddings", default=True)


def table(config: ModelConfig) -> WeightTable:
    """BART's rows without norms on the embeddings."""
    shared = shares(HfConfig(config.source))
    tokens = token_rows(config, "model.") if shared else separate_token_rows("model.")
    return rows(config, tokens, sinusoid_rows(config))
