"""Tokens of a transcript to words: split at spaces, punctuation with the word that it belongs to.

As in openai/whisper (`tokenizer.py`, `timing.py`) and transformers; a word is a list of places among the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SPACELESS = frozenset({"zh", "ja", "th", "lo", "my", "yue"})  # languages whose words a space does not part
MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
OPENING = "\"'“¡¿([{-"
CLOSING = "\"'.。,，!！?？:：”)]}、"
UNFINISHED = "\ufffd"  # what a part of a character's bytes is decoded to


@dataclass
class Word:
    """A text and the places of its tokens."""

    text: str
    places: list[int]

    def take(self, other: Word, *, before: bool) -> None:
        """Join another to this one; nothing is left of it."""
        pair = (other, self) if before else (self, other)
        self.text, self.places = "".join(w.text for w in pair), [p for w in pair for p in w.places]
        other.text, other.places = "", []


def split_words(ids: Sequence[int], decode: Callable[[Sequence[int]], str], language: str | None) -> list[Word]:
    """Return the words of a text, in order; in a language without spaces its characters."""
    found: list[Word] = []
    for piece in _characters(ids, decode):
        begins = piece.text.startswith(" ") or piece.text.strip() in MARKS or language in SPACELESS
        if begins or not found:
            found.append(piece)
        else:
            found[-1].take(piece, before=False)
    _join_opening(found)
    _join_closing(found)
    return [word for word in found if word.text]


def _characters(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[Word]:
    """Return the shortest runs of tokens that are whole characters: a token may be a part of one."""
    whole, found, start, length = decode(ids), list[Word](), 0, 0
    for stop in range(1, len(ids) + 1):
        text = decode(ids[start:stop])
        place = length + text.find(UNFINISHED)
        # Either no character is cut, or the text has this very sign there, which no more tokens will change.
        if UNFINISHED not in text or place >= len(whole) or whole[place] == UNFINISHED:
            found.append(Word(text, list(range(start, stop))))
            start, length = stop, length + len(text)
    return found


def _join_opening(words: list[Word]) -> None:
    """Join an opening mark to the word after it."""
    following = len(words) - 1
    for place in range(len(words) - 2, -1, -1):
        word = words[place]
        if word.text.startswith(" ") and word.text.strip() in OPENING:
            words[following].take(word, before=True)
        else:
            following = place


def _join_closing(words: list[Word]) -> None:
    """Join a closing mark to the word before it."""
    before = 0
    for place in range(1, len(words)):
        if not words[before].text.endswith(" ") and words[place].text in CLOSING:
            words[before].take(words[place], before=False)
        else:
            before = place
