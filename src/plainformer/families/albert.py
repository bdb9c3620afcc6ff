"""ALBERT (Lan et al. 2020): BERT with narrow word vectors and layers that share their parameters."""

from __future__ import annotations

from dataclasses import replace

from plainformer.checkpoint.rows import WeightTable, ignore, linear, linears
from plainformer.config import ModelConfig
from plainformer.config.checks import MAX_LAYERS, require_size
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.encoder_line import encoder, heads, rows, word_head, word_ties
from plainformer.families.heads import pooler, rate
from plainformer.families.hf_config import HfConfig

DEFAULTS = {
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "embedding_size": 128,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LAYER = {
    ".attention.query": ".attention.qkv.q",
    ".attention.key": ".attention.qkv.k",
    ".attention.value": ".attention.qkv.v",
    ".attention.dense": ".attention.out",
    ".attention.LayerNorm": ".attention_norm",
    ".ffn": ".ffn.up",
    ".ffn_output": ".ffn.down",
    ".full_layer_layer_norm": ".ffn_norm",
}


def sharing(source: HfConfig) -> tuple[int, int, tuple[int, ...]]:
    """Groups of layers, layers in a group, and which set of parameters each layer of the whole stack uses."""
    layers = source.integer("num_hidden_layers", default=12)
    groups, inner = source.integer("num_hidden_groups", default=1), source.integer("inner_group_num", default=1)
    for name, value in (("num_hidden_groups", groups), ("inner_group_num", inner), ("num_hidden_layers", layers)):
        require_size(name, value, MAX_LAYERS)
    require_size("num_hidden_layers * inner_group_num", layers * inner, MAX_LAYERS)
    # Each step runs a whole group. In floats, as the published code rounds when groups do not divide layers.
    group_of_step = [int(step / (layers / groups)) for step in range(layers)]
    return groups, inner, tuple(group * inner + place for group in group_of_step for place in range(inner))


CLASSIFIER = rate("classifier_dropout_prob")
HEADS = heads(
    word_head("predictions", "dense", "LayerNorm"),
    "albert.pooler",
    pooler("albert.pooler"),
    dropout={"sequence": CLASSIFIER, "choice": CLASSIFIER, "token": CLASSIFIER},
)
TOKENIZERS = {
    "albert": TokenizerConvention(
        "SentencePiece",
        "bos_token=[CLS] eos_token=[SEP] cls_token=[CLS] sep_token=[SEP] mask_token=[MASK] unk_token=<unk> pad_token=<pad>",
        "{cls} $A {sep}",
        "{cls} $A {sep} $B:1 {sep}:1",
        pieces="bracketed",
        strip_accents=True,
        lowercase=True,
        prefix_switch=True,
    )
}


def config(source: HfConfig, head: str) -> ModelConfig:
    _, _, layer_ids = sharing(source)
    # The projection is there even where both sizes are the same.
    stack = encoder(source, embedding_size=source.integer("embedding_size"), projection="affine")
    dropout = replace(stack.dropout, ffn_output=0.0)
    stack = replace(stack, num_layers=len(layer_ids), layer_ids=layer_ids, windows=(), rope=(), dropout=dropout)
    return ModelConfig("albert", encoder=stack, tied=word_ties(source, head))


def table(config: ModelConfig) -> WeightTable:
    groups, inner, _ = sharing(HfConfig(config.source))
    layers = [
        r
        for g in range(groups)
        for i in range(inner)
        for r in linears(
            LAYER, f"albert.encoder.albert_layer_groups.{g}.albert_layers.{i}", f"encoder.layers.{g * inner + i}"
        )
    ]
    return rows(
        "albert",
        *linear("albert.encoder.embedding_hidden_mapping_in", "encoder.frontend.after_norm"),
        *ignore("albert.pooler.*", "predictions.*", "sop_classifier.*"),
        layers=layers,
    )
