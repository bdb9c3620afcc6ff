"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler, under names of its own."""

from __future__ import annotations

from plainformer.checkpoint.rows import OLD_NORM_NAMES, Row, WeightTable, ignore, linear, linears, row
from plainformer.config import HeadConfig, ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.families.bert import masked_lm, word_ties
from plainformer.families.hf_config import Source, classifier

# Fixed sinusoids (`sinusoidal_pos_embds`) are stored as a table like learned positions: nothing of their own is needed.
LAYER = {
    ".attention.q_lin": ".attention.qkv.q",
    ".attention.k_lin": ".attention.qkv.k",
    ".attention.v_lin": ".attention.qkv.v",
    ".attention.out_lin": ".attention.out",
    ".sa_layer_norm": ".attention_norm",
    ".ffn.lin1": ".ffn.up",
    ".ffn.lin2": ".ffn.down",
    ".output_layer_norm": ".ffn_norm",
}


def config(source: Source, head: str) -> ModelConfig:
    """config.json → ModelConfig; `head` is the kind of head that is wanted."""
    size = source.integer("dim", "hidden_size", default=768)
    norm = NormConfig(eps=1e-12)
    stack = StackConfig(
        frontend=TokenFrontend(
            vocab_size=source.integer("vocab_size"),
            embedding_size=size,
            positions="learned",
            max_positions=source.integer("max_position_embeddings", default=512),
            norm=norm,
        ),
        hidden_size=size,
        num_layers=source.integer("n_layers", "num_hidden_layers", default=6),
        num_heads=source.integer("n_heads", "num_attention_heads", default=12),
        ffn_size=source.integer("hidden_dim", default=4 * 768),
        activation=source.activation("activation", default="gelu"),
        norm=norm,
    )
    transform = {"transform_size": size, "transform_activation": "relu"}
    heads = {
        "none": HeadConfig,
        "masked_lm": lambda: masked_lm(stack),
        "sequence": lambda: classifier(source, "sequence", "first", **transform),
        "choice": lambda: classifier(source, "choice", "first", **transform),
        "token": lambda: classifier(source, "token", "all"),
        "span": lambda: classifier(source, "span", "all"),
    }
    return ModelConfig("distilbert", encoder=stack, head=heads[head](), tied=word_ties(source, head))


def table(config: ModelConfig) -> WeightTable:
    """The rows for this model's head; other heads' tensors are known extras."""
    head: dict[str, list[Row]] = {
        "none": [],
        "masked_lm": linears(
            {"vocab_transform": "head.dense", "vocab_layer_norm": "head.norm", "vocab_projector": "head.out"}
        ),
        "sequence": linears({"pre_classifier": "head.dense", "classifier": "head.out"}),
        "token": linear("classifier", "head.out"),
        "span": linear("qa_outputs", "head.out"),
    }
    head["choice"] = head["sequence"]
    embeddings = "distilbert.embeddings"
    rows = [
        row(f"{embeddings}.word_embeddings.weight", "encoder.frontend.tokens.weight"),
        row(f"{embeddings}.position_embeddings.weight", "encoder.frontend.positions.weight"),
        *linear(f"{embeddings}.LayerNorm", "encoder.frontend.norm"),
        *linears(LAYER, "distilbert.transformer.layer.{}", "encoder.layers.{}"),
        *head[config.head.kind],
        *ignore(f"{embeddings}.position_ids", "vocab_*", "pre_classifier.*", "classifier.*", "qa_outputs.*"),
    ]
    return WeightTable(tuple(rows), prefix="distilbert.", aliases=OLD_NORM_NAMES)
