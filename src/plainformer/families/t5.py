"""T5, its versions 1.1 and Flan (Raffel et al. 2020; Shazeer 2020; Chung et al. 2022) and mT5 (Xue et al. 2021).

An encoder-decoder with RMS norms before each sub-layer, no biases, no scaling of attention scores, and a learned bias
by distance instead of positions, so that any length is accepted. Version 1.0 scales its output by 1 / sqrt(D) before
the head.
"""

from __future__ import annotations

from typing import Literal

from plainformer.checkpoint.rows import Row, WeightTable, ignore, linear, linears, row
from plainformer.config import Dropout, HeadConfig, ModelConfig, NormConfig, RelativeBias, StackConfig, TokenFrontend
from plainformer.config.checks import require, shown
from plainformer.config.initial import FirstWeights, constant, normal
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.heads import BASE, SPAN, Head, scores, vocabulary
from plainformer.families.hf_config import ACTIVATION_NAMES, HfConfig
from plainformer.families.seq2seq_line import (
    CAUSAL_DECODER,
    CLASSIFIER,
    TIED_HEAD,
    TIED_STACKS,
    text_classifier,
    token_rows,
)


def feed_forward(source: HfConfig) -> tuple[str, Literal["plain", "gated"]]:
    """Return the activation and the kind of feed-forward network: "relu", "gated-gelu", "gated-silu", ..."""
    default = "gated-gelu" if is_mt5(source) else "relu"
    kind = source.text("feed_forward_proj", default=default)
    gate, _, name = kind.rpartition("-")
    require(
        gate in ("", "gated"), f"feed_forward_proj={shown(kind)} is neither 'gated-<activation>' nor '<activation>'"
    )
    # Version 1.1 means the tanh approximation when it says "gated-gelu".
    usual = "gelu_new" if kind == "gated-gelu" else name
    require(usual in ACTIVATION_NAMES, f"feed_forward_proj={shown(kind)} names an activation that is not supported")
    gated = source.flag("is_gated_act", default=gate == "gated")
    return source.activation("dense_act_fn", default=usual), "gated" if gated else "plain"


def is_mt5(source: HfConfig) -> bool:
    """Return whether the file is mT5's, whose defaults differ."""
    return source.text("model_type", default="t5") == "mt5"


def stack(source: HfConfig, side: str) -> StackConfig:
    """Return the encoder or the decoder."""
    source.refuse("is_causal", True, why=CAUSAL_DECODER)
    hidden = source.integer("d_model", default=512)
    layers = source.integer("num_layers", default=6)
    activation, ffn = feed_forward(source)
    p = source.probability("dropout_rate", default=0.1)
    return StackConfig(
        frontend=TokenFrontend(vocab_size=source.integer("vocab_size"), embedding_size=hidden),
        hidden_size=hidden,
        num_layers=layers if side == "encoder" else source.integer("num_decoder_layers", default=layers),
        num_heads=source.integer("num_heads", default=8),
        head_dim=source.integer("d_kv", default=64),
        attention_scale=1.0,
        ffn_size=source.integer("d_ff", default=2048),
        activation=activation,
        ffn=ffn,
        norm=NormConfig("rms", source.number("layer_norm_epsilon", default=1e-6)),
        norm_place="pre",
        final_norm="norm",
        direction="causal" if side == "decoder" else "both",
        qkv_bias=False,
        out_bias=False,
        ffn_bias=False,
        relative_bias=RelativeBias(
            source.integer("relative_attention_num_buckets", default=32),
            source.integer("relative_attention_max_distance", default=128),
        ),
        cross_attention=side == "decoder",
        dropout=Dropout(embedding=p, attention=p, attention_output=p, ffn_output=p, activation=p, final=p),
    )


def output_scale(source: HfConfig, hidden: int) -> float:
    """Version 1.0 scales; 1.1 does not, and used to say so by untying its head. mT5 never scales."""
    by_tie = source.flag("tie_word_embeddings", default=True)
    scales = source.flag("scale_decoder_outputs", default=by_tie) and not is_mt5(source)
    return hidden**-0.5 if scales else 1.0


def _words(source: HfConfig, stack: StackConfig) -> HeadConfig:
    scale = output_scale(source, stack.hidden_size)
    return HeadConfig("seq2seq_lm", out_size=vocabulary(stack), out_bias=False, scale=scale)


