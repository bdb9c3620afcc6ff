"""BERT (Devlin et al. 2019), and what RoBERTa, ELECTRA and others share with it: an encoder, post-norm, learned positions."""

from __future__ import annotations

from plainformer.config import HeadConfig, ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.families.rules import OLD_NORM_NAMES, Row, WeightTable, also, ignore, linear, linears, row
from plainformer.families.source import Source, classifier

OUT_TIED = (("head.out.weight", "encoder.frontend.tokens.weight"),)
# Buffers and heads that published checkpoints carry beside the one in use.
EXTRAS = ignore("*embeddings.position_ids", "*embeddings.token_type_ids", "cls.*", "classifier.*", "qa_outputs.*")


def encoder(source: Source, *, embedding_size: int | None = None, max_positions: int | None = None) -> StackConfig:
    """The stack that the whole BERT line shares."""
    hidden = source.integer("hidden_size", default=768)
    norm = NormConfig(eps=source.number("layer_norm_eps", default=1e-12))
    source.refuse("position_embedding_type", "absolute", why="relative positions were removed from this family")
    source.refuse("is_decoder", False, why="only encoders of this family are known here")
    return StackConfig(
        frontend=TokenFrontend(
            vocab_size=source.integer("vocab_size"),
            embedding_size=embedding_size or hidden,
            positions="learned",
            max_positions=max_positions or source.integer("max_position_embeddings", default=512),
            token_types=source.integer("type_vocab_size", default=2),
            norm=norm,
        ),
        hidden_size=hidden,
        num_layers=source.integer("num_hidden_layers", default=12),
        num_heads=source.integer("num_attention_heads", default=12),
        ffn_size=source.integer("intermediate_size", default=3072),
        activation=source.activation("hidden_act", default="gelu"),
        norm=norm,
    )


def config(source: Source, head: str) -> ModelConfig:
    """config.json → ModelConfig; `head` is the kind of head that is wanted."""
    stack = encoder(source)
    size = stack.hidden_size
    heads = {
        "none": lambda: HeadConfig(pick="first", transform_size=size),
        "masked_lm": lambda: HeadConfig(
            "masked_lm",
            transform_size=size,
            transform_activation=stack.activation,
            transform_norm=stack.norm,
            out_size=source.integer("vocab_size"),
        ),
        "sequence": lambda: classifier(source, "sequence", "first", transform_size=size),
        "choice": lambda: classifier(source, "choice", "first", transform_size=size),
        "token": lambda: classifier(source, "token", "all"),
        "span": lambda: classifier(source, "span", "all"),
    }
    tied = OUT_TIED if head == "masked_lm" and source.flag("tie_word_embeddings", default=True) else ()
    return ModelConfig("bert", encoder=stack, head=heads[head](), tied=tied)


def layer_rows(theirs: str) -> list[Row]:
    """The rows of one layer, named alike in BERT, RoBERTa and ELECTRA."""
    return linears(
        {
            ".attention.self.query": ".attention.qkv.q",
            ".attention.self.key": ".attention.qkv.k",
            ".attention.self.value": ".attention.qkv.v",
            ".attention.output.dense": ".attention.out",
            ".attention.output.LayerNorm": ".attention_norm",
            ".intermediate.dense": ".ffn.up",
            ".output.dense": ".ffn.down",
            ".output.LayerNorm": ".ffn_norm",
        },
        theirs,
        "encoder.layers.{}",
    )


def embedding_rows(theirs: str) -> list[Row]:
    """Token, position and token-type tables and their norm."""
    return [
        row(f"{theirs}.word_embeddings.weight", "encoder.frontend.tokens.weight"),
        row(f"{theirs}.position_embeddings.weight", "encoder.frontend.positions.weight"),
        row(f"{theirs}.token_type_embeddings.weight", "encoder.frontend.token_types.weight"),
        *linear(f"{theirs}.LayerNorm", "encoder.frontend.norm"),
    ]


def masked_lm_rows() -> list[Row]:
    """The masked-word head, whose bias is stored under two names."""
    return [
        *linear("cls.predictions.transform.dense", "head.dense"),
        *linear("cls.predictions.transform.LayerNorm", "head.norm"),
        row("cls.predictions.bias", "head.out.bias"),
        also("cls.predictions.decoder.bias", "head.out.bias"),
        row("cls.predictions.decoder.weight", "head.out.weight"),
    ]


def table(config: ModelConfig) -> WeightTable:
    """The rows for this model's head; other heads' tensors are known extras."""
    head: dict[str, list[Row]] = {
        "none": linear("bert.pooler.dense", "head.dense"),
        "masked_lm": masked_lm_rows(),
        "sequence": [*linear("bert.pooler.dense", "head.dense"), *linear("classifier", "head.out")],
        "token": linear("classifier", "head.out"),
        "span": linear("qa_outputs", "head.out"),
    }
    head["choice"] = head["sequence"]
    rows = [
        *embedding_rows("bert.embeddings"),
        *layer_rows("bert.encoder.layer.{}"),
        *head[config.head.kind],
        *ignore("bert.pooler.*"),
        *EXTRAS,
    ]
    return WeightTable(tuple(rows), prefix="bert.", aliases=OLD_NORM_NAMES)
