"""The line of encoder-decoders that BART began: BART and mBART, Pegasus, Marian, M2M-100; T5 ties its words alike."""

from __future__ import annotations

from typing import Any

from plainformer.checkpoint.rows import (
    Repeat,
    Reshape,
    Row,
    Sinusoids,
    WeightTable,
    also,
    constant,
    ignore,
    linear,
    linears,
    row,
    zeros,
)
from plainformer.config import Dropout, Frontend, ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.families.heads import BASE, Head, rate, scores, words
from plainformer.families.hf_config import HfConfig

CAUSAL_DECODER = "a decoder after an encoder sees what it has written, and nothing later"
ENCODER_TOKENS, DECODER_TOKENS = "encoder.frontend.tokens.weight", "decoder.frontend.tokens.weight"
TIED_STACKS = (DECODER_TOKENS, ENCODER_TOKENS)
TIED_HEAD = ("head.out.weight", ENCODER_TOKENS)
NORM = NormConfig(eps=1e-5)
ALIASES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
}


def stacks(source: HfConfig, frontend: dict[str, Any], **layers: Any) -> tuple[StackConfig, StackConfig]:
    """Return encoder and decoder; `frontend` and `layers` are the values in which a family differs."""
    hidden = source.integer("d_model", default=1024)
    vectors = {
        "vocab_size": source.integer("vocab_size"),
        "embedding_size": hidden,
        "scale": hidden**0.5 if source.flag("scale_embedding", default=False) else 1.0,
        **frontend,
    }
    made = TokenFrontend(**vectors)
    return stack(source, "encoder", made, **layers), stack(source, "decoder", made, **layers)


def stack(source: HfConfig, side: str, frontend: Frontend, **layers: Any) -> StackConfig:
    """Return one side, "encoder" or "decoder"."""
    source.refuse("is_causal", True, why=CAUSAL_DECODER)
    fields = {"activation": source.activation("activation_function", default="gelu"), "norm": NORM, **layers}
    return StackConfig(
        frontend=frontend,
        hidden_size=source.integer("d_model", default=1024),
        num_layers=source.integer(f"{side}_layers", default=12),
        num_heads=source.integer(f"{side}_attention_heads", default=16),
        ffn_size=source.integer(f"{side}_ffn_dim", default=4096),
        direction="causal" if side == "decoder" else "both",
        cross_attention=side == "decoder",
        dropout=dropout(source, side),
        **fields,
    )


def dropout(source: HfConfig, side: str) -> Dropout:
    """Return one side's: `dropout` of all hidden states that are added to others, and three of their own."""
    hidden = source.probability("dropout", default=0.1)
    return Dropout(
        embedding=hidden,
        attention=source.probability("attention_dropout"),
        attention_output=hidden,
        ffn_output=hidden,
        activation=source.probability("activation_dropout"),
        layer=source.probability(f"{side}_layerdrop"),
    )


def tied(source: HfConfig, head: str) -> tuple[tuple[str, str], ...]:
    """Return one table for the encoder's words, the decoder's and the output, unless config.json unties them."""
    if not source.flag("tie_word_embeddings", default=True):
        return ()
    return (TIED_STACKS, TIED_HEAD) if head == "seq2seq_lm" else (TIED_STACKS,)


def fixed(head: str) -> tuple[str, ...]:
    """Return what training leaves as it is: the bias over words is a buffer of these checkpoints, not a parameter."""
    return ("head.out.bias",) if head == "seq2seq_lm" else ()


LAYER = {
    ".self_attn.q_proj": ".attention.qkv.q",
    ".self_attn.k_proj": ".attention.qkv.k",
    ".self_attn.v_proj": ".attention.qkv.v",
    ".self_attn.out_proj": ".attention.out",
    ".self_attn_layer_norm": ".attention_norm",
    ".fc1": ".ffn.up",
    ".fc2": ".ffn.down",
    ".final_layer_norm": ".ffn_norm",
}
CROSS = {
    ".encoder_attn.q_proj": ".cross.q",
    ".encoder_attn.k_proj": ".cross.kv.k",
    ".encoder_attn.v_proj": ".cross.kv.v",
    ".encoder_attn.out_proj": ".cross.out",
    ".encoder_attn_layer_norm": ".cross_norm",
}


def token_rows(config: ModelConfig, prefix: str) -> list[Row]:
    """Return the words' vectors: one table that two or three places may store, or one table for each stack.

    Where config.json unties them, older files still store only the shared table; newer ones store it unused.
    """
    shared, ours, theirs = (
        f"{prefix}{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    )
    if config.decoder is None or TIED_STACKS in config.tied:
        return [row(shared, ENCODER_TOKENS), also(ours, ENCODER_TOKENS), row(theirs, DECODER_TOKENS)]
    return [*separate_token_rows(prefix), row(shared, ENCODER_TOKENS, DECODER_TOKENS, op=Repeat(2))]


def separate_token_rows(prefix: str) -> list[Row]:
    """Two vocabularies."""
    return [
        row(f"{prefix}{side}.embed_tokens.weight", f"{side}.frontend.tokens.weight") for side in ("encoder", "decoder")
    ]


def word_rows(config: ModelConfig) -> list[Row]:
    """Return the output over words, with a bias that a checkpoint need not have."""
    bias = Reshape((1, config.head.out_size), (config.head.out_size,))
    return [
        row("lm_head.weight", "head.out.weight"),
        row("final_logits_bias", "head.out.bias", op=bias),
        *zeros("head.out.bias"),
    ]


HEADS = {"none": BASE, "seq2seq_lm": words("seq2seq_lm", word_rows)}
CLASSIFIER = rate("classifier_dropout", default=0.0)


def text_classifier() -> Head:
    """Return a classifier of the end token's vector, with dropout before each of its two layers."""
    names = {"theirs": "classification_head.out_proj", "dense": "classification_head.dense"}
    return scores("sequence", "eos", **names, dropout=CLASSIFIER, dense_dropout=CLASSIFIER)


def sinusoid_rows(config: ModelConfig) -> list[Row]:
    """Return the rows of sinusoids, which transformers stores; here they are computed, for any length."""
    assert config.trained_positions is not None
    sinusoids = Sinusoids(config.trained_positions, config.main_stack.hidden_size)
    return [constant(f"model.{side}.embed_positions.weight", sinusoids) for side in ("encoder", "decoder")]


def rows(config: ModelConfig, tokens: list[Row], positions: list[Row]) -> WeightTable:
    """Layers, norms and heads around a family's token and position rows; all heads' tensors are known extras."""
    stack_rows = []
    for side, pairs in (("encoder", LAYER), ("decoder", {**LAYER, **CROSS})):
        stack_rows += linears(pairs, f"model.{side}.layers.{{}}", f"{side}.layers.{{}}")
        stack_rows += linear(f"model.{side}.layer_norm", f"{side}.norm")
        stack_rows += linear(f"model.{side}.layernorm_embedding", f"{side}.frontend.norm")
    others = ignore("lm_head.*", "final_logits_bias", "classification_head.*", "qa_outputs.*")
    versions = ignore("*encoder.version", "*decoder.version")
    return WeightTable((*tokens, *positions, *stack_rows, *others, *versions), prefix="model.")
