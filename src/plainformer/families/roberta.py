"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): BERT's encoder, fairseq's positions and heads."""

from __future__ import annotations

from plainformer.checkpoint.rows import OLD_NORM_NAMES, DropRows, Row, WeightTable, ignore, linear
from plainformer.config import HeadConfig, ModelConfig, require
from plainformer.families.bert import embedding_rows, encoder, layer_rows, masked_lm, word_rows, word_ties
from plainformer.families.hf_config import Source, classifier

EXTRAS = ignore("*embeddings.position_ids", "*embeddings.token_type_ids", "lm_head.*", "classifier.*", "qa_outputs.*")


def unused_positions(source: Source) -> int:
    """fairseq numbers positions from pad_id + 1, so that many rows of the table stand for no position."""
    return (source.id("pad_token_id", 1) or 0) + 1


def config(source: Source, head: str) -> ModelConfig:
    """config.json → ModelConfig; `head` is the kind of head that is wanted."""
    unused = unused_positions(source)
    rows = source.integer("max_position_embeddings", default=512)
    require(rows > unused > 0, f"max_position_embeddings={rows} with pad_token_id={unused - 1} leaves no position")
    stack = encoder(source, max_positions=rows - unused)
    size = stack.hidden_size
    heads = {
        "none": lambda: HeadConfig(pick="first", transform_size=size),
        "masked_lm": lambda: masked_lm(stack, "gelu"),  # whatever hidden_act is
        "sequence": lambda: classifier(source, "sequence", "first", transform_size=size),
        "choice": lambda: classifier(source, "choice", "first", transform_size=size),
        "token": lambda: classifier(source, "token", "all"),
        "span": lambda: classifier(source, "span", "all"),
    }
    return ModelConfig("roberta", encoder=stack, head=heads[head](), tied=word_ties(source, head))


def table(config: ModelConfig) -> WeightTable:
    """The rows for this model's head; other heads' tensors are known extras."""
    pooler = linear("roberta.pooler.dense", "head.dense")
    head: dict[str, list[Row]] = {
        "none": pooler,
        "masked_lm": [
            *linear("lm_head.dense", "head.dense"),
            *linear("lm_head.layer_norm", "head.norm"),
            *word_rows("lm_head", "lm_head.decoder", bool(config.tied)),
        ],
        "sequence": [*linear("classifier.dense", "head.dense"), *linear("classifier.out_proj", "head.out")],
        "choice": [*pooler, *linear("classifier", "head.out")],
        "token": linear("classifier", "head.out"),
        "span": linear("qa_outputs", "head.out"),
    }
    rows = [
        *embedding_rows("roberta.embeddings", DropRows(unused_positions(Source(config.source)))),
        *layer_rows("roberta.encoder.layer.{}"),
        *head[config.head.kind],
        *ignore("roberta.pooler.*"),
        *EXTRAS,
    ]
    return WeightTable(tuple(rows), prefix="roberta.", aliases=OLD_NORM_NAMES)
