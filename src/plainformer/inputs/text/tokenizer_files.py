"""A tokenizer from a checkpoint's files.

`tokenizer.json` is taken as it is. Without one, the tokenizer that the checkpoint was trained with is rebuilt from its
vocabulary: vocab.txt (WordPiece), vocab.json + merges.txt (byte-level BPE), vocab.json alone (characters, for
speech), or a SentencePiece model (`sentencepiece_file.py`). What the special tokens around a text are is the family's
convention, which the vocabulary does not say; it comes from tokenizer_config.json's tokenizer_class or config.json's
model_type.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.errors import CheckpointError
from plainformer.inputs.text.sentencepiece_file import read_sentencepiece
from plainformer.inputs.text.tokenizer_settings import (
    Settings,
    SpecialToken,
    find_roles,
    library_errors,
    read_settings,
    read_text,
)
from plainformer.inputs.text.vocabulary import (
    assign_added,
    read_merges,
    read_vocabulary,
    register_special,
    surround,
    surround_bos_eos,
)

if TYPE_CHECKING:
    import tokenizers

SENTENCEPIECE_FILES = (
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "spm.model",
    "sentencepiece.model",
    "source.spm",
)
# Byte-level BPE with <s> text </s>; every other one has no special tokens unless add_bos_token / add_eos_token say so.
_ROBERTA_LIKE = frozenset(
    ["roberta", "bart", "longformer", "led", "mvp", "blenderbot", "ibert", "data2vectext", "markuplm", "deberta"]
)
_OTHER_BPE = frozenset(
    [
        "clip",
        "openaigpt",
        "ctrl",
        "xlm",
        "fsmt",
        "flaubert",
        "herbert",
        "phobert",
        "bertweet",
        "blenderbotsmall",
        "biogpt",
        "layoutxlm",
    ]
)
_OTHER_VOCAB_TXT = frozenset(["bertjapanese", "bertweet", "phobert", "esm", "cpmant", "prophetnet", "tapas", "canine"])
_CTC = frozenset(
    [
        "wav2vec2ctc",
        "wav2vec2",
        "wav2vec2conformer",
        "wav2vec2bert",
        "hubert",
        "wavlm",
        "unispeech",
        "unispeechsat",
        "sew",
        "sewd",
    ]
)


def read_folder(folder: Path, model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of `Tokenizer` for a checkpoint folder; see `Tokenizer.from_folder`."""
    settings = read_settings(folder, model)
    if (folder / "tokenizer.json").is_file():
        backend = read_tokenizer_json(folder / "tokenizer.json")
        parts: dict[str, Any] = {"backend": backend, "special_tokens": find_roles(settings, backend)}
    else:
        parts = _build(settings)
    side = settings.config.get("padding_side", "right")
    if side not in ("left", "right"):
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: padding_side is {side!r}", "it must be 'left' or 'right'"
        )
    parts.setdefault("settings", _kept_settings(settings))
    return {
        "padding_side": side,
        "max_length": settings.max_length(),
        "chat_template": settings.chat_templates,
        **parts,
    }


def read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer that a tokenizer.json describes."""
    from tokenizers import Tokenizer as Backend

    text = read_text(path)
    with library_errors(
        f"{path} is not a tokenizer that the tokenizers library can read",
        "the file is damaged or newer than the library: download it again, or upgrade tokenizers",
    ):
        return Backend.from_str(text)


def _kept_settings(settings: Settings) -> dict[str, Any]:
    return {k: settings.config[k] for k in ("clean_up_tokenization_spaces",) if k in settings.config}


def _build(settings: Settings) -> dict[str, Any]:
    """Rebuild a tokenizer from vocabulary files."""
    folder = settings.folder
    model = next((folder / name for name in SENTENCEPIECE_FILES if (folder / name).is_file()), None)
    if model is not None:
        return read_sentencepiece(model, settings)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _byte_level_bpe(settings)
    if (folder / "vocab.json").is_file() and settings.kind in _CTC:
        return _characters(settings)
    if (folder / "vocab.txt").is_file():
        return _wordpiece(settings)
    present = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".txt", ".model", ".spm"))
    raise CheckpointError(
        f"{folder} has no tokenizer: no tokenizer.json, vocab.txt, vocab.json + merges.txt or SentencePiece model"
        f" (it has {', '.join(present) or 'no such files'})",
        "download the whole checkpoint, or save the tokenizer as tokenizer.json with the library that it comes from",
    )


def _roles(settings: Settings, vocabulary: Mapping[str, int], defaults: Mapping[str, str]) -> dict[str, str]:
    """The family's usual special tokens, overridden by what the files say, as far as the vocabulary has them."""
    stated = {role: settings.role(role, defaults.get(role)) for role in {*defaults, *settings.roles}}
    return {role: token for role, token in stated.items() if token is not None and token in vocabulary}


