"""A tokenizer from a checkpoint's files.

`tokenizer.json` is taken with what the other files add to it (`beside_tokenizer_json.py`). Without one, the tokenizer that
the checkpoint was trained with is rebuilt from its vocabulary: vocab.txt (WordPiece), vocab.json + merges.txt (byte-level
BPE), vocab.json alone (characters, for speech), or a SentencePiece model (`sentencepiece_file.py`). Which special tokens go
around a text the vocabulary does not say: it is the family's convention, found by tokenizer_config.json's tokenizer_class
or config.json's model_type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.config.checks import json_hint
from plainformer.config.tokenizer import TokenizerConvention
from plainformer.errors import CheckpointError, opt
from plainformer.inputs.files import read_text
from plainformer.inputs.text.beside_tokenizer_json import check_padding, follow
from plainformer.inputs.text.languages import ORIGINAL_CLASS, follow_config
from plainformer.inputs.text.pre_tokenizers import patterns_for
from plainformer.inputs.text.sentencepiece_file import read_sentencepiece
from plainformer.inputs.text.tokenizer_settings import Settings, find_roles, library_errors, read_settings
from plainformer.inputs.text.vocabulary import (
    assign_added,
    begin_and_end,
    cut_to_bytes,
    fill_template,
    known_roles,
    read_merges,
    read_vocabulary,
    register_special,
    surround,
    wordpiece,
)

if TYPE_CHECKING:
    import tokenizers

    from plainformer.config.tokenizer import Algorithm, Conventions

SENTENCEPIECE_FILES = (
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "spm.model",
    "sentencepiece.model",
    "source.spm",
)
_BRACKETED = "unk_token=[UNK] sep_token=[SEP] pad_token=[PAD] cls_token=[CLS] mask_token=[MASK]"
_END_OF_TEXT = "bos_token=<|endoftext|> eos_token=<|endoftext|> unk_token=<|endoftext|>"
_CTC_ROLES = "bos_token=<s> eos_token=</s> unk_token=<unk> pad_token=<pad>"


def read_folder(
    folder: Path, model: Mapping[str, Any] | None = None, conventions: Conventions | None = None
) -> dict[str, Any]:
    """Return the arguments of `Tokenizer` for a checkpoint folder; see `Tokenizer.from_folder`."""
    settings = read_settings(folder, model)
    if (folder / "tokenizer.json").is_file():
        backend = read_tokenizer_json(folder / "tokenizer.json")
        stored = {"padding_side": backend.padding, "truncation_side": backend.truncation}
        sides = {name: state["direction"] for name, state in stored.items() if state is not None}
        backend.no_padding()
        backend.no_truncation()
        follow(backend, settings, conventions)
        roles = check_padding(backend, settings, find_roles(settings, backend))
        languages = follow_config(backend, settings, conventions, roles)
        parts: dict[str, Any] = {"backend": backend, "special_tokens": roles, "languages": languages}
        parts["settings"] = _stated(settings, ORIGINAL_CLASS, "tokenizer_class") if languages else {}
    else:
        parts, sides = _build(settings, conventions), {}
    for name in ("padding_side", "truncation_side"):
        parts[name] = side = settings.config.get(name, sides.get(name, "right"))
        if side not in ("left", "right"):
            where = folder / "tokenizer_config.json"
            raise CheckpointError(f"{where}: {name} is {side!r}", "it must be 'left' or 'right'")
    kept = _stated(settings, "clean_up_tokenization_spaces", "split_special_tokens")
    if settings.config.get("split_special_tokens") is True:
        parts["backend"].encode_special_tokens = True
    if parts.get("languages"):
        kept |= _stated(settings, "src_lang", "tgt_lang", "legacy_behaviour")
    own = conventions.of_model(str(settings.model.get("model_type"))) if conventions is not None else None
    return {
        "max_length": settings.max_length(own or TokenizerConvention("wordpiece")),
        "chat_template": settings.chat_templates,
        **parts,
        "settings": {**kept, **parts.get("settings", {})},
    }


def _stated(settings: Settings, *names: str) -> dict[str, Any]:
    """Return those of the entries of tokenizer_config.json that it has."""
    return {name: settings.config[name] for name in names if name in settings.config}


def read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer that a tokenizer.json describes."""
    from tokenizers import Tokenizer as Backend

    text = read_text(path)
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", json_hint(text, error)) from None
    what = f"{path} is not a tokenizer that the tokenizers library can read"
    with library_errors(what, "it may be of a newer version: upgrade tokenizers"):
        return Backend.from_str(text)


