"""Which tokens make one word, in any script (Unicode Standard Annex 29, default word boundaries)."""

from __future__ import annotations

from collections.abc import Sequence

import regex

_BOUNDARY = regex.compile(r"\b", regex.WORD | regex.VERSION1)


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without the white space at its ends."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def characters(spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return tokens (ranks in `spans`) in groups that share no character: the bytes of an emoji are several tokens."""
    groups: list[list[int]] = []
    reached = 0
    for rank, (start, end) in enumerate(spans):
        if groups and start < reached:
            groups[-1].append(rank)
        else:
            groups.append([rank])
        reached = max(reached, end)
    return groups


def words(text: str, spans: Sequence[tuple[int, int]], word_ids: Sequence[int | None]) -> list[list[int]]:
    """Return tokens in groups that are words of `text`.

    A word begins where Unicode has a boundary, or where the tokenizer itself cut the text before it looked for tokens
    (BERT: at every punctuation mark), unless both its neighbours there are letters or digits: some cut numbers up.
    A token across several words makes them one.
    """
    boundaries: set[int] | None = None
    groups: list[list[int]] = []
    for own in characters(spans):
        first, start = own[0], spans[own[0]][0]
        if groups:
            before = groups[-1][-1]
            begins = word_ids[first] != word_ids[before] and not text[start - 1 : start + 1].isalnum()
            if not begins:
                if boundaries is None:
                    boundaries = {match.start() for match in _BOUNDARY.finditer(text)}
                begins = start in boundaries
            if not begins:
                groups[-1].extend(own)
                continue
        groups.append(own)
    return groups