# ---- WordPiece ----------------------------------------------------------------------------------------------------


def _wordpiece(settings: Settings) -> dict[str, Any]:
    """BERT, DistilBERT, ELECTRA, MPNet…: vocab.txt has a token a line."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    path = settings.folder / "vocab.txt"
    if settings.kind in _OTHER_VOCAB_TXT:
        raise CheckpointError(
            f"{path} belongs to a {settings.kind!r} tokenizer, which is not WordPiece",
            "save the tokenizer as tokenizer.json with the library that it comes from",
        )
    lines = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocabulary = {token: index for index, token in enumerate(lines)}
    assign_added(vocabulary, settings)
    bracketed = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
    angled = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "[UNK]"}
    mpnet = settings.kind == "mpnet"
    defaults = {**angled, "pad_token": "<pad>", "mask_token": "<mask>"} if mpnet else bracketed
    roles = _roles(settings, vocabulary, defaults)
    missing = [role for role in ("unk_token", "cls_token", "sep_token") if role not in roles]
    if missing:
        raise CheckpointError(
            f"{path} has no {', '.join(repr(settings.role(r, defaults[r])) for r in missing)}",
            "if it is a BERT vocabulary, name its special tokens in tokenizer_config.json",
        )
    backend = Backend(models.WordPiece(vocabulary, unk_token=roles["unk_token"], max_input_chars_per_word=100))
    accents = settings.config.get("strip_accents")  # unset: stripped if lower-cased
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(settings.config.get("tokenize_chinese_chars", True)),
        strip_accents=accents if isinstance(accents, bool) else None,
        lowercase=bool(settings.config.get("do_lower_case", True)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    register_special(backend, settings, roles, {"<mask>": SpecialToken("<mask>", lstrip=True)})
    cls, sep = roles["cls_token"], roles["sep_token"]
    second = [sep, "$B", sep] if mpnet else ["$B:1", f"{sep}:1"]
    surround(backend, [cls, "$A", sep], [cls, "$A", sep, *second])
    return {"backend": backend, "special_tokens": roles}


# ---- byte-level BPE -----------------------------------------------------------------------------------------------


def _byte_level_bpe(settings: Settings) -> dict[str, Any]:
    """GPT-2, OPT, Whisper, Qwen2, and RoBERTa, BART, …: vocab.json and merges.txt."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    folder, kind = settings.folder, settings.kind
    if kind in _OTHER_BPE:
        raise CheckpointError(
            f"{folder / 'vocab.json'} belongs to a {kind!r} tokenizer, which is not byte-level BPE",
            "save the tokenizer as tokenizer.json with the library that it comes from",
        )
    vocabulary = read_vocabulary(folder / "vocab.json")
    merges = read_merges(folder / "merges.txt")
    assign_added(vocabulary, settings)
    with library_errors(
        f"{folder / 'merges.txt'} does not fit {folder / 'vocab.json'}",
        "download both files again, from one checkpoint",
    ):
        backend = Backend(models.BPE(vocabulary, merges))
    prefix_space = bool(settings.config.get("add_prefix_space", False))
    if kind.startswith("qwen"):
        from plainformer.inputs.text.pre_tokenizers import patterns_for

        backend.normalizer = normalizers.NFC()
        split = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns_for("qwen2") or ()]
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [*split, pre_tokenizers.ByteLevel(prefix_space, use_regex=False)]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    return _finish_bpe(backend, settings, vocabulary, prefix_space)


