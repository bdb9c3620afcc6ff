"""The tokenizer inside a GGUF file.

Its metadata holds a vocabulary and names the algorithm ("tokenizer.ggml.model") and, for byte-level BPE, how text is
cut into words ("tokenizer.ggml.pre"), as llama.cpp defines them (docs of the GGUF format, and llama.cpp's vocabulary
tests).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from plainformer.errors import CheckpointError, did_you_mean
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
    register_pieces,
    to_backend,
    unique,
)
from plainformer.inputs.text.tokenizer_settings import library_errors
from plainformer.inputs.text.vocabulary import surround

if TYPE_CHECKING:
    import tokenizers

_DAMAGED = "the file is damaged: download or convert it again"
_ROLE_KEYS = {  # "seperator" is how the format spells it
    "bos_token": ("bos_token_id",),
    "eos_token": ("eos_token_id",),
    "unk_token": ("unknown_token_id",),
    "sep_token": ("seperator_token_id", "separator_token_id"),
    "pad_token": ("padding_token_id",),
    "cls_token": ("cls_token_id",),
    "mask_token": ("mask_token_id",),
}


class _Metadata:
    """Checked access to the entries "tokenizer.ggml.*"."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self.entries = entries

    def value(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        key = f"tokenizer.ggml.{name}"
        found = self.entries.get(key, default)
        wrong_bool = isinstance(found, bool) and kind is int
        if found is not default and (not isinstance(found, kind) or wrong_bool):
            raise CheckpointError(f"GGUF entry {key} is a {type(found).__name__}", _DAMAGED)
        return found

    def array(self, name: str, kind: type | tuple[type, ...], length: int | None = None) -> list[Any] | None:
        key = f"tokenizer.ggml.{name}"
        found = self.entries.get(key)
        if found is None:
            return None
        if isinstance(found, (str, bytes)) or not isinstance(found, (list, tuple)):
            raise CheckpointError(f"GGUF entry {key} is a {type(found).__name__}, not an array", _DAMAGED)
        wrong = next((i for i, item in enumerate(found) if not isinstance(item, kind)), None)
        if wrong is not None:
            raise CheckpointError(f"GGUF entry {key}[{wrong}] is a {type(found[wrong]).__name__}", _DAMAGED)
        if length is not None and len(found) != length:
            raise CheckpointError(f"GGUF entry {key} has {len(found)} items for {length} tokens", _DAMAGED)
        return list(found)

    def pieces(self) -> list[Piece]:
        """The vocabulary. Scores and types may be absent (0 and normal)."""
        tokens = self.array("tokens", str)
        if not tokens:
            raise CheckpointError("GGUF entry tokenizer.ggml.tokens is missing or empty", "convert the model again")
        scores = self.array("scores", (int, float), len(tokens)) or [0.0] * len(tokens)
        types = self.array("token_type", int, len(tokens)) or [NORMAL] * len(tokens)
        return [Piece(*item) for item in zip(unique(tokens), scores, types, strict=True)]

    def roles(self, pieces: list[Piece]) -> dict[str, str]:
        found = {}
        for role, names in _ROLE_KEYS.items():
            for name in names:
                index = self.value(name, int)
                if index is None or not 0 <= index < len(pieces):
                    continue  # converters write ids such as 2**32 - 1 for "none"
                found[role] = pieces[index].text
        return found


def read_metadata(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Tokenizer` for a GGUF file's metadata; see `Tokenizer.from_gguf`."""
    metadata = _Metadata(entries)
    name = metadata.value("model", str)
    if name is None:
        raise CheckpointError("the GGUF metadata has no tokenizer.ggml.model", "convert the model with its tokenizer")
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
    pieces = metadata.pieces()
    roles = metadata.roles(pieces)
    backend = builders[name](metadata, pieces, roles)
    architecture = entries.get("general.architecture")
    length = entries.get(f"{architecture}.context_length")
    return {
        "backend": backend,
        "special_tokens": {role: _surface(name, token, pieces) for role, token in roles.items()},
        "max_length": length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None,
        "chat_template": _templates(entries),
    }


def _surface(name: str, token: str, pieces: list[Piece]) -> str:
    return _bert_token(Piece(token, 0.0)) if name == "bert" else token


def _templates(entries: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    found = {
        k.removeprefix(prefix).removeprefix(".") or "default": v for k, v in entries.items() if k.startswith(prefix)
    }
    return {name: text for name, text in found.items() if isinstance(text, str)}


def _begin_and_end(
    backend: tokenizers.Tokenizer, metadata: _Metadata, roles: Mapping[str, str], *, bos: bool, eos: bool
) -> None:
    """Put bos and eos around a text, as the file says, or else as the arguments do."""
    first = roles.get("bos_token") if metadata.value("add_bos_token", bool, bos) else None
    last = roles.get("eos_token") if metadata.value("add_eos_token", bool, eos) else None
    if first or last:
        single = [*([first] if first else []), "$A", *([last] if last else [])]
        surround(backend, single, [*single, *(item.replace("$A", "$B") + ":1" for item in single)])


# ---- byte-level BPE -----------------------------------------------------------------------------------------------


def _byte_level(metadata: _Metadata, pieces: list[Piece], roles: Mapping[str, str]) -> tokenizers.Tokenizer:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    name = "gemma4" if metadata.value("model", str) == "gemma4" else metadata.value("pre", str, "default")
    patterns = patterns_for(name)
    if patterns is None:
        raise CheckpointError(
            f"the GGUF file cuts words as {name!r} does (tokenizer.ggml.pre), which is not known",
            did_you_mean(name, NAMES) or "use the model's tokenizer.json",
        )
    with library_errors("the GGUF merges do not fit the GGUF tokens", _DAMAGED):
        backend = Backend(_bpe_model(metadata, pieces, roles, name))
        if name in PLAIN_TEXT:
            backend.normalizer = normalizers.Replace(" ", SPACE)
            backend.decoder = decoders.Sequence(
                [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
            )
        else:
            splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
            to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
            backend.decoder = decoders.ByteLevel()
    register_pieces(backend, [p for p in pieces if p.type in (CONTROL, UNKNOWN, USER_DEFINED)])
    _begin_and_end(backend, metadata, roles, bos=name in ADDS_BOS, eos=False)
    return backend


def _bpe_model(metadata: _Metadata, pieces: list[Piece], roles: Mapping[str, str], name: str) -> Any:
    from tokenizers.models import BPE

    merges = []
    for number, line in enumerate(metadata.array("merges", str) or []):
        cut = line.find(" ", 1)  # a token may begin with a space
        if cut < 0 or cut == len(line) - 1:
            raise CheckpointError(
                f"GGUF entry tokenizer.ggml.merges[{number}] is {line[:60]!r}, not two tokens", _DAMAGED
            )
        merges.append((line[:cut], line[cut + 1 :]))
    if not merges:
        raise CheckpointError("the GGUF file has no tokenizer.ggml.merges", "convert the model with a newer converter")
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


def _sentencepiece(metadata: _Metadata, pieces: list[Piece], roles: Mapping[str, str]) -> tokenizers.Tokenizer:
    llama = metadata.value("model", str) == "llama"
    kind: Literal["unigram", "bpe"] = "bpe" if llama else "unigram"
    if not any(piece.type == UNKNOWN for piece in pieces) or kind == "unigram":
        unknown = roles.get("unk_token", "<unk>")  # some converters mark it as a control token
        pieces = [_retyped(piece, piece.text == unknown) for piece in pieces]
    charsmap = metadata.array("precompiled_charsmap", int) or []
    if any(not -128 <= item <= 255 for item in charsmap):
        raise CheckpointError("GGUF entry tokenizer.ggml.precompiled_charsmap does not hold bytes", _DAMAGED)
    model = SpmModel(
        kind=kind,
        pieces=tuple(pieces),
        charsmap=bytes(item & 255 for item in charsmap),
        add_prefix=metadata.value("add_space_prefix", bool, True),
        collapse_spaces=metadata.value("remove_extra_whitespaces", bool, not llama),
        byte_fallback=any(piece.type == BYTE for piece in pieces),
        where="the GGUF file",
    )
    backend = to_backend(model)
    if not llama:
        register_pieces(backend, [piece for piece in pieces if piece.type == CONTROL])
    _begin_and_end(backend, metadata, roles, bos=llama, eos=not llama)
    return backend


def _retyped(piece: Piece, unknown: bool) -> Piece:
    if unknown:
        return piece._replace(type=UNKNOWN)
    return piece._replace(type=CONTROL) if piece.type == UNKNOWN else piece


# ---- WordPiece ----------------------------------------------------------------------------------------------------


def _bert_token(piece: Piece) -> str:
    """Converters write "▁word" for a word's beginning and "ing" for "##ing"; bracketed and control tokens stay."""
    text = piece.text
    if text.startswith(SPACE):
        return text.removeprefix(SPACE)
    bracketed = text.startswith("[") and text.endswith("]")
    return text if bracketed or piece.type in (CONTROL, UNKNOWN) or text in ("<s>", "</s>", "<pad>") else f"##{text}"


def _wordpiece(metadata: _Metadata, pieces: list[Piece], roles: Mapping[str, str]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    tokens = unique([_bert_token(piece) for piece in pieces])
    first = _bert_token(Piece(roles.get("cls_token") or roles.get("bos_token") or "[CLS]", 0.0))
    last = _bert_token(Piece(roles.get("sep_token") or roles.get("eos_token") or "[SEP]", 0.0))
    unknown = _bert_token(Piece(roles.get("unk_token", "[UNK]"), 0.0))
    if unknown not in tokens:
        raise CheckpointError(f"the GGUF vocabulary has no {unknown!r}", _DAMAGED)
    with library_errors("the GGUF vocabulary makes no WordPiece tokenizer", _DAMAGED):
        backend = Backend(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token=unknown))
        lowercase = metadata.value("normalizer.lowercase", bool, True)
        backend.normalizer = normalizers.BertNormalizer(
            lowercase=lowercase, strip_accents=metadata.value("normalizer.strip_accents", bool, lowercase)
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix="##")
    special = {_bert_token(Piece(token, 0.0)) for token in roles.values()}
    marked = [t for t, p in zip(tokens, pieces, strict=True) if p.type in (CONTROL, UNKNOWN) or t in special]
    register_pieces(backend, [Piece(token, 0.0, CONTROL) for token in marked])
    surround(backend, [first, "$A", last], [first, "$A", last, "$B:1", f"{last}:1"])
    return backend
