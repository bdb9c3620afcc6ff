"""BERT (Devlin et al. 2019): an encoder, post-norm, learned positions, and a first token that sums up the text."""

from __future__ import annotations

from plainformer.checkpoint.rows import Row, WeightTable, ignore, linear
from plainformer.config import ModelConfig
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.encoder_line import encoder, masked_lm, rows, word_rows, word_ties
from plainformer.families.heads import SPAN, TOKEN, Head, pooler, scores
from plainformer.families.hf_config import HfConfig


def masked_lm_rows(config: ModelConfig) -> list[Row]:
    """The masked-word head."""
    return [
        *linear("cls.predictions.transform.dense", "head.dense"),
        *linear("cls.predictions.transform.LayerNorm", "head.norm"),
        *word_rows(config, "cls.predictions", "cls.predictions.decoder"),
    ]


HEADS = {
    "none": pooler("bert.pooler.dense"),
    "masked_lm": Head(lambda source, stack: masked_lm(stack), masked_lm_rows),
    "sequence": scores("sequence", "first", dense="bert.pooler.dense"),
    "choice": scores("choice", "first", dense="bert.pooler.dense"),
    "token": TOKEN,
    "span": SPAN,
}
TOKENIZERS = {"bert": TokenizerConvention("wordpiece")}


def config(source: HfConfig, head: str) -> ModelConfig:
    """config.json → ModelConfig; `head` is the kind of head that is wanted."""
    return ModelConfig("bert", encoder=encoder(source), tied=word_ties(source, head))


def table(config: ModelConfig) -> WeightTable:
    """The line's rows; poolers and other heads are known extras."""
    return rows("bert", *ignore("bert.pooler.*"))
