"""ELECTRA (Clark et al. 2020): BERT's encoder, trained to tell replaced words; small ones have narrow word vectors."""

from __future__ import annotations

from typing import Any

from plainformer.checkpoint.rows import WeightTable, ignore, linear, linears
from plainformer.config import HeadConfig, ModelConfig, StackConfig
from plainformer.config.checks import require_choice
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.encoder_line import CLASSIFIER, dense_classifier, encoder, masked_lm, rows, word_ties
from plainformer.families.heads import BASE, SPAN, Head, classifier, scores
from plainformer.families.hf_config import HfConfig

DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "embedding_size": 128}
PICKS = {"first": "first", "last": "last", "cls_index": "last", "mean": "mean"}


def _summary(source: HfConfig, stack: StackConfig) -> HeadConfig:
    """Return the multiple-choice head: one vector a sequence as `summary_type` says, then a dense layer if there is one."""
    kind = source.text("summary_type", default="first")
    require_choice("summary_type", kind, tuple(PICKS))
    source.refuse("summary_proj_to_labels", False, why="the classifier reads vectors of the hidden size")
    # A null means identity; a missing key means gelu.
    named = source.raw.get("summary_activation", "gelu")
    activation = source.activation("summary_activation", default="gelu") if named else "identity"
    fields: dict[str, Any] = {
        "dropout": source.probability("summary_last_dropout", default=0.1),
        "dense_dropout": source.probability("summary_first_dropout", default=0.0),
    }
    if source.flag("summary_use_proj", default=True):
        fields |= {"transform_size": stack.hidden_size, "transform_activation": activation}
        return classifier(source, "choice", PICKS[kind], **fields)
    if activation != "identity":
        source.refuse("summary_use_proj", why="an activation without the dense layer before it")
    return classifier(source, "choice", PICKS[kind], **fields)


WORDS = {
    "generator_predictions.dense": "head.dense",
    "generator_predictions.LayerNorm": "head.norm",
    "generator_lm_head": "head.out",
}
HEADS = {
    "none": BASE,
    "masked_lm": Head(lambda source, stack: masked_lm(stack, "gelu"), linears(WORDS)),  # whatever hidden_act is
    "sequence": dense_classifier(transform_activation="gelu"),
    "choice": Head(_summary, linears({"sequence_summary.summary": "head.dense", "classifier": "head.out"})),
    "token": scores("token", "all", dropout=CLASSIFIER),
    "span": SPAN,
}
# The discriminator predicts no words: it is a base model.
ARCHITECTURES = {"ForPreTraining": "none"}
TOKENIZERS = {"electra": TokenizerConvention("wordpiece")}


def config(source: HfConfig, head: str) -> ModelConfig:
    size, embedding_size = source.integer("hidden_size"), source.integer("embedding_size")
    stack = encoder(source, embedding_size=embedding_size, projection="none" if embedding_size == size else "affine")
    return ModelConfig("electra", encoder=stack, tied=word_ties(source, head))


def table(config: ModelConfig) -> WeightTable:
    return rows(
        "electra",
        *linear("electra.embeddings_project", "encoder.frontend.after_norm"),
        *ignore("discriminator_predictions.*", "generator_predictions.*", "generator_lm_head.*", "sequence_summary.*"),
    )
