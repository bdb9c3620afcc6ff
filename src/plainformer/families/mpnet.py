"""MPNet (Song et al. 2020): BERT's layers, fairseq's positions, no token types, and T5's learned bias by distance on the scores."""

from __future__ import annotations

from dataclasses import replace

from plainformer.checkpoint.rows import OLD_NORM_NAMES, DropRows, WeightTable, ignore, linear, linears, row
from plainformer.config import ModelConfig, RelativeBias, TokenFrontend
from plainformer.config.checks import require
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.encoder_line import EXTRAS, HIDDEN, dense_classifier, encoder, heads, word_head, word_ties
from plainformer.families.heads import pooler
from plainformer.families.hf_config import HfConfig

UNUSED = 2  # positions are numbered from 2, whatever pad_token_id says
LAYER = {
    ".attention.attn.q": ".attention.qkv.q",
    ".attention.attn.k": ".attention.qkv.k",
    ".attention.attn.v": ".attention.qkv.v",
    ".attention.attn.o": ".attention.out",
    ".attention.LayerNorm": ".attention_norm",
    ".intermediate.dense": ".ffn.up",
    ".output.dense": ".ffn.down",
    ".output.LayerNorm": ".ffn_norm",
}
HEADS = {
    **heads(
        word_head("lm_head", "dense", "layer_norm", "gelu"),  # whatever hidden_act is
        "mpnet.pooler.dense",
        pooler("mpnet.pooler.dense"),
        dropout={"choice": HIDDEN, "token": HIDDEN},
    ),
    "sequence": dense_classifier(HIDDEN),
}
TOKENIZERS = {
    "mpnet": TokenizerConvention(
        "wordpiece",
        "bos_token=<s> eos_token=</s> cls_token=<s> sep_token=</s> unk_token=[UNK] pad_token=<pad> mask_token=<mask>",
        "{cls} $A {sep}",
        "{cls} $A {sep} {sep} $B {sep}",
        trim_offsets=True,
        unused_positions=UNUSED,
    )
}


def config(source: HfConfig, head: str) -> ModelConfig:
    source.refuse("relative_attention_num_buckets", 32, why="transformers computes with 32 whatever the file says")
    positions = source.integer("max_position_embeddings", default=512) - UNUSED
    require(positions > 0, f"max_position_embeddings={positions + UNUSED} leaves no position")
    stack = encoder(source, max_positions=positions)
    assert isinstance(stack.frontend, TokenFrontend)
    stack = replace(stack, frontend=replace(stack.frontend, token_types=0), relative_bias=RelativeBias(32, 128))
    return ModelConfig("mpnet", encoder=stack, tied=word_ties(source, head))


def table(config: ModelConfig) -> WeightTable:
    embeddings = "mpnet.embeddings"
    rows = [
        row(f"{embeddings}.word_embeddings.weight", "encoder.frontend.tokens.weight"),
        row(f"{embeddings}.position_embeddings.weight", "encoder.frontend.positions.weight", op=DropRows(UNUSED)),
        *linear(f"{embeddings}.LayerNorm", "encoder.frontend.norm"),
        row("mpnet.encoder.relative_attention_bias.weight", "encoder.bias.weight"),
        *linears(LAYER, "mpnet.encoder.layer.{}", "encoder.layers.{}"),
        *ignore("mpnet.pooler.*", "lm_head.*"),
        *EXTRAS,
    ]
    return WeightTable(tuple(rows), prefix="mpnet.", aliases=OLD_NORM_NAMES)
