"""Everything that is said of documents and their entities, in one value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import tee
from typing import Any

from plainformer.config.values import check_choice, check_flag, check_number, check_texts
from plainformer.entities.documents import Document, Found, Mention
from plainformer.entities.matching import THRESHOLD, Compare, Ranked, rank
from plainformer.entities.phrases import UNITS, Pair, Phrase, cut, pairs, phrase_table
from plainformer.errors import plural

# Texts → the entities of each, in order, or None for one to leave out; a `TokenClassification` task is one.
Finder = Callable[[Iterable[str]], Iterable[Sequence[Mention] | None]]


@dataclass(frozen=True)
class Analysis:
    """Documents with their entities, the phrases that these are, what occurs with what, and the ranking by what is
    required (None if nothing is)."""

    found: tuple[Found, ...]
    phrases: tuple[Phrase, ...]
    pairs: tuple[Pair, ...]
    ranking: tuple[Ranked, ...] | None

    def __repr__(self) -> str:
        counts = {"document": len(self.found), "phrase": len(self.phrases), "pair": len(self.pairs)}
        parts = (plural(count, name) for name, count in counts.items())
        return f"Analysis({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style is its own."""
        from plainformer.entities.report import to_html

        return f"<iframe srcdoc='{escape(to_html(self))}' style='width:100%;height:40em;border:0'></iframe>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; each document with its entities and its text cut by them."""
        documents = [
            {
                "name": one.document.name,
                "entities": [
                    {"label": m.label, "score": m.score, "text": m.text, "start": m.start, "end": m.end}
                    for m in one.mentions
                ],
                "pieces": [asdict(piece) for piece in cut(one.document.text, one.mentions)],
            }
            for one in self.found
        ]
        made: dict[str, Any] = {
            "documents": documents,
            "phrases": [{**asdict(p), "labels": dict(p.labels), "variants": dict(p.variants)} for p in self.phrases],
            "pairs": [asdict(pair) for pair in self.pairs],
        }
        return made if self.ranking is None else {**made, "ranking": [asdict(one) for one in self.ranking]}


def analyse(
    find: Finder,
    documents: Iterable[Document],
    *,
    labels: Sequence[str] = (),
    min_score: float = 0.0,
    within: str = "paragraph",
    required: Sequence[str] = (),
    compare: Compare | None = None,
    threshold: float = THRESHOLD,
    anywhere: bool = False,
    seen: Callable[[Found], None] = lambda found: None,
) -> Analysis:
    """Analyse documents.

    Args:
        find: gives the entities of texts.
        labels: the types that count; default all. min_score: the least score that counts.
        within: what makes phrases occur together: a document, paragraph or line.
        required, compare, threshold, anywhere: see `matching.rank`.
        seen: is told of each document.
    """
    check_number("min_score", min_score, "[0, 1]")
    check_choice("within", within, UNITS)
    check_number("threshold", threshold, "[-1, 1]", fix="give a cosine, from 0 to 1")
    check_flag("anywhere", anywhere)
    for name, phrases in (("labels", labels), ("required", required)):
        check_texts(name, phrases)
    sources, texts = tee(documents)
    answers = iter(find(one.text for one in texts if one.text.strip()))  # nothing is found in nothing
    found = []
    for document in sources:
        mentions = next(answers) if document.text.strip() else ()
        if mentions is None:
            continue
        kept = tuple(m for m in mentions if m.score >= min_score and (not labels or m.label in labels))
        found.append(Found(document, kept))
        seen(found[-1])
    table = phrase_table(found)
    ranking = None
    if required:
        ranking = rank(found, required, compare=compare, threshold=threshold, anywhere=anywhere)
    return Analysis(tuple(found), tuple(table.values()), pairs(found, table, within), ranking)
