"""GPT-NeoX, Pythia (Black et al. 2022; Biderman et al. 2023): attention and feed-forward side by side."""

from __future__ import annotations

from plainformer.checkpoint.rows import SplitHeads, WeightTable, fused, ignore, linear, linears, row
from plainformer.config import ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.decoder_line import build, decoder_heads, every_layer
from plainformer.families.hf_config import HfConfig, rope_from

HEADS = decoder_heads("embed_out", token="classifier")
TOKENIZERS = {"gptneox": TokenizerConvention("byte-level BPE")}


def config(source: HfConfig, head: str) -> ModelConfig:
    """config.json → ModelConfig. A quarter of each head's channels turn unless the file says other."""
    hidden = source.integer("hidden_size", default=6144)
    heads = source.integer("num_attention_heads", default=64)
    layers = source.integer("num_hidden_layers", default=44)
    given = {"rotary_pct": 0.25, "rope_theta": source.number("rotary_emb_base", default=10000.0), **source.raw}
    rope = rope_from(given, hidden // max(heads, 1), source.integer("max_position_embeddings", default=2048))
    bias = source.flag("attention_bias", default=True)
    stack = StackConfig(
        frontend=TokenFrontend(vocab_size=source.integer("vocab_size", default=50432), embedding_size=hidden),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        ffn_size=source.integer("intermediate_size", default=24576),
        activation=source.activation("hidden_act", default="gelu"),
        norm=NormConfig(eps=source.number("layer_norm_eps", default=1e-5)),
        norm_place="pre",
        residual="parallel" if source.flag("use_parallel_residual", default=True) else "sequential",
        final_norm="norm",
        direction="causal",
        qkv_bias=bias,
        out_bias=bias,
        rope=every_layer(rope, layers),
    )
    return build("gpt_neox", source, head, stack, tie=False)


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