def _build(settings: Settings, conventions: Conventions | None) -> dict[str, Any]:
    """Rebuild a tokenizer from vocabulary files."""
    folder = settings.folder
    convention = partial(_convention, settings, conventions)
    model = next((folder / name for name in SENTENCEPIECE_FILES if (folder / name).is_file()), None)
    if model is not None:
        return read_sentencepiece(model, settings, convention(model, "SentencePiece"))
    vocabulary = folder / "vocab.json"
    if vocabulary.is_file() and (folder / "merges.txt").is_file():
        return _byte_level_bpe(settings, convention(vocabulary, "byte-level BPE"))
    if vocabulary.is_file():
        convention(vocabulary, "characters")
        return _characters(settings)
    if (folder / "vocab.txt").is_file():
        return _wordpiece(settings, convention(folder / "vocab.txt", "wordpiece"))
    present = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".txt", ".model", ".spm"))
    raise CheckpointError(
        f"{folder} has no tokenizer: no tokenizer.json, vocab.txt, vocab.json + merges.txt or SentencePiece model"
        f" (it has {', '.join(present) or 'no such files'})",
        "download the whole checkpoint, or save the tokenizer as tokenizer.json with the library that it comes from",
    )


def _convention(
    settings: Settings, conventions: Conventions | None, path: Path, algorithm: Algorithm
) -> TokenizerConvention:
    """Return what the checkpoint's family says of the file at `path`, which holds an `algorithm`'s vocabulary."""
    if not settings.kind and algorithm in ("wordpiece", "byte-level BPE"):
        return TokenizerConvention(algorithm)
    if not settings.kind or conventions is None:
        what = f"is {settings.kind!r}" if settings.kind else "is missing"
        raise CheckpointError(
            f"{path} alone does not say which special tokens its model uses, and the family {what}"
            " (tokenizer_class in tokenizer_config.json, or model_type in config.json)",
            "load it with load_tokenizer, which knows the families"
            if settings.kind
            else f"pass {opt('family', ...)}, add tokenizer_class, or provide a tokenizer.json",
        )
    found = conventions.named(settings.kind)
    if found.algorithm != algorithm:
        if not settings.names_class and algorithm in ("wordpiece", "byte-level BPE"):
            return TokenizerConvention(algorithm)  # a family's model, trained on another vocabulary than the published
        raise CheckpointError(
            f"{path} belongs to a {settings.kind!r} tokenizer, whose vocabulary is {found.algorithm}, not {algorithm}",
            "correct tokenizer_class, or save the tokenizer as tokenizer.json with the library that it comes from",
        )
    return found


# ---- WordPiece ----------------------------------------------------------------------------------------------------


