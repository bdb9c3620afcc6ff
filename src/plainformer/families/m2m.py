"""M2M-100 (Fan et al. 2021) and NLLB-200 (NLLB team 2022): mBART's pre-norm layers with fairseq's sinusoids."""

from __future__ import annotations

from typing import Any

from plainformer.checkpoint.rows import WeightTable, ignore
from plainformer.config import ModelConfig
from plainformer.config.checks import require
from plainformer.config.tokenizer import FAIRSEQ_ROLES, TokenizerConvention, names
from plainformer.families.heads import BASE, words
from plainformer.families.hf_config import HfConfig
from plainformer.families.seq2seq_line import ALIASES, rows, stacks, tied, token_rows, word_rows

__all__ = ["ALIASES", "HEADS", "TOKENIZERS", "config", "table"]
DEFAULTS = {
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "attention_dropout": 0.1,
    "encoder_layerdrop": 0.05,
    "decoder_layerdrop": 0.05,
}
HEADS = {"none": BASE, "seq2seq_lm": words("seq2seq_lm", word_rows, out_bias=False)}
LANGUAGES = names("""
    af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht
    hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl
    ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu
""")
TOKENIZERS = {
    "m2m100": TokenizerConvention(
        "SentencePiece",
        "bos_token=<s> eos_token=</s> sep_token=</s> unk_token=<unk> pad_token=<pad>",
        "{lang} $A {eos}",
        pieces="vocab.json",
        languages=LANGUAGES,
        language_sets={"wmt21": ("en", "ha", "is", "ja", "cs", "ru", "zh", "de")},
        language="en",
        language_token="__{}__",
        saved_as="M2M100Tokenizer",
    ),
    "nllb": TokenizerConvention(
        "SentencePiece",
        FAIRSEQ_ROLES,
        "{lang} $A {eos}",
        legacy_single="$A {eos} {lang}",
        pieces="fairseq",
        language="eng_Latn",
        saved_as="NllbTokenizer",
    ),
}


def config(source: HfConfig, head: str) -> ModelConfig:
    pad = source.id("pad_token_id")
    require(pad is not None and pad >= 0, "pad_token_id is missing: positions are counted from it")
    assert pad is not None
    # fairseq numbers positions from its padding row on: the first token has row pad_token_id + 1.
    frontend: dict[str, Any] = {"positions": "sinusoidal", "sinusoid": "tensor2tensor", "sinusoid_start": pad + 1}
    if source.flag("scale_embedding", default=True):
        frontend["scale"] = source.integer("d_model", default=1024) ** 0.5
    activation = source.activation("activation_function", default="relu")
    encoder, decoder = stacks(source, frontend, activation=activation, norm_place="pre", final_norm="norm")
    return ModelConfig("m2m", encoder, decoder, tied=tied(source, head))


def table(config: ModelConfig) -> WeightTable:
    """BART's rows without norms on the embeddings; old files carry the sinusoids."""
    positions = ignore("*.embed_positions.weight", "*.embed_positions.weights", "*.embed_positions._float_tensor")
    return rows(config, token_rows(config, "model."), positions)
