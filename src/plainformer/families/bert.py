"""BERT (Devlin et al. 2019): an encoder, post-norm, learned positions, and a first token that sums up the text."""

from __future__ import annotations

from plainformer.checkpoint.rows import WeightTable, ignore
from plainformer.config import ModelConfig
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.encoder_line import encoder, heads, rows, word_head, word_ties
from plainformer.families.heads import pooler
from plainformer.families.hf_config import HfConfig

HEADS = heads(
    word_head("cls.predictions", "transform.dense", "transform.LayerNorm"),
    "bert.pooler.dense",
    pooler("bert.pooler.dense"),
)
TOKENIZERS = {"bert": TokenizerConvention("wordpiece")}


def config(source: HfConfig, head: str) -> ModelConfig:
    return ModelConfig("bert", encoder=encoder(source), tied=word_ties(source, head))


def table(config: ModelConfig) -> WeightTable:
    return rows("bert", *ignore("bert.pooler.*"))