def _wordpiece(settings: Settings, convention: TokenizerConvention) -> dict[str, Any]:
    """Read a vocab.txt, which has one token per line."""
    path = settings.folder / "vocab.txt"
    lines = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocabulary = {token: index for index, token in enumerate(lines)}
    assign_added(vocabulary, settings)
    defaults = convention.usual_roles(_BRACKETED)
    roles = known_roles(settings, defaults, vocabulary)
    missing = [role for role in ("unk_token", "cls_token", "sep_token") if role not in roles]
    if missing:
        raise CheckpointError(
            f"{path} has no {', '.join(repr(settings.role(r, defaults[r])) for r in missing)}",
            "if it is a WordPiece vocabulary, name its special tokens in tokenizer_config.json",
        )
    accents = settings.config.get("strip_accents")  # unset: stripped if lower-cased
    backend = wordpiece(
        vocabulary,
        roles["unk_token"],
        handle_chinese_chars=bool(settings.config.get("tokenize_chinese_chars", True)),
        strip_accents=accents if isinstance(accents, bool) else None,
        lowercase=bool(settings.config.get("do_lower_case", True)),
    )
    register_special(backend, settings, roles, mask_lstrip=convention.trim_offsets)
    if convention.trim_offsets:
        _surround_trimmed(backend, roles, prefix_space=False)
        return {"backend": backend, "special_tokens": roles}
    cls, sep = roles["cls_token"], roles["sep_token"]
    surround(backend, [cls, "$A", sep], [cls, "$A", sep, "$B:1", f"{sep}:1"])
    return {"backend": backend, "special_tokens": roles}


# ---- byte-level BPE -----------------------------------------------------------------------------------------------


def _byte_level_bpe(settings: Settings, convention: TokenizerConvention) -> dict[str, Any]:
    """Read a vocab.json and a merges.txt."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers

    folder = settings.folder
    vocabulary = read_vocabulary(folder / "vocab.json")
    merges = read_merges(folder / "merges.txt")
    assign_added(vocabulary, settings)
    with library_errors(
        f"{folder / 'merges.txt'} does not fit {folder / 'vocab.json'}",
        "take both files from one checkpoint",
    ):
        backend = Backend(models.BPE(vocabulary, merges))
    prefix_space = bool(settings.config.get("add_prefix_space", False))
    if convention.unicode == "NFC":
        backend.normalizer = normalizers.NFC()
    cut_to_bytes(backend, patterns_for(convention.words) or (), prefix_space)
    roles = known_roles(settings, convention.usual_roles(_END_OF_TEXT), vocabulary)
    register_special(backend, settings, roles, mask_lstrip=True)
    if not convention.single:
        begin_and_end(backend, *settings.ends(roles, convention))
        return {"backend": backend, "special_tokens": roles}
    single, pair = fill_template(convention, roles, settings)
    if convention.trim_offsets:
        _surround_trimmed(backend, roles, prefix_space)
    else:
        known = {
            word
            for word in (*single, *pair)
            if word.startswith("$") or backend.token_to_id(word.removesuffix(":1")) is not None
        }
        surround(backend, [w for w in single if w in known], [w for w in pair if w in known])
    return {"backend": backend, "special_tokens": roles}


def _surround_trimmed(backend: tokenizers.Tokenizer, roles: Mapping[str, str], prefix_space: bool) -> None:
    """<s> A </s>, or <s> A </s> </s> B </s>, where a token's offsets leave out the spaces around it."""
    from tokenizers.processors import RobertaProcessing

    vocabulary, sep, cls = backend.get_vocab(), roles["sep_token"], roles["cls_token"]
    backend.post_processor = RobertaProcessing(
        (sep, vocabulary[sep]), (cls, vocabulary[cls]), trim_offsets=True, add_prefix_space=prefix_space
    )


# ---- characters (speech) ------------------------------------------------------------------------------------------


def _characters(settings: Settings) -> dict[str, Any]:
    """Of speech models trained with CTC: a token is a character, "|" means a space.

    Decoding joins repeats and drops the blank (the pad token), as CTC output needs (Graves et al. 2006).
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    vocabulary = read_vocabulary(settings.folder / "vocab.json")
    assign_added(vocabulary, settings)
    roles = known_roles(settings, TokenizerConvention("characters").usual_roles(_CTC_ROLES), vocabulary)
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
    register_special(backend, settings, roles)
    return {"backend": backend, "special_tokens": roles}
