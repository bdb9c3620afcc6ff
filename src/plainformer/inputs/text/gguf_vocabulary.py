"""The tokenizer inside a GGUF file.

Its metadata holds a vocabulary and names the algorithm ("tokenizer.ggml.model") and, for byte-level BPE, how text is
cut into words ("tokenizer.ggml.pre"), as llama.cpp defines them (docs of the GGUF format, and llama.cpp's vocabulary
tests).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from plainformer.config.checks import reading, require, shown
from plainformer.config.fields import Fields
from plainformer.config.values import is_whole
from plainformer.errors import CheckpointError, a_type, did_you_mean
from plainformer.inputs.text.pre_tokenizers import ADDS_BOS, IGNORE_MERGES, NAMES, PLAIN_TEXT, patterns_for
from plainformer.inputs.text.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    SpmModel,
    pieces_to_text,
    register_pieces,
    to_backend,
    unique,
)
from plainformer.inputs.text.tokenizer_settings import ROLES, library_errors
from plainformer.inputs.text.vocabulary import begin_and_end, cut_to_bytes, surround, wordpiece

if TYPE_CHECKING:
    import tokenizers

_DAMAGED = "the file is damaged: download or convert it again"
_GGML = "tokenizer.ggml."
# The format's names for roles, where they are others; it spells "seperator" so.
_ROLE_KEYS = {
    "unk_token": ("unknown_token",),
    "sep_token": ("seperator_token", "separator_token"),
    "pad_token": ("padding_token",),
}


def read_metadata(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Tokenizer` for a GGUF file's metadata; see `Tokenizer.from_gguf`."""
    with reading("GGUF metadata"):
        return _read(Fields(entries))


def _read(entries: Fields) -> dict[str, Any]:
    require(
        entries.get(_GGML + "model") is not None, f"{_GGML}model is missing", "convert the model with its tokenizer"
    )
    name = entries.text(_GGML + "model")
    builders = {
        "gpt2": _byte_level,
        "gemma4": _byte_level,
        "llama": _sentencepiece,
        "t5": _sentencepiece,
        "bert": _wordpiece,
    }
    if name not in builders:
        raise CheckpointError(
            f"GGUF tokenizer {name!r} is not known", did_you_mean(name, builders) or "use the model's tokenizer.json"
        )
    pieces = _pieces(entries)
    roles = _roles(entries, pieces)
    backend = builders[name](entries, pieces, roles)
    length = entries.get(f"{entries.get('general.architecture')}.context_length")
    return {
        "backend": backend,
        "special_tokens": {role: _bert_token(t) if name == "bert" else t for role, t in roles.items()},
        "max_length": length if is_whole(length, 1) else None,
        "chat_template": _templates(entries.raw),
    }


def _array(entries: Fields, name: str, kind: type | tuple[type, ...], length: int | None = None) -> list[Any]:
    """Return an array whose items are all of a kind, as many as there are tokens; empty where the file has none."""
    found = entries.get(_GGML + name, default=())
    require(isinstance(found, list | tuple), f"{_GGML}{name} is {a_type(found)}, not an array", _DAMAGED)
    wrong = next((i for i, item in enumerate(found) if not isinstance(item, kind)), None)
    if wrong is not None:
        raise CheckpointError(f"{_GGML}{name}[{wrong}] is {a_type(found[wrong])}", _DAMAGED)
    fits = length is None or len(found) in (0, length)
    require(fits, f"{_GGML}{name} has {len(found)} items for {length} tokens", _DAMAGED)
    return list(found)


def _pieces(entries: Fields) -> list[Piece]:
    """Return the vocabulary. Scores and types may be absent (0 and normal)."""
    tokens = _array(entries, "tokens", str)
    require(bool(tokens), f"{_GGML}tokens is missing or empty", "convert the model again")
    scores = _array(entries, "scores", (int, float), len(tokens)) or [0.0] * len(tokens)
    types = _array(entries, "token_type", int, len(tokens)) or [NORMAL] * len(tokens)
    return [Piece(*item) for item in zip(unique(tokens), scores, types, strict=True)]


def _roles(entries: Fields, pieces: list[Piece]) -> dict[str, str]:
    """Return role → token. Converters write ids such as 2**32 - 1 for "none"."""
    found = {}
    for role in ROLES:
        names = _ROLE_KEYS.get(role, (role,))
        index = entries.get(*(f"{_GGML}{name}_id" for name in names), default=-1)
        require(is_whole(index), f"{_GGML}{names[0]}_id={shown(index)} is not a token id", _DAMAGED)
        if 0 <= index < len(pieces):
            found[role] = pieces[index].text
    return found


