"""How a row of tags says where entities begin and end: IOB1, IOB2 (Ramshaw & Marcus 1995), IOBES, BILOU (Ratinov & Roth 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plainformer.errors import UsageError, opt

OUTSIDE = "O"
_PREFIXES = frozenset("BIESLU")
_AS_IOBES = {"L": "E", "U": "S"}


@dataclass(frozen=True)
class Scheme:
    """What the prefixes of a scheme may do, in the letters of IOBES.

    Attributes:
        prefixes: those that its tags have. begins: those that begin an entity anywhere.
        splits: those that begin one right after an entity of the same type, and nowhere else.
        ends: those that an entity may end with.
    """

    prefixes: str
    begins: str
    ends: str
    splits: str = ""


SCHEMES = {
    "IOB1": Scheme("IB", begins="I", splits="B", ends="IB"),
    "IOB2": Scheme("IB", begins="B", ends="IB"),
    "IOBES": Scheme("BIES", begins="BS", ends="ES"),
    "BILOU": Scheme("BILU", begins="BS", ends="ES"),
}
_WITHOUT = f"leave {opt('scheme')} out: the tags are then read by their prefixes"
# Any tag but O begins an entity or goes on with one, as in the CoNLL-2000 evaluation script.
_LENIENT = Scheme("BIESLU", begins="BIES", ends="BIES")


def has_scheme(labels: Sequence[str]) -> bool:
    """Whether labels name beginnings and insides, such as B-PER."""
    return any(_split(label)[0] == "B" for label in labels)


def types_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the types of entities that labels name, in their order."""
    return tuple(dict.fromkeys(kind for prefix, kind in map(_split, labels) if prefix != OUTSIDE))


def scheme_of(labels: Sequence[str]) -> str | None:
    """Return the scheme whose prefixes labels have: BILOU with L or U, IOBES with E or S, IOB2 with B; None of others.

    Labels do not tell IOB1 from IOB2, which nearly all data sets of today have.
    """
    prefixes = {label[0] for label in labels if label != OUTSIDE and label[1:2] == "-"}
    if len(prefixes) == 0 or any(label != OUTSIDE and label[1:2] != "-" for label in labels):
        return None
    fits = (name for name in ("IOB2", "IOBES", "BILOU") if prefixes <= set(SCHEMES[name].prefixes))
    found = next(fits, None)
    return found if found and prefixes & set("BSU") else None


def check_scheme(name: str | None, labels: Sequence[str]) -> None:
    """Refuse a scheme that does not have all of the labels."""
    if name is None:
        return
    for label in labels:
        if label != OUTSIDE and not (label[1:2] == "-" and label[0] in SCHEMES[name].prefixes):
            raise UsageError(f"{opt('scheme', name)} has no label {label!r}, which this checkpoint has", _WITHOUT)
    if not any(_split(label)[0] in SCHEMES[name].ends for label in labels):
        raise UsageError(f"no label of this checkpoint ends an entity as {opt('scheme', name)} asks", _WITHOUT)


def read_tags(tags: Sequence[str], scheme: str | None = None) -> list[tuple[int, int, str]]:
    """Return the entities in a row of tags as (start, end, type), end exclusive.

    Without a scheme, every tag but O belongs to an entity: it goes on with the one before it if that has its type and
    has not ended, and neither begins by its prefix. A tag without prefix is an inside. With a scheme, what breaks its
    rules is not an entity.
    """
    rules = SCHEMES[scheme] if scheme is not None else _LENIENT
    found = []
    start: int | None = None
    before, kind_before = OUTSIDE, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = _split(tag)
        same = before != OUTSIDE and kind == kind_before
        if start is not None and not (same and before in "BI" and prefix in "IE"):
            if before in rules.ends:
                found.append((start, place, kind_before))
            start = None
        if start is None and (prefix in rules.begins or (same and prefix in rules.splits)):
            start = place
        before, kind_before = prefix, kind
    return found


def _split(tag: str) -> tuple[str, str]:
    """Return a tag's prefix in the letters of IOBES, and its type."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if tag[1:2] == "-" and tag[0] in _PREFIXES:
        return _AS_IOBES.get(tag[0], tag[0]), tag[2:]
    return "I", tag
