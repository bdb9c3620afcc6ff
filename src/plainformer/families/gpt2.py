"""GPT-2 (Radford et al. 2019): a causal decoder, layer norms before each sub-layer, learned positions."""

from __future__ import annotations

from typing import Any

from plainformer.checkpoint.rows import Transpose, TransposeSplit, WeightTable, fused, ignore, linear, row
from plainformer.config import Dropout, ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.config.initial import FirstWeights, normal
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.decoder_line import build, decoder_heads, directed
from plainformer.families.first import RESIDUAL, deviation
from plainformer.families.hf_config import HfConfig

ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
HEADS = decoder_heads(token="classifier")
TOKENIZERS = {"gpt2": TokenizerConvention("byte-level BPE")}


def config(source: HfConfig, head: str) -> ModelConfig:
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        source.refuse(name, usual, why="only the published GPT-2 models' scaling is known here")
    source.refuse("add_cross_attention", False, why="GPT-2 as a decoder after an encoder is not known here")
    hidden = source.integer("n_embd", default=768)
    frontend = TokenFrontend(
        vocab_size=source.integer("vocab_size", default=50257),
        embedding_size=hidden,
        positions="learned",
        max_positions=source.integer("n_positions", default=1024),
    )
    outputs = source.probability("resid_pdrop", default=0.1)
    fields: dict[str, Any] = {
        "hidden_size": hidden,
        "num_layers": source.integer("n_layer", default=12),
        "num_heads": source.integer("n_head", default=12),
        "ffn_size": source.integer("n_inner", default=4 * hidden),
        "activation": source.activation("activation_function", default="gelu_new"),
        "norm": NormConfig(eps=source.number("layer_norm_epsilon", default=1e-5)),
        "norm_place": "pre",
        "final_norm": "norm",
        "dropout": Dropout(
            embedding=source.probability("embd_pdrop", default=0.1),
            attention=source.probability("attn_pdrop", default=0.1),
            attention_output=outputs,
            ffn_output=outputs,
        ),
    }
    stack = StackConfig(frontend=frontend, **directed(source, fields))
    return build("gpt2", source, head, stack, tie=True)


def first_weights(source: HfConfig, config: ModelConfig) -> FirstWeights:
    """What is added to the residual path starts the smaller, the more layers add to it (section 2.3 of the paper)."""
    std = deviation(source)
    added = normal(std / (2 * config.main_stack.num_layers) ** 0.5)
    return FirstWeights(std, tuple((name, added) for name in RESIDUAL))


def table(config: ModelConfig) -> WeightTable:
    """Conv1D weights lie transposed; q, k and v are one of them."""
    size = config.main_stack.hidden_size
    theirs, ours = "transformer.h.{}", "decoder.layers.{}"
    rows = [
        row("transformer.wte.weight", "decoder.frontend.tokens.weight"),
        row("transformer.wpe.weight", "decoder.frontend.positions.weight"),
        *linear(f"{theirs}.ln_1", f"{ours}.attention_norm"),
        *fused(
            f"{theirs}.attn.c_attn",
            [f"{ours}.attention.qkv.{name}" for name in "qkv"],
            TransposeSplit((size, size, size)),
        ),
        *linear(f"{theirs}.attn.c_proj", f"{ours}.attention.out", Transpose()),
        *linear(f"{theirs}.ln_2", f"{ours}.ffn_norm"),
        *linear(f"{theirs}.mlp.c_fc", f"{ours}.ffn.up", Transpose()),
        *linear(f"{theirs}.mlp.c_proj", f"{ours}.ffn.down", Transpose()),
        *linear("transformer.ln_f", "decoder.norm"),
        # The causal mask, stored by older releases; other heads.
        *ignore(f"{theirs}.attn.bias", f"{theirs}.attn.masked_bias", "lm_head.*", "score.*", "classifier.*"),
        *ignore("qa_outputs.*", "multiple_choice_head.*", "v_head.*"),
    ]
    return WeightTable(tuple(rows), prefix="transformer.")
