"""ALBERT (Lan et al. 2020): BERT with narrow word vectors and layers that share their parameters."""

from __future__ import annotations

from dataclasses import replace

from plainformer.checkpoint.rows import OLD_NORM_NAMES, Row, WeightTable, ignore, linear, linears
from plainformer.config import MAX_LAYERS, HeadConfig, ModelConfig, require_size
from plainformer.families.bert import EXTRAS, embedding_rows, encoder, masked_lm, word_rows, word_ties
from plainformer.families.hf_config import Source, classifier

DEFAULTS = {
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "hidden_act": "gelu_new",
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


def sharing(source: Source) -> tuple[int, int, tuple[int, ...]]:
    """Groups of layers, layers in a group, and which set of parameters each layer of the whole stack uses."""
    layers = source.integer("num_hidden_layers", default=12)
    groups, inner = source.integer("num_hidden_groups", default=1), source.integer("inner_group_num", default=1)
    for name, value in (("num_hidden_groups", groups), ("inner_group_num", inner), ("num_hidden_layers", layers)):
        require_size(name, value, MAX_LAYERS)
    require_size("num_hidden_layers * inner_group_num", layers * inner, MAX_LAYERS)
    # Each step runs a whole group. In floats, as the published code rounds when groups do not divide layers.
    group_of_step = [int(step / (layers / groups)) for step in range(layers)]
    return groups, inner, tuple(group * inner + place for group in group_of_step for place in range(inner))


def config(source: Source, head: str) -> ModelConfig:
    """config.json → ModelConfig; `head` is the kind of head that is wanted."""
    filled = source.with_defaults(**DEFAULTS)
    _, _, layer_ids = sharing(source)
    # The projection is there even where both sizes are the same.
    stack = encoder(filled, embedding_size=source.integer("embedding_size", default=128), projection="affine")
    stack = replace(stack, num_layers=len(layer_ids), layer_ids=layer_ids, windows=(), rope=())
    size = stack.hidden_size
    heads = {
        "none": lambda: HeadConfig(pick="first", transform_size=size),
        "masked_lm": lambda: masked_lm(stack),
        "sequence": lambda: classifier(source, "sequence", "first", transform_size=size),
        "choice": lambda: classifier(source, "choice", "first", transform_size=size),
        "token": lambda: classifier(source, "token", "all"),
        "span": lambda: classifier(source, "span", "all"),
    }
    return ModelConfig("albert", encoder=stack, head=heads[head](), tied=word_ties(source, head))


def table(config: ModelConfig) -> WeightTable:
    """The rows for this model's head; other heads' tensors are known extras."""
    pooler = linear("albert.pooler", "head.dense")
    head: dict[str, list[Row]] = {
        "none": pooler,
        "masked_lm": [
            *linears({"dense": "head.dense", "LayerNorm": "head.norm"}, "predictions."),
            *word_rows("predictions", "predictions.decoder", bool(config.tied)),
        ],
        "sequence": [*pooler, *linear("classifier", "head.out")],
        "token": linear("classifier", "head.out"),
        "span": linear("qa_outputs", "head.out"),
    }
    head["choice"] = head["sequence"]
    groups, inner, _ = sharing(Source(config.source))
    layers = [
        r
        for g in range(groups)
        for i in range(inner)
        for r in linears(
            LAYER, f"albert.encoder.albert_layer_groups.{g}.albert_layers.{i}", f"encoder.layers.{g * inner + i}"
        )
    ]
    rows = [
        *embedding_rows("albert.embeddings"),
        *linear("albert.encoder.embedding_hidden_mapping_in", "encoder.frontend.after_norm"),
        *layers,
        *head[config.head.kind],
        *ignore("albert.pooler.*", "predictions.*", "sop_classifier.*"),
        *EXTRAS,
    ]
    return WeightTable(tuple(rows), prefix="albert.", aliases=OLD_NORM_NAMES)
