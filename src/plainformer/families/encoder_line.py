"""The line of encoders that BERT began: post-norm, learned positions, token types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plainformer.checkpoint.rows import OLD_NORM_NAMES, SAME, Op, Row, WeightTable, also, ignore, linear, linears, row
from plainformer.config import HeadConfig, ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.families.hf_config import HfConfig

OUT_TIED = (("head.out.weight", "encoder.frontend.tokens.weight"),)
# Buffers and heads that published checkpoints carry beside the one in use.
EXTRAS = ignore("*embeddings.position_ids", "*embeddings.token_type_ids", "cls.*", "classifier.*", "qa_outputs.*")


def encoder(
    source: HfConfig, *, embedding_size: int | None = None, max_positions: int | None = None, projection: Any = "none"
) -> StackConfig:
    """The stack that the whole BERT line shares."""
    hidden = source.integer("hidden_size", default=768)
    norm = NormConfig(eps=source.number("layer_norm_eps", default=1e-12))
    source.refuse("position_embedding_type", "absolute", why="relative positions were removed from this family")
    source.refuse("is_decoder", False, why="only encoders of this family are known here")
    return StackConfig(
        frontend=TokenFrontend(
            vocab_size=source.integer("vocab_size"),
            embedding_size=hidden if embedding_size is None else embedding_size,
            positions="learned",
            max_positions=source.integer("max_position_embeddings", default=512)
            if max_positions is None
            else max_positions,
            token_types=source.integer("type_vocab_size", default=2),
            norm=norm,
            projection=projection,
        ),
        hidden_size=hidden,
        num_layers=source.integer("num_hidden_layers", default=12),
        num_heads=source.integer("num_attention_heads", default=12),
        ffn_size=source.integer("intermediate_size", default=3072),
        activation=source.activation("hidden_act", default="gelu"),
        norm=norm,
    )


def masked_lm(stack: StackConfig, activation: str = "") -> HeadConfig:
    """Score every word: a transform to the width of the word vectors, which are the output's weights too."""
    frontend = stack.frontend
    assert isinstance(frontend, TokenFrontend)
    return HeadConfig(
        "masked_lm",
        transform_size=frontend.embedding_size,
        transform_activation=activation or stack.activation,
        transform_norm=stack.norm,
        out_size=frontend.vocab_size,
    )


def word_ties(source: HfConfig, head: str) -> tuple[tuple[str, str], ...]:
    """Whether the output's weights are the word vectors."""
    return OUT_TIED if head == "masked_lm" and source.flag("tie_word_embeddings", default=True) else ()


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


def embedding_rows(theirs: str, positions: Op = SAME) -> list[Row]:
    """Token, position and token-type tables and their norm."""
    return [
        row(f"{theirs}.word_embeddings.weight", "encoder.frontend.tokens.weight"),
        row(f"{theirs}.position_embeddings.weight", "encoder.frontend.positions.weight", op=positions),
        row(f"{theirs}.token_type_embeddings.weight", "encoder.frontend.token_types.weight"),
        *linear(f"{theirs}.LayerNorm", "encoder.frontend.norm"),
    ]


def word_rows(config: ModelConfig, theirs: str, decoder: str) -> list[Row]:
    """The output over words, whose bias is stored as `theirs`.bias, as `decoder`.bias or both.

    Where both are stored the decoder's is what the reference computes with, so its row comes first. Tied weights are
    saved with the other alone; the untied reference has both parameters.
    """
    through_decoder = (also if config.tied else row)(f"{decoder}.bias", "head.out.bias")
    return [through_decoder, row(f"{theirs}.bias", "head.out.bias"), row(f"{decoder}.weight", "head.out.weight")]


def rows(base: str, *more: Row, positions: Op = SAME, layers: Sequence[Row] = ()) -> WeightTable:
    """Embeddings and layers under `base`, a family's own rows, and the extras; `layers` where a family names them so."""
    usual = layers or layer_rows(f"{base}.encoder.layer.{{}}")
    made = (*embedding_rows(f"{base}.embeddings", positions), *usual, *more, *EXTRAS)
    return WeightTable(made, prefix=f"{base}.", aliases=OLD_NORM_NAMES)