def _templates(entries: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    found = {
        k.removeprefix(prefix).removeprefix(".") or "default": v for k, v in entries.items() if k.startswith(prefix)
    }
    return {name: text for name, text in found.items() if isinstance(text, str)}


def _ends(entries: Fields, roles: Mapping[str, str], *, bos: bool, eos: bool) -> tuple[str | None, str | None]:
    """Return the tokens that begin and end a text, as the file says, or else as the arguments do."""
    first = roles.get("bos_token") if entries.flag(_GGML + "add_bos_token", default=bos) else None
    return first, roles.get("eos_token") if entries.flag(_GGML + "add_eos_token", default=eos) else None


# ---- byte-level BPE -----------------------------------------------------------------------------------------------


def _byte_level(entries: Fields, pieces: list[Piece], roles: Mapping[str, str]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import normalizers

    gemma = entries.text(_GGML + "model") == "gemma4"
    name = "gemma4" if gemma else entries.text(_GGML + "pre", default="default")
    patterns = patterns_for(name)
    if patterns is None:
        raise CheckpointError(
            f"it cuts words as {name!r} does (tokenizer.ggml.pre), which is not known",
            did_you_mean(name, NAMES) or "use the model's tokenizer.json",
        )
    with library_errors("the GGUF merges do not fit the GGUF tokens", _DAMAGED):
        backend = Backend(_bpe_model(entries, pieces, roles, name))
        if name in PLAIN_TEXT:
            backend.normalizer = normalizers.Replace(" ", SPACE)
            backend.decoder = pieces_to_text()
        else:
            cut_to_bytes(backend, patterns)
    register_pieces(backend, [p for p in pieces if p.type in (CONTROL, UNKNOWN, USER_DEFINED)])
    begin_and_end(backend, *_ends(entries, roles, bos=name in ADDS_BOS, eos=False))
    return backend


def _bpe_model(entries: Fields, pieces: list[Piece], roles: Mapping[str, str], name: str) -> Any:
    from tokenizers.models import BPE

    merges = []
    for number, line in enumerate(_array(entries, "merges", str)):
        cut = line.find(" ", 1)  # a token may begin with a space
        if cut < 0 or cut == len(line) - 1:
            raise CheckpointError(f"{_GGML}merges[{number}] is {line[:60]!r}, not two tokens", _DAMAGED)
        merges.append((line[:cut], line[cut + 1 :]))
    require(bool(merges), f"{_GGML}merges is missing or empty", "convert the model with a newer converter")
    vocabulary = {piece.text: i for i, piece in enumerate(pieces)}
    plain = name in PLAIN_TEXT
    return BPE(
        vocabulary,
        merges,
        ignore_merges=name in IGNORE_MERGES,
        byte_fallback=plain,
        fuse_unk=plain,
        unk_token=roles.get("unk_token") if plain else None,
    )


# ---- SentencePiece ------------------------------------------------------------------------------------------------


def _sentencepiece(entries: Fields, pieces: list[Piece], roles: Mapping[str, str]) -> tokenizers.Tokenizer:
    llama = entries.text(_GGML + "model") == "llama"
    kind: Literal["unigram", "bpe"] = "bpe" if llama else "unigram"
    if not any(piece.type == UNKNOWN for piece in pieces) or kind == "unigram":
        unknown = roles.get("unk_token", "<unk>")  # some converters mark it as a control token
        pieces = [_retyped(piece, piece.text == unknown) for piece in pieces]
    charsmap = _array(entries, "precompiled_charsmap", int)
    bytes_only = all(-128 <= item <= 255 for item in charsmap)
    require(bytes_only, f"{_GGML}precompiled_charsmap does not hold bytes", _DAMAGED)
    model = SpmModel(
        kind=kind,
        pieces=tuple(pieces),
        charsmap=bytes(item & 255 for item in charsmap),
        add_prefix=entries.flag(_GGML + "add_space_prefix", default=True),
        collapse_spaces=entries.flag(_GGML + "remove_extra_whitespaces", default=not llama),
        byte_fallback=any(piece.type == BYTE for piece in pieces),
        where="the GGUF file",
    )
    backend = to_backend(model)
    if not llama:
        register_pieces(backend, [piece for piece in pieces if piece.type == CONTROL])
    begin_and_end(backend, *_ends(entries, roles, bos=llama, eos=not llama))
    return backend


def _retyped(piece: Piece, unknown: bool) -> Piece:
    if unknown:
        return piece._replace(type=UNKNOWN)
    return piece._replace(type=CONTROL) if piece.type == UNKNOWN else piece


# ---- WordPiece ----------------------------------------------------------------------------------------------------


def _bert_token(text: str, type: int = NORMAL) -> str:
    """Converters write "▁word" for a word's beginning and "ing" for "##ing"; bracketed and control tokens stay."""
    if text.startswith(SPACE):
        return text.removeprefix(SPACE)
    bracketed = text.startswith("[") and text.endswith("]")
    return text if bracketed or type in (CONTROL, UNKNOWN) or text in ("<s>", "</s>", "<pad>") else f"##{text}"


def _wordpiece(entries: Fields, pieces: list[Piece], roles: Mapping[str, str]) -> tokenizers.Tokenizer:
    tokens = unique([_bert_token(piece.text, piece.type) for piece in pieces])
    first = _bert_token(roles.get("cls_token") or roles.get("bos_token") or "[CLS]")
    last = _bert_token(roles.get("sep_token") or roles.get("eos_token") or "[SEP]")
    unknown = _bert_token(roles.get("unk_token", "[UNK]"))
    if unknown not in tokens:
        raise CheckpointError(f"the vocabulary has no {unknown!r}", _DAMAGED)
    lowercase = entries.flag(_GGML + "normalizer.lowercase", default=True)
    accents = entries.flag(_GGML + "normalizer.strip_accents", default=lowercase)
    with library_errors("the GGUF vocabulary makes no WordPiece tokenizer", _DAMAGED):
        vocabulary = {token: i for i, token in enumerate(tokens)}
        backend = wordpiece(vocabulary, unknown, lowercase=lowercase, strip_accents=accents)
    special = {_bert_token(token) for token in roles.values()}
    marked = [t for t, p in zip(tokens, pieces, strict=True) if p.type in (CONTROL, UNKNOWN) or t in special]
    register_pieces(backend, [Piece(token, 0.0, CONTROL) for token in marked])
    surround(backend, [first, "$A", last], [first, "$A", last, "$B:1", f"{last}:1"])
    return backend
