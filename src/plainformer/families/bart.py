"""BART (Lewis et al. 2020) and mBART (Liu et al. 2020): learned positions and a norm on the embeddings.

BART has post-norm layers; mBART has pre-norm ones and a final norm on each stack, and starts a target with its own last
token, the language code.
"""

from __future__ import annotations

from dataclasses import replace

from plainformer.checkpoint.rows import DropRows, WeightTable, row
from plainformer.config import ModelConfig
from plainformer.config.tokenizer import FAIRSEQ_ROLES, TokenizerConvention, names
from plainformer.families import seq2seq_line
from plainformer.families.heads import SPAN
from plainformer.families.hf_config import HfConfig
from plainformer.families.seq2seq_line import NORM, fixed, rows, stacks, text_classifier, tied, token_rows

# Of each position table the first two rows are fairseq's padding rows: no position uses them.
UNUSED_ROWS = 2
DEFAULTS = {"pad_token_id": 1, "eos_token_id": 2}
ALIASES = seq2seq_line.ALIASES
HEADS = {
    **seq2seq_line.HEADS,
    "sequence": text_classifier(),
    "span": SPAN,
}
LANGUAGES = names("""
    ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM
    ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN
""")
MORE_LANGUAGES = names("""
    af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE
    sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
""")
AROUND = ("{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}")
MBART = TokenizerConvention(
    "SentencePiece",
    FAIRSEQ_ROLES,
    "$A {eos} {lang}",
    pieces="fairseq",
    languages=LANGUAGES,
    language="en_XX",
    language_starts=True,
    saved_as="MBartTokenizer",
)
TOKENIZERS = {
    "bart": TokenizerConvention("byte-level BPE", FAIRSEQ_ROLES, *AROUND, trim_offsets=True),
    "mbart": MBART,
    "mbart50": replace(
        MBART,
        single="{lang} $A {eos}",
        languages=(*LANGUAGES, *MORE_LANGUAGES),
        language_starts=False,
        saved_as="MBart50Tokenizer",
    ),
}


def config(source: HfConfig, head: str) -> ModelConfig:
    multilingual = source.text("model_type", default="bart") == "mbart"
    positions = source.integer("max_position_embeddings", default=1024)
    frontend = {"positions": "learned", "max_positions": positions, "norm": NORM}
    layers = {"norm_place": "pre", "final_norm": "norm"} if multilingual else {}
    encoder, decoder = stacks(source, frontend, **layers)
    return ModelConfig(
        "bart",
        encoder,
        decoder,
        tied=tied(source, head),
        fixed=fixed(head),
        decoder_start_id=None if multilingual else 2,
        decoder_shift="last_token" if multilingual else "start_id",
    )


def table(config: ModelConfig) -> WeightTable:
    positions = [
        row(f"model.{side}.embed_positions.weight", f"{side}.frontend.positions.weight", op=DropRows(UNUSED_ROWS))
        for side in ("encoder", "decoder")
    ]
    return rows(config, token_rows(config, "model."), positions)
