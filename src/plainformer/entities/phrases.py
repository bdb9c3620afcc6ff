"""The phrases that entities are, what occurs together, and texts cut by their entities."""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby

from plainformer.config.values import check_choice
from plainformer.entities.documents import Found, Mention
from plainformer.errors import InputError

# Where a text is cut into what counts as "together".
UNITS = {"document": None, "paragraph": re.compile(r"\n[^\S\n]*\n"), "line": re.compile(r"\n")}
MAX_TOGETHER = 2000  # phrases of one unit: their pairs grow as the square


@dataclass(frozen=True)
class Phrase:
    """Entities that differ in case and white space alone.

    Attributes:
        text: its most frequent spelling. count: how often it occurs. documents: in how many.
        labels: its types, and variants: its spellings, each with how often, the most frequent first.
    """

    text: str
    count: int
    documents: int
    labels: tuple[tuple[str, int], ...]
    variants: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Pair:
    """Two phrases that occur together: in how many units, in how many documents, and how much more often than by chance
    (pointwise mutual information in bits; Church & Hanks 1990)."""

    first: str
    second: str
    count: int
    documents: int
    information: float


@dataclass(frozen=True)
class Piece:
    """A stretch of a text, an entity (with its label) or what is between two: `text` is the text's [start:end]."""

    text: str
    start: int
    end: int
    label: str | None


def normal_form(text: str) -> str:
    """Return what spellings have in common that differ in case, white space and how accents are composed."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


@dataclass
class _Tally:
    count: int = 0
    documents: set[int] = field(default_factory=set)
    labels: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)


def phrase_table(found: Sequence[Found]) -> dict[str, Phrase]:
    """Return the phrases by their normal form, the most frequent first."""
    tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
    for number, one in enumerate(found):
        for mention in one.mentions:
            tally = tallies[normal_form(mention.text)]
            tally.count += 1
            tally.documents.add(number)
            tally.labels[mention.label] += 1
            tally.variants[mention.text] += 1
    ranked = sorted(tallies.items(), key=lambda item: (-item[1].count, -len(item[1].documents), item[0]))
    return {
        key: Phrase(_ranked(t.variants)[0][0], t.count, len(t.documents), _ranked(t.labels), _ranked(t.variants))
        for key, t in ranked
    }


def _ranked(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def pairs(found: Sequence[Found], phrases: dict[str, Phrase], within: str = "paragraph") -> tuple[Pair, ...]:
    """Return phrases that occur in one unit, the most frequent pairs first. `within`: document, paragraph or line."""
    check_choice("within", within, UNITS)
    alone: Counter[str] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    documents: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    units = 0
    for number, one in enumerate(found):
        for keys in _units(one, within):
            units += 1
            if len(keys) > MAX_TOGETHER:
                what = f"{one.document.name}: {len(keys):,} phrases in one {within} make too many pairs"
                raise InputError(what, "count pairs within a smaller unit: paragraph or line")
            alone.update(keys)
            for pair in combinations(sorted(keys), 2):
                together[pair] += 1
                documents[pair].add(number)
    made = [
        Pair(phrases[a].text, phrases[b].text, n, len(documents[a, b]), math.log2(n * units / (alone[a] * alone[b])))
        for (a, b), n in together.items()
    ]
    return tuple(sorted(made, key=lambda p: (-p.count, -p.documents, -p.information, p.first, p.second)))


def _units(one: Found, within: str) -> Iterator[set[str]]:
    """The phrases of each unit that has any; an entity belongs to the unit in which it begins."""
    breaks = UNITS[within]
    ends = [match.end() for match in breaks.finditer(one.document.text)] if breaks is not None else []
    for _, mentions in groupby(one.mentions, key=lambda mention: bisect_right(ends, mention.start)):
        yield {normal_form(mention.text) for mention in mentions}


def cut(text: str, mentions: Iterable[Mention]) -> tuple[Piece, ...]:
    """Return the text in pieces, entities and what is between them; together they are the text."""
    pieces = []
    reached = 0
    for mention in mentions:
        if mention.start > reached:
            pieces.append(Piece(text[reached : mention.start], reached, mention.start, None))
        pieces.append(Piece(text[mention.start : mention.end], mention.start, mention.end, mention.label))
        reached = mention.end
    if reached < len(text):
        pieces.append(Piece(text[reached:], reached, len(text), None))
    return tuple(pieces)
