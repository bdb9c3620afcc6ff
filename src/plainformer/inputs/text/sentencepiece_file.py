"""The families that publish a SentencePiece model: how ids differ from its piece numbers, and what goes around a text.

Each family is a row of `_LAYOUTS`. The sources are the papers' released code, as the reference library (transformers 5)
reads it, and published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plainformer.errors import CheckpointError, did_you_mean
from plainformer.inputs.text.sentencepiece_model import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    SpmModel,
    read_proto,
    register_pieces,
    to_backend,
)
from plainformer.inputs.text.tokenizer_settings import Settings, SpecialToken
from plainformer.inputs.text.vocabulary import read_vocabulary, register_special, surround, surround_bos_eos

if TYPE_CHECKING:
    import tokenizers


def _words(text: str) -> list[str]:
    return text.split()


_MBART = _words("""
    ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM
    ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN
""")
_MBART50_MORE = _words("""
    af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE
    sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
""")
_M2M100 = _words("""
    af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht
    hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl
    ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu
""")
_WMT21 = _words("en ha is ja cs ru zh de")


@dataclass(frozen=True)
class Layout:
    """A family's use of a SentencePiece model.

    Attributes:
        roles: its usual special tokens, as "role=token" words.
        arrange: the vocabulary from the model's pieces.
        single, pair: what goes around a text and a pair, as words; `{bos}` and the like stand for role tokens,
            `{lang}` for the source language; empty where add_bos_token and add_eos_token decide.
        cleanup: "albert" for its quotation marks, accents and case; "lower" for case alone.
        add_bos: whether a text begins with bos, where `single` is empty.
    """

    roles: str
    arrange: Callable[[SpmModel, Settings], list[Piece]]
    single: str = ""
    pair: str = ""
    cleanup: Literal["", "albert", "lower"] = ""
    add_bos: bool = True
    languages: tuple[str, ...] = ()


def read_sentencepiece(path: Path, settings: Settings) -> dict[str, Any]:
    """The arguments of `Tokenizer` for a folder whose vocabulary is the SentencePiece model at `path`."""
    if path.name == "source.spm" or settings.kind in ("marian", "m2m100"):
        return _looked_up(path, settings)
    layout = _LAYOUTS.get(_ALIASES.get(settings.kind, settings.kind))
    if layout is None:
        what = f"is {settings.kind!r}" if settings.kind else "is missing"
        raise CheckpointError(
            f"{path} alone does not say which special tokens its model uses, and the family {what}"
            " (tokenizer_class in tokenizer_config.json, or model_type in config.json)",
            did_you_mean(settings.kind, {*_LAYOUTS, *_ALIASES}) or "add tokenizer_class, or provide a tokenizer.json",
        )
    model = read_proto(path)
    model = model.with_pieces(_with_added(layout.arrange(model, settings), settings))
    known = {piece.text for piece in model.pieces}
    usual = dict(word.split("=") for word in layout.roles.split())
    stated = {role: settings.role(role, usual.get(role)) for role in {*usual, *settings.roles}}
    roles = {role: token for role, token in stated.items() if token is not None and token in known}
    backend = to_backend(model, cleanup=_cleanup(layout, settings), prefix=_prefix(model, settings))
    mask = roles.get("mask_token", "")
    register_special(backend, settings, roles, {mask: SpecialToken(mask, lstrip=True)})
    if layout.single:
        _surround(backend, layout, settings, roles)
    else:
        surround_bos_eos(backend, settings, roles, add_bos=layout.add_bos, add_eos=False)
    return {"backend": backend, "special_tokens": roles}


def _surround(backend: tokenizers.Tokenizer, layout: Layout, settings: Settings, roles: dict[str, str]) -> None:
    words = {role.removesuffix("_token"): token for role, token in roles.items()}
    if layout.languages:
        words["lang"] = str(settings.config.get("src_lang") or layout.languages[0])
    try:
        single, pair = layout.single.format(**words).split(), layout.pair.format(**words).split()
    except KeyError as error:
        raise CheckpointError(
            f"{settings.folder}: the vocabulary lacks the {error.args[0]} token that this family puts around a text",
            f"name {error.args[0]}_token in tokenizer_config.json",
        ) from None
    surround(backend, single, pair, f"{settings.kind} models")


def _prefix(model: SpmModel, settings: Settings) -> Literal["always", "first"]:
    """`legacy: false` asks for no space after special tokens; BPE with user-defined pieces needs that to be exact."""
    if settings.config.get("legacy") is False and settings.kind in ("llama", "codellama"):
        return "first"
    return "first" if model.kind == "bpe" and any(piece.type == USER_DEFINED for piece in model.pieces) else "always"


def _cleanup(layout: Layout, settings: Settings) -> list[Any]:
    from tokenizers import normalizers

    config = settings.config
    steps: list[Any] = []
    if layout.cleanup == "albert":
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        if not config.get("keep_accents", False):
            steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if layout.cleanup and config.get("do_lower_case", layout is _LAYOUTS["albert"]):
        steps.append(normalizers.Lowercase())
    return steps


# ---- vocabularies -------------------------------------------------------------------------------------------------


def _control(*names: str) -> list[Piece]:
    return [Piece(name, 0.0, UNKNOWN if name == "<unk>" else CONTROL) for name in names]


def _plain(model: SpmModel, settings: Settings) -> list[Piece]:
    return list(model.pieces)


def _fairseq(model: SpmModel, settings: Settings) -> list[Piece]:
    """fairseq's dictionary comes first: <s>, <pad>, </s>, <unk>."""
    if {piece.text for piece in model.pieces[:3]} != {"<unk>", "<s>", "</s>"}:
        raise CheckpointError(
            f"{model.where}: the first three pieces are not <unk>, <s> and </s>, as a {settings.kind!r} model has them",
            "the file belongs to another family: correct tokenizer_class, or download it again",
        )
    return [*_control("<s>", "<pad>", "</s>", "<unk>"), *model.pieces[3:]]


