"""BART (Lewis et al. 2020) and mBART (Liu et al. 2020), and what Pegasus, Marian and M2M-100 share with them.

An encoder-decoder with learned positions and a norm on its embeddings. BART has post-norm layers; mBART has pre-norm
ones and a final norm on each stack, and starts a target with its own last token, the language code.
"""

from __future__ import annotations

from typing import Any

from plainformer.checkpoint.rows import (
    DropRows,
    Repeat,
    Reshape,
    Row,
    WeightTable,
    also,
    ignore,
    linear,
    linears,
    row,
    zeros,
)
from plainformer.config import HeadConfig, ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.families.hf_config import Source, classifier

ENCODER_TOKENS, DECODER_TOKENS = "encoder.frontend.tokens.weight", "decoder.frontend.tokens.weight"
TIED_STACKS = (DECODER_TOKENS, ENCODER_TOKENS)
TIED_HEAD = ("head.out.weight", ENCODER_TOKENS)
NORM = NormConfig(eps=1e-5)
# Of each position table the first two rows are fairseq's padding rows: no position uses them.
UNUSED_ROWS = 2


def stacks(source: Source, frontend: dict[str, Any], **layers: Any) -> tuple[StackConfig, StackConfig]:
    """Encoder and decoder of this line; `frontend` and `layers` are the values in which a family differs."""
    hidden = source.integer("d_model", default=1024)
    vectors = {
        "vocab_size": source.integer("vocab_size"),
        "embedding_size": hidden,
        "scale": hidden**0.5 if source.flag("scale_embedding", default=False) else 1.0,
        **frontend,
    }
    fields = {"activation": source.activation("activation_function", default="gelu"), "norm": NORM, **layers}

    def stack(side: str) -> StackConfig:
        return StackConfig(
            frontend=TokenFrontend(**vectors),
            hidden_size=hidden,
            num_layers=source.integer(f"{side}_layers", default=12),
            num_heads=source.integer(f"{side}_attention_heads", default=16),
            ffn_size=source.integer(f"{side}_ffn_dim", default=4096),
            direction="causal" if side == "decoder" else "both",
            cross_attention=side == "decoder",
            **fields,
        )

    return stack("encoder"), stack("decoder")


def tied(source: Source, head: str) -> tuple[tuple[str, str], ...]:
    """One table for the encoder's words, the decoder's and the output, unless config.json unties them."""
    if not source.flag("tie_word_embeddings", default=True):
        return ()
    return (TIED_STACKS, TIED_HEAD) if head == "seq2seq_lm" else (TIED_STACKS,)


def config(source: Source, head: str) -> ModelConfig:
    """config.json → ModelConfig."""
    multilingual = source.text("model_type", default="bart") == "mbart"
    positions = source.integer("max_position_embeddings", default=1024)
    frontend = {"positions": "learned", "max_positions": positions, "norm": NORM}
    layers = {"norm_place": "pre", "final_norm": "norm"} if multilingual else {}
    encoder, decoder = stacks(source, frontend, **layers)
    heads = {
        "none": HeadConfig,
        "seq2seq_lm": lambda: HeadConfig("seq2seq_lm", out_size=source.integer("vocab_size")),
        "sequence": lambda: classifier(source, "sequence", "eos", transform_size=decoder.hidden_size),
        "span": lambda: classifier(source, "span", "all"),
    }
    return ModelConfig(
        "bart",
        encoder,
        decoder,
        head=heads[head](),
        tied=tied(source, head),
        pad_id=source.id("pad_token_id", 1),
        eos_ids=source.ids("eos_token_id") or (2,),
        decoder_start_id=None if multilingual else 2,
        decoder_shift="last_token" if multilingual else "start_id",
    )


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
    """The words' vectors: one table that two or three places may store, or one table for each stack.

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


def head_rows(config: ModelConfig) -> list[Row]:
    """The heads of this line, and as known extras those that a checkpoint has beside the one in use."""
    bias = Reshape((1, config.head.out_size), (config.head.out_size,))
    head: dict[str, list[Row]] = {
        "none": [],
        "seq2seq_lm": [
            row("lm_head.weight", "head.out.weight"),
            row("final_logits_bias", "head.out.bias", op=bias),
            *zeros("head.out.bias"),
        ],
        "sequence": linears({"classification_head.dense": "head.dense", "classification_head.out_proj": "head.out"}),
        "span": linear("qa_outputs", "head.out"),
    }
    others = ignore("lm_head.*", "final_logits_bias", "classification_head.*", "qa_outputs.*")
    return [*head[config.head.kind], *others, *ignore("*encoder.version", "*decoder.version")]


def rows(config: ModelConfig, tokens: list[Row], positions: list[Row]) -> WeightTable:
    """Layers, norms and heads around a family's token and position rows."""
    stack_rows = []
    for side, pairs in (("encoder", LAYER), ("decoder", {**LAYER, **CROSS})):
        stack_rows += linears(pairs, f"model.{side}.layers.{{}}", f"{side}.layers.{{}}")
        stack_rows += linear(f"model.{side}.layer_norm", f"{side}.norm")
        stack_rows += linear(f"model.{side}.layernorm_embedding", f"{side}.frontend.norm")
    return WeightTable((*tokens, *positions, *stack_rows, *head_rows(config)), prefix="model.")


def table(config: ModelConfig) -> WeightTable:
    """One row for each tensor of a layer."""
    positions = [
        row(f"model.{side}.embed_positions.weight", f"{side}.frontend.positions.weight", op=DropRows(UNUSED_ROWS))
        for side in ("encoder", "decoder")
    ]
    return rows(config, token_rows(config, "model."), positions)
