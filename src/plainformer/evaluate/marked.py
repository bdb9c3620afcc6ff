"""What differs between an answer and what is right, as pieces of text with a kind each: for pages and terminals.

Kinds: "" (plain), "right" (as it should be), "missed" (right, and not marked in the answer), "left-out" (text that the answer
lacks), "extra" (in the answer alone), "confused" (something else is right there).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

OUTSIDE = "O"
_WORDS = re.compile(r"\s+|[^\s]+")
MOST_WORDS = 2000  # difflib's time grows with their square
_LEGEND = {
    "right": "as it should be",
    "missed": "missed",
    "left-out": "left out",
    "extra": "in the answer alone",
    "confused": "something else is right",
}


@dataclass(frozen=True)
class Piece:
    """A piece of text. `note`: what is said of it beside."""

    text: str
    kind: str = ""
    note: str = ""


def legend(kinds: set[str]) -> list[tuple[str, str]]:
    """Return what the kinds that occur mean."""
    return [(kind, said) for kind, said in _LEGEND.items() if kind in kinds]


def word_diff(right: str, answer: str) -> list[Piece]:
    """Return an answer with what it lacks of the right text, and what it has besides, word by word."""
    old, new = _WORDS.findall(right), _WORDS.findall(answer)
    if len(old) > MOST_WORDS or len(new) > MOST_WORDS:
        return [Piece(answer)]
    pieces = []
    for how, start, end, first, last in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        lacks, has = "".join(old[start:end]), "".join(new[first:last])
        if how == "equal":
            pieces.append(Piece(has))
            continue
        pieces += [Piece(lacks, "left-out")] if lacks.strip() else []
        pieces += [Piece(has, "extra" if has.strip() else "")] if has else []
    return pieces


def tagged(words: Sequence[str], right: Sequence[str], given: Sequence[str]) -> list[Piece]:
    """Return words marked where a tag is, or should be; words without either are plain.

    Sequences of other lengths: words were cut for people, or a tag is missing; what has no word is left out.
    """
    pieces: list[Piece] = []
    for word, own, other in zip(words, right, given, strict=False):
        if own == other == OUTSIDE:
            pieces.append(Piece(word))
        elif own == other:
            pieces.append(Piece(word, "right", own))
        elif other == OUTSIDE:
            pieces.append(Piece(word, "missed", own))
        elif own == OUTSIDE:
            pieces.append(Piece(word, "extra", other))
        else:
            pieces.append(Piece(word, "confused", f"{other}, right: {own}"))
    return [part for piece in pieces for part in (piece, Piece(" "))][:-1]


def spans(context: str, right: Sequence[str], answer: str) -> list[Piece]:
    """Return a context with the first right answer in it, and the one given, marked; where they overlap, "right"."""
    kinds = [""] * len(context)
    for text, kind in ((next((one for one in right if one and one in context), ""), "missed"), (answer, "extra")):
        start = context.find(text) if text else -1
        for place in range(start, start + len(text)) if start >= 0 else ():
            kinds[place] = "right" if kinds[place] else kind
    return list(_runs(context, kinds))


def _runs(text: str, kinds: Sequence[str]) -> Iterator[Piece]:
    start = 0
    for place in range(1, len(text) + 1):
        if place == len(text) or kinds[place] != kinds[start]:
            yield Piece(text[start:place], kinds[start])
            start = place
