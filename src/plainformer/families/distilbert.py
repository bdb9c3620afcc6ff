"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler, under names of its own."""

from __future__ import annotations

from plainformer.checkpoint.rows import OLD_NORM_NAMES, WeightTable, ignore, linear, linears, row
from plainformer.config import Dropout, ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.config.initial import INTERLEAVED, FirstWeights
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.encoder_line import heads, masked_lm, word_ties
from plainformer.families.first import usual
from plainformer.families.heads import Head, rate
from plainformer.families.hf_config import HfConfig

# Fixed sinusoids (`sinusoidal_pos_embds`) are stored as a table like learned positions: nothing of their own is needed.
LAYER = {
    ".attention.q_lin": ".attention.qkv.q",
    ".attention.k_lin": ".attention.qkv.k",
    ".attention.v_lin": ".attention.qkv.v",
    ".attention.out_lin": ".attention.out",
    ".sa_layer_norm": ".attention_norm",
    ".ffn.lin1": ".ffn.up",
    ".ffn.lin2": ".ffn.down",
    ".output_layer_norm": ".ffn_norm",
}
WORDS = {"vocab_transform": "head.dense", "vocab_layer_norm": "head.norm", "vocab_projector": "head.out"}
ALIASES = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
TEXTS = rate("seq_classif_dropout", default=0.2)
HEADS = heads(
    Head(lambda source, stack: masked_lm(stack), linears(WORDS)),
    "pre_classifier",
    dropout={"sequence": TEXTS, "choice": TEXTS, "token": rate("dropout"), "span": rate("qa_dropout")},
    transform_activation="relu",
)
TOKENIZERS = {"distilbert": TokenizerConvention("wordpiece")}


def config(source: HfConfig, head: str) -> ModelConfig:
    size = source.integer("dim", default=768)
    norm = NormConfig(eps=1e-12)
    dropout = source.probability("dropout", default=0.1)
    attention = source.probability("attention_dropout", default=0.1)
    stack = StackConfig(
        frontend=TokenFrontend(
            vocab_size=source.integer("vocab_size"),
            embedding_size=size,
            positions="learned",
            max_positions=source.integer("max_position_embeddings", default=512),
            norm=norm,
        ),
        hidden_size=size,
        num_layers=source.integer("n_layers", default=6),
        num_heads=source.integer("n_heads", default=12),
        ffn_size=source.integer("hidden_dim", default=4 * 768),
        activation=source.activation("activation", default="gelu"),
        norm=norm,
        dropout=Dropout(embedding=dropout, attention=attention, ffn_output=dropout),
    )
    return ModelConfig("distilbert", encoder=stack, tied=word_ties(source, head))


def first_weights(source: HfConfig, config: ModelConfig) -> FirstWeights:
    fixed = source.flag("sinusoidal_pos_embds", default=False)
    return usual(source, config, {"encoder.frontend.positions.weight": INTERLEAVED} if fixed else {})


def table(config: ModelConfig) -> WeightTable:
    embeddings = "distilbert.embeddings"
    rows = [
        row(f"{embeddings}.word_embeddings.weight", "encoder.frontend.tokens.weight"),
        row(f"{embeddings}.position_embeddings.weight", "encoder.frontend.positions.weight"),
        *linear(f"{embeddings}.LayerNorm", "encoder.frontend.norm"),
        *linears(LAYER, "distilbert.transformer.layer.{}", "encoder.layers.{}"),
        *ignore(f"{embeddings}.position_ids", "vocab_*", "pre_classifier.*", "classifier.*", "qa_outputs.*"),
    ]
    return WeightTable(tuple(rows), prefix="distilbert.", aliases=OLD_NORM_NAMES)