ALIASES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "head_dim": "d_kv",
}
DEFAULTS = {"pad_token_id": 0, "eos_token_id": 1}
HEADS = {
    "none": BASE,
    "seq2seq_lm": Head(_words, linear("lm_head", "head.out")),
    "sequence": text_classifier(),
    "token": scores("token", "all", dropout=CLASSIFIER),
    "span": SPAN,
}
TOKENIZERS = dict.fromkeys(
    ("t5", "mt5"),
    TokenizerConvention(
        "SentencePiece",
        "eos_token=</s> unk_token=<unk> pad_token=<pad>",
        "$A {eos}",
        "$A {eos} $B {eos}",
        pieces="sentinels",
        # Positions are relative: n_positions is only the length that T5 was trained on.
        limit_fields=("max_position_embeddings",),
    ),
)


def config(source: HfConfig, head: str) -> ModelConfig:
    """Taggers, and files of an encoder alone, have no decoder."""
    encoder = stack(source, "encoder")
    names = source.texts("architectures")
    alone = head == "token" or (head == "none" and any(name.endswith("EncoderModel") for name in names))
    if not alone:
        source.refuse("is_encoder_decoder", True, why="transformers 5.23 then computes something else")
    tie_head = head == "seq2seq_lm" and source.flag("tie_word_embeddings", default=True)
    stacks_tied = () if alone else (TIED_STACKS,)
    return ModelConfig(
        "t5",
        encoder=encoder,
        decoder=None if alone else stack(source, "decoder"),
        tied=(*stacks_tied, TIED_HEAD) if tie_head else stacks_tied,
        decoder_start_id=source.id("pad_token_id"),
    )


def stack_rows(theirs: str, ours: str) -> list[Row]:
    """Return the layers of one stack; the decoder's have cross-attention between attention and feed-forward."""
    pairs = {f".layer.0.SelfAttention.{name}": f".attention.qkv.{name}" for name in "qkv"}
    pairs |= {".layer.0.SelfAttention.o": ".attention.out", ".layer.0.layer_norm": ".attention_norm"}
    last = 1
    if ours == "decoder":
        last = 2
        cross = {"q": "q", "k": "kv.k", "v": "kv.v", "o": "out"}
        pairs |= {f".layer.1.EncDecAttention.{name}": f".cross.{place}" for name, place in cross.items()}
        pairs |= {".layer.1.layer_norm": ".cross_norm"}
    parts = {"wi": "up", "wi_0": "gate_up.gate", "wi_1": "gate_up.up", "wo": "down"}
    pairs |= {f".layer.{last}.DenseReluDense.{name}": f".ffn.{place}" for name, place in parts.items()}
    pairs |= {f".layer.{last}.layer_norm": ".ffn_norm"}
    bias = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        row(bias, f"{ours}.bias.weight"),
        *linears(pairs, f"{theirs}.block.{{}}", f"{ours}.layers.{{}}"),
        *linear(f"{theirs}.final_layer_norm", f"{ours}.norm"),
    ]


def first_weights(source: HfConfig, config: ModelConfig) -> FirstWeights:
    """As in Mesh TensorFlow, by the number of inputs. Scores are not divided by a root of the head size: q starts so."""
    factor, stack = source.number("initializer_factor", default=1.0), config.main_stack
    by_input, inner = stack.hidden_size**-0.5, stack.num_heads * stack.head_dim
    stds = {
        "*.frontend.tokens.weight": 1.0,
        "*.attention.qkv.q.weight": (stack.hidden_size * stack.head_dim) ** -0.5,
        "*.cross.q.weight": (stack.hidden_size * stack.head_dim) ** -0.5,
        "*.out.weight": inner**-0.5,
        "*.ffn.down.weight": stack.ffn_size**-0.5,
    }
    stds["head.out.weight"] = 1.0 if config.head.kind in ("seq2seq_lm", "token") else by_input
    rules = {
        name: normal(factor * std) for name, std in sorted(stds.items(), key=lambda rule: rule[0] == "*.out.weight")
    }
    norms = {name: constant(factor) for name in ("*norm.weight",)}
    return FirstWeights(factor * by_input, (*norms.items(), *rules.items()))


def table(config: ModelConfig) -> WeightTable:
    """Classifiers keep the base model under `transformer.`; all other models have their stacks at the top."""
    prefix = "transformer." if config.head.kind in ("sequence", "token") else ""
    # Files of 2019-2020 carry a bias of the cross-attention that was never used.
    unused = f"{prefix}decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    rows = [
        *ignore(unused if config.decoder is not None else f"{prefix}decoder.*"),
        *token_rows(config, prefix),
        *stack_rows(f"{prefix}encoder", "encoder"),
        *stack_rows(f"{prefix}decoder", "decoder"),
        *ignore("lm_head.*", "classification_head.*", "classifier.*", "qa_outputs.*"),
    ]
    return WeightTable(tuple(rows), prefix=prefix, aliases=() if prefix else ((r"^transformer\.", ""),))
