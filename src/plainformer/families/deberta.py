"""DeBERTa v2 and v3 (He et al. 2021, 2023): contents and relative positions attend to each other apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from plainformer.checkpoint.rows import OLD_NORM_NAMES, Row, WeightTable, also, ignore, linear, linears, row
from plainformer.config import Disentangled, HeadConfig, ModelConfig, NormConfig, StackConfig, TokenFrontend
from plainformer.config.checks import require, shown
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.families.encoder_line import EXTRAS, HIDDEN, OUT_TIED, dropout, masked_lm, word_rows, word_ties
from plainformer.families.heads import BASE, SPAN, Head, classifier, scores
from plainformer.families.hf_config import HfConfig

DEFAULTS = {"hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24, "intermediate_size": 6144}
LAYER = {
    ".attention.self.query_proj": ".attention.qkv.q",
    ".attention.self.key_proj": ".attention.qkv.k",
    ".attention.self.value_proj": ".attention.qkv.v",
    ".attention.self.pos_query_proj": ".attention.scores.q",
    ".attention.self.pos_key_proj": ".attention.scores.k",
    ".attention.output.dense": ".attention.out",
    ".attention.output.LayerNorm": ".attention_norm",
    ".intermediate.dense": ".ffn.up",
    ".output.dense": ".ffn.down",
    ".output.LayerNorm": ".ffn_norm",
}


def _words(source: HfConfig, name: str) -> tuple[str, ...]:
    """Return a list of words, or one text with | between them."""
    value = source.get(name, default=[])
    words = value.split("|") if isinstance(value, str) else value
    require(isinstance(words, list) and all(isinstance(w, str) for w in words), f"{name}={shown(value)} is not a list")
    return tuple(word.strip().lower() for word in words if word.strip())


def positions(source: HfConfig, terms: tuple[str, ...]) -> Disentangled | None:
    """Return the disentangled attention; None where attention is BERT's."""
    kernel = max(source.integer("conv_kernel_size", default=0), 0)
    require(kernel == 0 or kernel % 2 == 1, f"conv_kernel_size={kernel} is even: its output would lose a position")
    if not source.flag("relative_attention", default=False):
        require(kernel == 0, "conv_kernel_size without relative_attention is not supported")
        return None
    longest = source.integer("max_relative_positions", default=-1)
    return Disentangled(
        max_distance=longest if longest > 0 else source.integer("max_position_embeddings", default=512),
        buckets=max(source.integer("position_buckets", default=-1), 0),
        terms=terms,
        shared_projection=source.flag("share_att_key", default=False),
        norm="layer_norm" in _words(source, "norm_rel_ebd"),
        conv_kernel=kernel,
        conv_groups=source.integer("conv_groups", default=1),
        conv_activation=source.activation("conv_act", default="tanh"),
    )


