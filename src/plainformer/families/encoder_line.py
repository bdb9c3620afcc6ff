"""The line of encoders that BERT began: post-norm, learned positions, token types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plainformer.checkpoint.rows import (
    OLD_NORM_NAMES,
    SAME,
    Op,
    Row,
    WeightTable,
    ignore,
    linear,
    linears,
    row,
    twin,
)
from plainformer.config import Dropout, HeadConfig, ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.families.heads import BASE, Head, Rate, no_dropout, rate, scores
from plainformer.families.hf_config import HfConfig

OUT_TIED = (("head.out.weight", "encoder.frontend.tokens.weight"),)
# A classifier's own dropout, where the file states one, and that of hidden states.
CLASSIFIER, HIDDEN = rate("classifier_dropout", "hidden_dropout_prob"), rate("hidden_dropout_prob")
# Buffers and heads that published checkpoints carry beside the one in use.
EXTRAS = ignore("*embeddings.position_ids", "*embeddings.token_type_ids", "cls.*", "classifier.*", "qa_outputs.*")


def encoder(
    source: HfConfig, *, embedding_size: int | None = None, max_positions: int | None = None, projection: Any = "none"
) -> StackConfig:
    """Return the stack that the whole BERT line shares."""
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
        **source.stack_sizes(),
        norm=norm,
        dropout=dropout(source),
    )


def dropout(source: HfConfig, default: float = 0.1) -> Dropout:
    """Return the line's two dropouts: of attention probabilities, and of all hidden states that are added to others."""
    hidden = source.probability("hidden_dropout_prob", default=default)
    attention = source.probability("attention_probs_dropout_prob", default=default)
    return Dropout(embedding=hidden, attention=attention, attention_output=hidden, ffn_output=hidden)


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
    """Return the tie of the output's weights to the word vectors, where config.json has one."""
    return OUT_TIED if head == "masked_lm" and source.flag("tie_word_embeddings", default=True) else ()


def layer_rows(theirs: str) -> list[Row]:
    """Return the rows of one layer, named alike in BERT, RoBERTa and ELECTRA."""
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


def word_rows(config: ModelConfig, theirs: str) -> list[Row]:
    """Return the rows of the output over words, whose bias is stored as `theirs`.bias, as `theirs`.decoder.bias or both.

    Where both are stored transformers computes with the decoder's, so its row comes first. Tied weights are saved with the
    other alone; untied, both are parameters.
    """
    through_decoder = (twin if config.tied else row)(f"{theirs}.decoder.bias", "head.out.bias")
    return [through_decoder, row(f"{theirs}.bias", "head.out.bias"), row(f"{theirs}.decoder.weight", "head.out.weight")]


def word_head(theirs: str, dense: str, norm: str, activation: str = "") -> Head:
    """Return the masked-word head stored as `theirs`: a dense layer, a norm, the output over words."""
    transform = linears({f".{dense}": "head.dense", f".{norm}": "head.norm"}, theirs)
    return Head(
        lambda source, stack: masked_lm(stack, activation), lambda config: [*transform, *word_rows(config, theirs)]
    )


BERTS = {"sequence": CLASSIFIER, "choice": CLASSIFIER, "token": CLASSIFIER, "span": no_dropout}


def heads(
    word_head: Head, dense: str, base: Head = BASE, dropout: Mapping[str, Rate] = BERTS, **fields: Any
) -> dict[str, Head]:
    """Return the line's heads; those of whole texts read the first vector through the layer stored as `dense`.

    `dropout`: each kind's, where it differs from BERT's.
    """
    rates = {**BERTS, **dropout}
    return {
        "none": base,
        "masked_lm": word_head,
        "sequence": scores("sequence", "first", dense=dense, dropout=rates["sequence"], **fields),
        "choice": scores("choice", "first", dense=dense, dropout=rates["choice"], **fields),
        "token": scores("token", "all", dropout=rates["token"]),
        "span": scores("span", "all", "qa_outputs", dropout=rates["span"]),
    }


def dense_classifier(dropout: Rate = CLASSIFIER, **fields: Any) -> Head:
    """Return a classifier of whole texts that brings its own dense layer, with dropout before each of its two layers."""
    names = {"theirs": "classifier.out_proj", "dense": "classifier.dense"}
    return scores("sequence", "first", **names, dropout=dropout, dense_dropout=dropout, **fields)


def rows(base: str, *more: Row, positions: Op = SAME, layers: Sequence[Row] = ()) -> WeightTable:
    """Embeddings and layers under `base`, a family's own rows, and the extras; `layers` where a family names them so."""
    usual = layers or layer_rows(f"{base}.encoder.layer.{{}}")
    made = (*embedding_rows(f"{base}.embeddings", positions), *usual, *more, *EXTRAS)
    return WeightTable(made, prefix=f"{base}.", aliases=OLD_NORM_NAMES)