def _finish_bpe(
    backend: tokenizers.Tokenizer, settings: Settings, vocabulary: Mapping[str, int], prefix_space: bool
) -> dict[str, Any]:
    """The special tokens of a byte-level BPE family."""
    from tokenizers.processors import RobertaProcessing

    kind = settings.kind
    if kind in _ROBERTA_LIKE:
        deberta = kind == "deberta"
        first, last = ("[CLS]", "[SEP]") if deberta else ("<s>", "</s>")
        defaults = {"bos_token": first, "eos_token": last, "cls_token": first, "sep_token": last}
        names = ("[UNK]", "[PAD]", "[MASK]") if deberta else ("<unk>", "<pad>", "<mask>")
        defaults |= dict(zip(("unk_token", "pad_token", "mask_token"), names, strict=True))
    else:
        end = "<|endoftext|>"
        defaults = {"pad_token": end} if kind.startswith("qwen") else {"bos_token": end, "unk_token": end}
        defaults |= {"eos_token": end}
    roles = _roles(settings, vocabulary, defaults)
    mask = roles.get("mask_token", "")
    register_special(backend, settings, roles, {mask: SpecialToken(mask, lstrip=True)})
    if kind in _ROBERTA_LIKE:
        missing = [role for role in ("cls_token", "sep_token") if role not in roles]
        if missing:
            raise CheckpointError(
                f"{settings.folder / 'vocab.json'} has no {missing[0]}, which a {kind!r} tokenizer needs",
                "name its special tokens in tokenizer_config.json",
            )
        cls, sep = roles["cls_token"], roles["sep_token"]
        if kind == "blenderbot":  # a reply is conditioned on text </s>, without a beginning
            surround(backend, ["$A", sep], ["$A", sep, "$B:1", f"{sep}:1"])
        elif kind == "deberta":
            surround(backend, [cls, "$A", sep], [cls, "$A", sep, "$B:1", f"{sep}:1"])
        else:
            backend.post_processor = RobertaProcessing(
                (sep, vocabulary[sep]), (cls, vocabulary[cls]), trim_offsets=True, add_prefix_space=prefix_space
            )
    elif kind == "whisper":
        start = [t for t in ("<|startoftranscript|>", "<|notimestamps|>") if backend.token_to_id(t) is not None]
        surround(backend, [*start, "$A", roles["eos_token"]], [*start, "$A", "$B:1", f"{roles['eos_token']}:1"])
    else:
        surround_bos_eos(backend, settings, roles, add_bos=False, add_eos=False)
    return {"backend": backend, "special_tokens": roles}


# ---- characters (speech) ------------------------------------------------------------------------------------------


def _characters(settings: Settings) -> dict[str, Any]:
    """wav2vec 2.0 and its kin, trained with CTC: a token is a character, "|" stands for a space.

    Decoding joins repeats and drops the blank (the pad token), as CTC output needs (Graves et al. 2006).
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    vocabulary = read_vocabulary(settings.folder / "vocab.json")
    assign_added(vocabulary, settings)
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    roles = _roles(settings, vocabulary, defaults)
    if "pad_token" not in roles:
        raise CheckpointError(
            f"{settings.folder / 'vocab.json'} has no '<pad>', the blank of CTC",
            "name pad_token in tokenizer_config.json",
        )
    delimiter = settings.config.get("word_delimiter_token")
    delimiter = delimiter if isinstance(delimiter, str) and len(delimiter) == 1 else "|"
    backend = Backend(models.WordLevel(vocabulary, unk_token=roles.get("unk_token", roles["pad_token"])))
    if settings.config.get("do_lower_case", False):
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("."), "isolated"), pre_tokenizers.Metaspace(delimiter, "never", split=False)]
    )
    ctc = decoders.CTC(pad_token=roles["pad_token"], word_delimiter_token=delimiter, cleanup=False)
    backend.decoder = decoders.Sequence([ctc, decoders.Replace(delimiter, " "), decoders.Fuse()])
    register_special(backend, settings, roles, {})
    return {"backend": backend, "special_tokens": roles}
