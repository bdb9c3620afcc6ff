"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): BERT's encoder, fairseq's positions and heads."""

from __future__ import annotations

from plainformer.checkpoint.rows import DropRows, Row, WeightTable, ignore, linears
from plainformer.config import ModelConfig
from plainformer.config.checks import require
from plainformer.config.tokenizer import FAIRSEQ_ROLES, TokenizerConvention
from plainformer.families.encoder_line import encoder, masked_lm, rows, word_rows, word_ties
from plainformer.families.heads import SPAN, TOKEN, Head, pooler, scores
from plainformer.families.hf_config import HfConfig


def unused_positions(source: HfConfig) -> int:
    """fairseq numbers positions from pad_id + 1, so that many rows of the table stand for no position."""
    return (source.id("pad_token_id", 1) or 0) + 1


def masked_lm_rows(config: ModelConfig) -> list[Row]:
    """The masked-word head, under fairseq's names."""
    names = {"lm_head.dense": "head.dense", "lm_head.layer_norm": "head.norm"}
    return [*linears(names), *word_rows(config, "lm_head", "lm_head.decoder")]


HEADS = {
    "none": pooler("roberta.pooler.dense"),
    "masked_lm": Head(lambda source, stack: masked_lm(stack, "gelu"), masked_lm_rows),  # whatever hidden_act is
    "sequence": scores("sequence", "first", "classifier.out_proj", dense="classifier.dense"),
    "choice": scores("choice", "first", dense="roberta.pooler.dense"),
    "token": TOKEN,
    "span": SPAN,
}
AROUND = ("{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}")
TOKENIZERS = {
    "roberta": TokenizerConvention("byte-level BPE", FAIRSEQ_ROLES, *AROUND, trim_offsets=True, unused_positions=2),
    "xlmroberta": TokenizerConvention("SentencePiece", FAIRSEQ_ROLES, *AROUND, pieces="fairseq", unused_positions=2),
}


def config(source: HfConfig, head: str) -> ModelConfig:
    """config.json → ModelConfig; `head` is the kind of head that is wanted."""
    unused = unused_positions(source)
    rows = source.integer("max_position_embeddings", default=512)
    require(rows > unused > 0, f"max_position_embeddings={rows} with pad_token_id={unused - 1} leaves no position")
    stack = encoder(source, max_positions=rows - unused)
    return ModelConfig("roberta", encoder=stack, tied=word_ties(source, head))


def table(config: ModelConfig) -> WeightTable:
    """The line's rows; poolers and other heads are known extras."""
    return rows(
        "roberta",
        *ignore("roberta.pooler.*", "lm_head.*"),
        positions=DropRows(unused_positions(HfConfig(config.source))),
    )
