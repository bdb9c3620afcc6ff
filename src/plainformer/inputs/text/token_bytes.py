"""Which bytes each token writes: what constraints on text, and token healing, need to know about a vocabulary.

A token of a byte-level BPE may be half a character, so the unit is the byte. The bytes are those that
`Tokenizer.decode` gives for the token after other text; the decoder itself is asked wherever it works on whole texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plainformer.errors import UsageError

if TYPE_CHECKING:
    from plainformer.inputs.text.tokenizer import Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Decoders (of the `tokenizers` library) whose text is that of the tokens, one after the other.
_ADDITIVE = frozenset({"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip", "WordPiece"})
_ANCHOR = "a"  # comes before a token that is looked at, so that nothing is stripped as the text's beginning


@dataclass(frozen=True)
class TokenBytes:
    """The vocabulary as bytes.

    Attributes:
        tokens: what each id writes after other text, "▁the" → b" the"; of a special token its name; b"" of an id
            that no token has.
        special_ids: tokens that are not text.
        lead: the space that a first token writes and `decode` takes away ("▁the" alone is "the"), or "".
    """

    tokens: tuple[bytes, ...]
    special_ids: frozenset[int]
    lead: str


def token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """Return the bytes of each token of a tokenizer. Takes about a microsecond for each token: keep the result.

    Raises:
        UsageError: the tokenizer's decoder does not write its tokens one after the other (CTC, BPE with word endings).
    """
    names = [tokenizer.id_to_token(i) for i in range(_size(tokenizer))]
    spell = _speller(tokenizer)
    special = tokenizer.special_ids
    tokens = tuple(
        b"" if name is None else name.encode() if i in special else spell(name) for i, name in enumerate(names)
    )
    first = next((i for i, text in enumerate(tokens) if text[:1] == b" " and len(text) > 1 and i not in special), None)
    name = names[first] if first is not None else None
    lead = " " if name is not None and first is not None and _joined(tokenizer, [name]) == tokens[first][1:] else ""
    return TokenBytes(tokens, special, lead)


def _size(tokenizer: Tokenizer) -> int:
    ids = tokenizer.backend.get_vocab(with_added_tokens=True).values()
    return 1 + max([tokenizer.vocab_size - 1, *ids, *tokenizer.special_ids])


def _speller(tokenizer: Tokenizer) -> Callable[[str], bytes]:
    """Return the function from a token's name to its bytes."""
    decoder = tokenizer.backend.decoder
    kinds = set(_kinds(json.loads(decoder.__getstate__()))) if decoder is not None else set()
    if unknown := sorted(kinds - _ADDITIVE):
        raise UsageError(
            f"the tokenizer's decoder ({', '.join(unknown)}) does not write tokens one after the other",
            "constraints on text and token healing need a byte-level, SentencePiece or WordPiece tokenizer",
        )
    if "ByteLevel" in kinds:
        return _from_byte_level
    before = _joined(tokenizer, [_ANCHOR])

    def spell(name: str) -> bytes:
        if "ByteFallback" in kinds and (byte := _BYTE_PIECE.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        return _joined(tokenizer, [_ANCHOR, name])[len(before) :]

    return spell


def _kinds(decoder: Mapping[str, Any]) -> Iterator[str]:
    yield decoder["type"]
    for part in decoder.get("decoders", ()):
        yield from _kinds(part)


def _joined(tokenizer: Tokenizer, names: list[str]) -> bytes:
    decoder = tokenizer.backend.decoder
    return (decoder.decode(names) if decoder is not None else " ".join(names)).encode()


def _byte_of_character() -> dict[str, int]:
    """GPT-2's disguise of bytes as printable characters (Radford et al. 2019, encoder.py `bytes_to_unicode`)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {**{chr(byte): byte for byte in shown}, **{chr(256 + n): byte for n, byte in enumerate(hidden)}}


_BYTE_OF_CHARACTER = _byte_of_character()


def _from_byte_level(name: str) -> bytes:
    """As the ByteLevel decoder: an added token whose name is not in disguise is its own text."""
    known = [_BYTE_OF_CHARACTER.get(character) for character in name]
    return name.encode() if None in known else bytes(byte for byte in known if byte is not None)
