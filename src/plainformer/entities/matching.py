"""Which documents have what is required, and their ranking (the résumé filter)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from plainformer.config.values import check_number, read_text
from plainformer.entities.documents import Found
from plainformer.entities.phrases import normal_form
from plainformer.errors import InputError

# The cosine of each phrase of the first list with each of the second.
Compare = Callable[[Sequence[str], Sequence[str]], Sequence[Sequence[float]]]
THRESHOLD = 0.8


@dataclass(frozen=True)
class Match:
    """How a document has one required phrase.

    Attributes:
        required: the phrase as the list has it.
        kind: "exact" (an entity spelt so), "normalised" (but for case and white space), "similar" (an entity that means
            nearly the same), "text" (the words are in the text, where the model saw no entity), or "missing".
        text, start, end: where, first; `text` is the document's [start:end]. None if missing.
        score: 1, of "similar" the cosine, of "missing" 0.
    """

    required: str
    kind: str
    text: str | None
    start: int | None
    end: int | None
    score: float


@dataclass(frozen=True)
class Ranked:
    """A document's place: `found` of the required phrases, `score`, the sum of their scores, and each of them."""

    place: int
    name: str
    found: int
    required: int
    score: float
    matches: tuple[Match, ...]


def read_requirements(path: str | Path) -> tuple[str, ...]:
    """Return required phrases, one per line, each once; empty lines and those that begin with "# " do not count."""
    phrases: dict[str, str] = {}
    for line in read_text(path, "the list").splitlines():
        phrase = line.strip()
        if phrase and phrase != "#" and not phrase.startswith("# "):
            phrases.setdefault(normal_form(phrase), phrase)
    if not phrases:
        raise InputError(f"the list {str(path)!r} names nothing", "write one required phrase per line")
    return tuple(phrases.values())


def rank(
    found: Sequence[Found],
    required: Sequence[str],
    *,
    compare: Compare | None = None,
    threshold: float = THRESHOLD,
    anywhere: bool = False,
) -> tuple[Ranked, ...]:
    """Return documents, those with most of what is required first; then by the sum of scores, then in their own order.

    Args:
        compare: also takes for a match the likeliest entity whose cosine is at least `threshold`.
        anywhere: also takes words of the text outside entities.
    """
    check_number("threshold", threshold, "[-1, 1]", fix="give a cosine, from 0 to 1")
    near = _near(found, required, compare, threshold) if compare is not None else {}
    rows = []
    for number, one in enumerate(found):
        matches = tuple(_match(one, phrase, near, anywhere) for phrase in required)
        rows.append((number, sum(m.kind != "missing" for m in matches), sum(m.score for m in matches), matches))
    rows.sort(key=lambda row: (-row[1], -row[2], row[0]))
    return tuple(
        Ranked(place, found[number].document.name, count, len(required), score, matches)
        for place, (number, count, score, matches) in enumerate(rows, 1)
    )


def _match(one: Found, phrase: str, near: dict[tuple[str, str], float], anywhere: bool) -> Match:
    wanted = normal_form(phrase)
    by_kind: dict[str, tuple[float, str, int, int]] = {}
    for mention in one.mentions:
        key = normal_form(mention.text)
        if mention.text == phrase:
            kind, score = "exact", 1.0
        elif key == wanted:
            kind, score = "normalised", 1.0
        elif (wanted, key) in near:
            kind, score = "similar", near[wanted, key]
        else:
            continue
        if kind not in by_kind or score > by_kind[kind][0]:
            by_kind[kind] = (score, mention.text, mention.start, mention.end)
    if anywhere and not by_kind.keys() & {"exact", "normalised"}:
        for start, end in islice(occurrences(one.document.text, phrase), 1):
            by_kind["text"] = (1.0, one.document.text[start:end], start, end)
    for kind in ("exact", "normalised", "text", "similar"):
        if kind in by_kind:
            score, text, start, end = by_kind[kind]
            return Match(phrase, kind, text, start, end, score)
    return Match(phrase, "missing", None, None, None, 0.0)


def occurrences(text: str, phrase: str) -> Iterator[tuple[int, int]]:
    """Yield where a phrase is in a text as whole words, whatever its case, white space and composition of accents."""
    forms = dict.fromkeys(unicodedata.normalize(form, phrase.strip()) for form in ("NFC", "NFD"))
    either = "|".join(r"\s+".join(map(re.escape, form.split())) for form in forms)
    # Not \b: "C++" ends with no letter. A letter or digit next to it would be part of another word.
    for match in re.finditer(rf"(?<!\w)(?:{either})(?![\w+#])", text, re.IGNORECASE):
        yield match.span()


def _near(
    found: Sequence[Found], required: Sequence[str], compare: Compare, threshold: float
) -> dict[tuple[str, str], float]:
    """(required, entity) in normal form → their cosine, where it is high enough."""
    spellings = {normal_form(mention.text): mention.text for one in found for mention in one.mentions}
    if not spellings or not required:
        return {}
    rows = compare(list(required), list(spellings.values()))
    return {
        (normal_form(phrase), key): float(cosine)
        for phrase, row in zip(required, rows, strict=True)
        for key, cosine in zip(spellings, row, strict=True)
        if cosine >= threshold
    }
