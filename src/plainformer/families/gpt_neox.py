"""GPT-NeoX, Pythia (Black et al. 2022; Biderman et al. 2023): attention and feed-forward side by side."""

from __future__ import annotations

from plainformer.checkpoint.rows import SplitHeads, WeightTable, fused, ignore, linear, linears, row
from plainformer.config import Dropout, ModelConfig, NormConfig
from plainformer.config.initial import FirstWeights
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.decoder_line import build, decoder, decoder_heads
from plainformer.families.first import deviation
from plainformer.families.hf_config import HfConfig

HEADS = decoder_heads("embed_out", token="classifier")
TOKENIZERS = {"gptneox": TokenizerConvention("byte-level BPE")}


DEFAULTS = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "rotary_pct": 0.25,
    "attention_bias": True,
    "classifier_dropout": 0.1,
}


def config(source: HfConfig, head: str) -> ModelConfig:
    """A quarter of each head's channels turn unless the file says otherwise."""
    hidden, attention = source.probability("hidden_dropout"), source.probability("attention_dropout")
    stack = decoder(
        source.with_defaults(rope_theta=source.number("rotary_emb_base", default=10000.0)),
        num_kv_heads=0,  # as many as heads
        ffn="plain",
        ffn_bias=True,
        norm=NormConfig(eps=source.number("layer_norm_eps", default=1e-5)),
        dropout=Dropout(embedding=hidden, attention=attention, attention_output=hidden, ffn_output=hidden),
        residual="parallel" if source.flag("use_parallel_residual", default=True) else "sequential",
    )
    return build("gpt_neox", source, head, stack, tie=False)


def first_weights(source: HfConfig, config: ModelConfig) -> FirstWeights:
    """No row of the word vectors is the padding's."""
    return FirstWeights(deviation(source))


def table(config: ModelConfig) -> WeightTable:
    """q, k and v are fused head by head."""
    theirs, ours = "gpt_neox.layers.{}", "decoder.layers.{}"
    qkv = [f"{ours}.attention.qkv.{name}" for name in "qkv"]
    pairs = {
        ".input_layernorm": ".attention_norm",
        ".attention.dense": ".attention.out",
        ".post_attention_layernorm": ".ffn_norm",
        ".mlp.dense_h_to_4h": ".ffn.up",
        ".mlp.dense_4h_to_h": ".ffn.down",
    }
    rows = [
        row("gpt_neox.embed_in.weight", "decoder.frontend.tokens.weight"),
        *fused(f"{theirs}.attention.query_key_value", qkv, SplitHeads(config.main_stack.num_heads)),
        *linears(pairs, theirs, ours),
        *linear("gpt_neox.final_layer_norm", "decoder.norm"),
        *ignore(f"{theirs}.attention.bias", f"{theirs}.attention.masked_bias"),
        *ignore(f"{theirs}.attention.rotary_emb.inv_freq", "embed_out.*", "score.*", "classifier.*", "qa_outputs.*"),
    ]
    return WeightTable(tuple(rows), prefix="gpt_neox.")