def _fairseq_mask(model: SpmModel, settings: Settings) -> list[Piece]:
    return [*_fairseq(model, settings), *_control("<mask>")]


def _camembert(model: SpmModel, settings: Settings) -> list[Piece]:
    first = _control("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
    return [*first, *model.pieces[1:], *_control("<mask>")]


def _xglm(model: SpmModel, settings: Settings) -> list[Piece]:
    return [*_fairseq(model, settings), *_control(*(f"<madeupword{i}>" for i in range(7)))]


def _mbart(model: SpmModel, settings: Settings) -> list[Piece]:
    return [*_fairseq(model, settings), *_control(*_MBART, "<mask>")]


def _mbart50(model: SpmModel, settings: Settings) -> list[Piece]:
    return [*_fairseq(model, settings), *_control(*_MBART, *_MBART50_MORE, "<mask>")]


def _nllb(model: SpmModel, settings: Settings) -> list[Piece]:
    """The languages differ between releases, so the checkpoint has to list them."""
    languages = [token.content for token in settings.listed if token.content != "<mask>"]
    if not languages and not settings.added:
        raise CheckpointError(
            f"{settings.folder} does not list its languages",
            "additional_special_tokens in special_tokens_map.json holds them: download that file too",
        )
    return [*_fairseq(model, settings), *_control(*languages, "<mask>")] if languages else _fairseq(model, settings)


def _t5(model: SpmModel, settings: Settings) -> list[Piece]:
    """Sentinels come last, counted down (Raffel et al. 2020)."""
    count = settings.config.get("extra_ids", 100)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= 100_000:
        raise CheckpointError(f"{settings.folder}: extra_ids is {count!r}", "it is a number of sentinels, such as 100")
    known = {piece.text for piece in model.pieces}
    sentinels = [f"<extra_id_{i}>" for i in range(count - 1, -1, -1)]
    return [*model.pieces, *_control(*(name for name in sentinels if name not in known))]


def _pegasus(model: SpmModel, settings: Settings) -> list[Piece]:
    """103 ids of pre-training come before the pieces (Zhang et al. 2020)."""
    offset = settings.config.get("offset", 103)
    if isinstance(offset, bool) or not isinstance(offset, int) or not 2 <= offset <= 10_000:
        raise CheckpointError(f"{settings.folder}: offset is {offset!r}", "it is a number of ids, such as 103")
    reserved = ("<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, offset))) if offset > 2 else ()
    pieces = [piece._replace(type=CONTROL) if piece.text == "</s>" else piece for piece in model.pieces]
    if [piece.text for piece in pieces[:2]] != ["<pad>", "</s>"]:
        raise CheckpointError(
            f"{model.where}: the first pieces are not <pad> and </s>, as a Pegasus model has them", "download it again"
        )
    return [*pieces[:2], *_control(*reserved), *pieces[2:]]


def _cls_sep(model: SpmModel, settings: Settings) -> list[Piece]:
    """The pieces, and a mask at the end where they have none (DeBERTa-v2)."""
    mask = settings.role("mask_token", "[MASK]") or "[MASK]"
    known = {piece.text for piece in model.pieces}
    special = {"[CLS]", "[SEP]", "[PAD]", "[MASK]", "<pad>", "<s>", "</s>"}
    pieces = [p._replace(type=CONTROL) if p.text in special and p.type == NORMAL else p for p in model.pieces]
    return pieces if mask in known else [*pieces, *_control(mask)]


def _with_added(pieces: list[Piece], settings: Settings) -> list[Piece]:
    """Put tokens that have an id of their own at that id; gaps are filled with unused names."""
    places = {piece.text: i for i, piece in enumerate(pieces)}
    for index, token in sorted(settings.added.items()):
        if places.get(token.content, index) != index:
            raise CheckpointError(
                f"{settings.folder}: {token.content!r} is piece {places[token.content]}, but its added id is {index}",
                "the files do not belong together: download all of them again",
            )
        if index > len(pieces) + 100_000:
            raise CheckpointError(
                f"{settings.folder}: the id {index} of {token.content!r} is out of range", "correct it"
            )
        while len(pieces) <= index:
            pieces.append(Piece(f"<unused {len(pieces)}>", 0.0, CONTROL))
        if pieces[index].text != token.content:
            pieces[index] = Piece(token.content, 0.0, CONTROL if token.special else pieces[index].type)
            places[token.content] = index
    return pieces


_FAIRSEQ_ROLES = (
    "bos_token=<s> eos_token=</s> cls_token=<s> sep_token=</s> unk_token=<unk> pad_token=<pad> mask_token=<mask>"
)
_T5_ROLES = "eos_token=</s> unk_token=<unk> pad_token=<pad>"
_CLS_ROLES = "bos_token=[CLS] eos_token=[SEP] cls_token=[CLS] sep_token=[SEP] mask_token=[MASK] "
_COMMON_ROLES = "unk_token=<unk> pad_token=<pad>"
_ROBERTA = ("{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}")
_BERT = ("{cls} $A {sep}", "{cls} $A {sep} $B:1 {sep}:1")
_LAYOUTS: dict[str, Layout] = {
    "llama": Layout("bos_token=<s> eos_token=</s> unk_token=<unk>", _plain),
    "gemma": Layout("bos_token=<bos> eos_token=<eos> unk_token=<unk> pad_token=<pad> mask_token=<mask>", _plain),
    "t5": Layout(_T5_ROLES, _t5, "$A {eos}", "$A {eos} $B {eos}"),
    "xlmroberta": Layout(_FAIRSEQ_ROLES, _fairseq_mask, *_ROBERTA),
    "camembert": Layout(_FAIRSEQ_ROLES, _camembert, *_ROBERTA),
    "xglm": Layout(_FAIRSEQ_ROLES, _xglm, "{sep} $A", "{sep} $A {sep} {sep} $B"),
    "mbart": Layout(_FAIRSEQ_ROLES, _mbart, "$A {eos} {lang}", "$A $B {eos} {lang}", languages=("en_XX",)),
    "mbart50": Layout(_FAIRSEQ_ROLES, _mbart50, "{lang} $A {eos}", "{lang} $A $B {eos}", languages=("en_XX",)),
    "nllb": Layout(_FAIRSEQ_ROLES, _nllb, "{lang} $A {eos}", "{lang} $A $B {eos}", languages=("eng_Latn",)),
    "albert": Layout(_CLS_ROLES + "unk_token=<unk> pad_token=<pad>", _cls_sep, *_BERT, cleanup="albert"),
    "debertav2": Layout(_CLS_ROLES + "unk_token=[UNK] pad_token=[PAD]", _cls_sep, *_BERT, cleanup="lower"),
    "bigbird": Layout(
        "bos_token=<s> eos_token=</s> cls_token=[CLS] sep_token=[SEP] " + _COMMON_ROLES + " mask_token=[MASK]",
        _cls_sep,
        *_BERT,
    ),
    "xlnet": Layout(
        "bos_token=<s> eos_token=</s> cls_token=<cls> sep_token=<sep> " + _COMMON_ROLES + " mask_token=<mask>",
        _plain,
        "$A {sep} {cls}:2",
        "$A {sep} $B:1 {sep}:1 {cls}:2",
        cleanup="albert",
    ),
    "pegasus": Layout(_T5_ROLES + " mask_token=<mask_2>", _pegasus, "$A {eos}", "$A $B {eos}"),
}
_ALIASES = {
    **dict.fromkeys(
        _words("mistral mixtral codellama phi3 baichuan internlm yi stablelm minicpm starling olmo"), "llama"
    ),
    **dict.fromkeys(_words("gemma2 gemma3 gemma3text"), "gemma"),
    **dict.fromkeys(_words("mt5 umt5 longt5 switchtransformers flant5 byt5sentencepiece"), "t5"),
    **dict.fromkeys(_words("xlmrobertaxl xlmr xmod"), "xlmroberta"),
    **dict.fromkeys(_words("nllbmoe"), "nllb"),
    **dict.fromkeys(_words("deberta debertav3"), "debertav2"),
    **dict.fromkeys(_words("pegasusx bigbirdpegasus"), "pegasus"),
    "fnet": "albert",
    "rembert": "bigbird",
}


# ---- pieces that are looked up in a vocab.json --------------------------------------------------------------------


def _looked_up(path: Path, settings: Settings) -> dict[str, Any]:
    """Marian and M2M100: SentencePiece cuts the text, and a vocab.json gives the ids of the pieces.

    Marian's punctuation normalisation (Moses) is not applied, as in the reference library without sacremoses.
    """
    m2m = settings.kind == "m2m100" or (path.name != "source.spm" and settings.kind != "marian")
    vocabulary, languages = _ids_and_languages(settings, m2m)
    usual = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    usual |= {"bos_token": "<s>", "sep_token": "</s>"} if m2m else {}
    stated = {role: settings.role(role, usual.get(role)) for role in {*usual, *settings.roles}}
    roles = {role: token for role, token in stated.items() if token is not None and token in vocabulary}
    for role in ("eos_token", "unk_token"):
        if role not in roles:
            raise CheckpointError(
                f"{settings.folder / 'vocab.json'} has no {usual[role]!r}", "the file is damaged: download it again"
            )
    backend = to_backend(read_proto(path))
    register_pieces(backend, _control(*roles.values()))
    register_pieces(backend, [Piece(name, 0.0, CONTROL if m2m else USER_DEFINED) for name in languages])
    before = [f"__{settings.config.get('src_lang') or 'en'}__"] if m2m else []
    eos = roles["eos_token"]
    surround(backend, [*before, "$A", eos], [*before, "$A", "$B", eos], f"{'M2M100' if m2m else 'Marian'} models")
    names = [path.name, "vocab.json", "target.spm", "target_vocab.json"]
    kept = ("source_lang", "target_lang", "src_lang", "tgt_lang", "language_codes", "separate_vocabs")
    return {
        "backend": backend,
        "special_tokens": roles,
        "piece_ids": vocabulary,
        "source_files": {n: (settings.folder / n).read_bytes() for n in names if (settings.folder / n).is_file()},
        "settings": {
            **{key: settings.config[key] for key in kept if key in settings.config},
            "tokenizer_class": "M2M100Tokenizer" if m2m else "MarianTokenizer",
        },
    }


def _ids_and_languages(settings: Settings, m2m: bool) -> tuple[dict[str, int], list[str]]:
    """The vocabulary with its language tokens, which M2M100 numbers after everything else."""
    vocabulary = dict(read_vocabulary(settings.folder / "vocab.json"))
    if m2m:
        codes = _WMT21 if settings.config.get("language_codes") == "wmt21" else _M2M100
        languages = [f"__{code}__" for code in codes]
        size = len(vocabulary)
        vocabulary |= {name: size + i for i, name in enumerate(languages)}
    else:
        languages = [token for token in vocabulary if token.startswith(">>") and token.endswith("<<")]
    vocabulary |= {token.content: i for i, token in settings.added.items() if token.content not in vocabulary}
    return vocabulary, languages