def encoder(source: HfConfig) -> StackConfig:
    """Return the stack: BERT's, with relative positions instead of, or beside, absolute ones."""
    sizes = source.stack_sizes()
    hidden, heads = sizes["hidden_size"], sizes["num_heads"]
    require(
        heads > 0 < hidden and hidden % heads == 0, f"hidden_size {hidden} is not a multiple of {heads} attention heads"
    )
    source.refuse("attention_head_size", hidden // heads, why="the output projection is as wide as the hidden states")
    norm = NormConfig(eps=source.number("layer_norm_eps", default=1e-7))
    terms = _words(source, "pos_att_type")
    embedding_size, rates = source.integer("embedding_size", default=hidden), dropout(source)
    absolute = source.flag("position_biased_input", default=True)
    return StackConfig(
        frontend=TokenFrontend(
            vocab_size=source.integer("vocab_size"),
            embedding_size=embedding_size,
            positions="learned" if absolute else "none",
            max_positions=source.integer("max_position_embeddings", default=512) if absolute else 0,
            token_types=max(source.integer("type_vocab_size", default=0), 0),
            norm=norm,
            padding="zeroed",
            projection="none" if embedding_size == hidden else "linear",
            projection_place="before_norm",
        ),
        **sizes,
        # One scale for all terms of the score, so that its variance does not grow with their number.
        attention_scale=(hidden // heads * (1 + len(set(terms)))) ** -0.5,
        norm=norm,
        disentangled=positions(source, terms),
        dropout=replace(rates, positions=rates.embedding),
    )


def masked_lm_rows(config: ModelConfig) -> list[Row]:
    """Two spellings of one computation: BERT's (`legacy`, which configs without a word mean), and the authors' own."""
    if not HfConfig(config.source).flag("legacy", default=True):
        own = "lm_predictions.lm_head"
        names = {".dense": "head.dense", ".LayerNorm": "head.norm"}
        return [*linears(names, own), row(f"{own}.bias", "head.out.bias"), *ignore("cls.*")]
    own = "cls.predictions"
    names = {".transform.dense": "head.dense", ".transform.LayerNorm": "head.norm"}
    # Microsoft's files hold the newer names, and their config.json does not say so.
    newer = [
        also(f"lm_predictions.lm_head.{part}.{leaf}", f"head.{ours}.{leaf}")
        for part, ours in (("dense", "dense"), ("LayerNorm", "norm"))
        for leaf in ("weight", "bias")
    ]
    rows = [*linears(names, own), *word_rows(config, own)]
    return [*rows, *newer, also("lm_predictions.lm_head.bias", "head.out.bias")]


def pooled(kind: Literal["sequence", "choice"]) -> Head:
    """Return a classifier of the first vector after the pooler."""

    def config(source: HfConfig, stack: StackConfig) -> HeadConfig:
        activation = source.activation("pooler_hidden_act", default="gelu")
        return classifier(
            source,
            kind,
            "first",
            transform_size=stack.hidden_size,
            transform_activation=activation,
            dropout=source.probability("cls_dropout", "hidden_dropout_prob", default=0.1),
            dense_dropout=source.probability("pooler_dropout"),
        )

    return Head(config, linears({"pooler.dense": "head.dense", "classifier": "head.out"}))


HEADS = {
    "none": BASE,
    "masked_lm": Head(lambda source, stack: masked_lm(stack), masked_lm_rows),
    "sequence": pooled("sequence"),
    "choice": pooled("choice"),
    "token": scores("token", "all", dropout=HIDDEN),
    "span": SPAN,
}
TOKENIZERS = {
    "debertav2": TokenizerConvention(
        "SentencePiece",
        "bos_token=[CLS] eos_token=[SEP] cls_token=[CLS] sep_token=[SEP] mask_token=[MASK] unk_token=[UNK] pad_token=[PAD]",
        "{cls} $A {sep}",
        "{cls} $A {sep} $B:1 {sep}:1",
        pieces="bracketed",
        lowercase=False,
    )
}


def config(source: HfConfig, head: str) -> ModelConfig:
    stack = encoder(source)
    source.refuse("pooler_hidden_size", stack.hidden_size, why="the pooler reads hidden states")
    # The newer head has no weights of its own to untie.
    always = head == "masked_lm" and not source.flag("legacy", default=True)
    return ModelConfig("deberta", encoder=stack, tied=OUT_TIED if always else word_ties(source, head))


def table(config: ModelConfig) -> WeightTable:
    embeddings, encoder = "deberta.embeddings", "deberta.encoder"
    frontend = config.main_stack.frontend
    assert isinstance(frontend, TokenFrontend)
    table_name = f"{embeddings}.position_embeddings.weight"
    absolute = row(table_name, "encoder.frontend.positions.weight")
    rows = [
        row(f"{embeddings}.word_embeddings.weight", "encoder.frontend.tokens.weight"),
        # v3 files still hold the table that `position_biased_input: false` leaves out.
        *([absolute] if frontend.positions == "learned" else ignore(table_name)),
        row(f"{embeddings}.token_type_embeddings.weight", "encoder.frontend.token_types.weight"),
        row(f"{embeddings}.embed_proj.weight", "encoder.frontend.before_norm.weight"),
        *linear(f"{embeddings}.LayerNorm", "encoder.frontend.norm"),
        row(f"{encoder}.rel_embeddings.weight", "encoder.relative.weight"),
        *linear(f"{encoder}.LayerNorm", "encoder.relative.norm"),
        *linears({".conv.conv": ".local.conv", ".conv.LayerNorm": ".local.norm"}, encoder, "encoder"),
        *linears(LAYER, encoder + ".layer.{}", "encoder.layers.{}"),
        *(ignore(f"{encoder}.LayerNorm.*") if config.main_stack.disentangled is None else ()),
        *ignore("lm_predictions.*", "mask_predictions.*", "pooler.*"),
        *EXTRAS,
    ]
    return WeightTable(tuple(rows), prefix="deberta.", aliases=OLD_NORM_NAMES)
