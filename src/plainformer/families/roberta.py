"""RoBERTa (Liu et al. 2019), XLM-RoBERTa (Conneau et al. 2020), CamemBERT (Martin et al. 2020): BERT as fairseq numbers it."""

from __future__ import annotations

from plainformer.checkpoint.rows import DropRows, WeightTable, ignore
from plainformer.config import ModelConfig
from plainformer.config.checks import require
from plainformer.config.tokenizer import FAIRSEQ_ROLES, TokenizerConvention
from plainformer.families.encoder_line import HIDDEN, dense_classifier, encoder, heads, rows, word_head, word_ties
from plainformer.families.heads import pooler
from plainformer.families.hf_config import HfConfig


def unused_positions(source: HfConfig) -> int:
    """fairseq numbers positions from pad_id + 1, so the table begins with that number of unused rows."""
    return (source.id("pad_token_id", 1) or 0) + 1


HEADS = {
    **heads(
        word_head("lm_head", "dense", "layer_norm", "gelu"),  # whatever hidden_act is
        "roberta.pooler.dense",
        pooler("roberta.pooler.dense"),
        dropout={"choice": HIDDEN},
    ),
    "sequence": dense_classifier(),
}
AROUND = ("{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}")
TOKENIZERS = {
    "roberta": TokenizerConvention("byte-level BPE", FAIRSEQ_ROLES, *AROUND, trim_offsets=True, unused_positions=2),
    "camembert": TokenizerConvention(
        "SentencePiece", FAIRSEQ_ROLES, *AROUND, pieces="fairseq-before", unused_positions=2, prefix_switch=True
    ),
    "xlmroberta": TokenizerConvention(
        "SentencePiece", FAIRSEQ_ROLES, *AROUND, pieces="fairseq", unused_positions=2, prefix_switch=True
    ),
}


def config(source: HfConfig, head: str) -> ModelConfig:
    unused = unused_positions(source)
    rows = source.integer("max_position_embeddings", default=512)
    require(rows > unused > 0, f"max_position_embeddings={rows} with pad_token_id={unused - 1} leaves no position")
    stack = encoder(source, max_positions=rows - unused)
    return ModelConfig("roberta", encoder=stack, tied=word_ties(source, head))


def table(config: ModelConfig) -> WeightTable:
    return rows(
        "roberta",
        *ignore("roberta.pooler.*", "lm_head.*"),
        positions=DropRows(unused_positions(HfConfig(config.source))),
    )
