"""What became of the rows: how many were read, dropped and cut, for which reason, and where the first of them are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plainformer.errors import plural

PLACES = 3  # examples that are kept for each reason


@dataclass
class Reason:
    """How often something happened, and the places of the first few."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str = "", count: int = 1) -> None:
        """Count it."""
        self.count += count
        if place and len(self.places) < PLACES:
            self.places.append(place)

    def line(self, what: str) -> str:
        """Return "12 dropped (for example train.jsonl line 7, line 9)"."""
        where = f" (for example {', '.join(self.places)})" if self.places else ""
        return f"{self.count:,} {what}{where}"


@dataclass
class Counts:
    """Counters of one set of rows.

    Attributes:
        rows: those read, with those that were dropped.
        passed: what a reader leaves out because it is not a row: blank lines, comments, files of other kinds.
        dropped: rows that cannot be learnt from, by reason.
        cut: examples that were shortened. cut_tokens: what they lost.
    """

    rows: int = 0
    passed: dict[str, Reason] = field(default_factory=dict)
    dropped: dict[str, Reason] = field(default_factory=dict)
    cut: Reason = field(default_factory=Reason)
    cut_tokens: int = 0

    def skip(self, reason: str, place: str = "") -> None:
        """Count what is not a row."""
        self.passed.setdefault(reason, Reason()).add(place)

    def drop(self, reason: str, place: str = "") -> None:
        """Count a row that is left out."""
        self.dropped.setdefault(reason, Reason()).add(place)

    def shorten(self, tokens: int, place: str = "") -> None:
        """Count a row of which `tokens` tokens are left out; none for 0."""
        if tokens:
            self.cut.add(place)
            self.cut_tokens += tokens

    @property
    def all_dropped(self) -> int:
        """How many rows were dropped."""
        return sum(reason.count for reason in self.dropped.values())

    def add(self, other: Counts) -> None:
        """Add the counters of other rows."""
        self.rows += other.rows
        for mine, theirs in ((self.passed, other.passed), (self.dropped, other.dropped)):
            for name, reason in theirs.items():
                _merge(mine.setdefault(name, Reason()), reason)
        _merge(self.cut, other.cut)
        self.cut_tokens += other.cut_tokens

    def lines(self) -> list[str]:
        """Return what was left out, for people; none where nothing was."""
        said = [reason.line(f"passed over: {name}") for name, reason in self.passed.items()]
        said += [reason.line(f"dropped: {name}") for name, reason in self.dropped.items()]
        if self.cut.count:
            said.append(self.cut.line(f"cut, which loses {plural(self.cut_tokens, 'token')}"))
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as JSON holds them."""

        def plain(reasons: Mapping[str, Reason]) -> dict[str, Any]:
            return {name: {"count": reason.count, "places": reason.places} for name, reason in reasons.items()}

        return {
            "rows": self.rows,
            "passed": plain(self.passed),
            "dropped": plain(self.dropped),
            "cut": {"count": self.cut.count, "tokens": self.cut_tokens, "places": self.cut.places},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Counts:
        """Return what `to_dict` gave."""
        passed, dropped = (
            {name: Reason(one["count"], list(one["places"])) for name, one in values[kind].items()}
            for kind in ("passed", "dropped")
        )
        cut = values["cut"]
        return cls(values["rows"], passed, dropped, Reason(cut["count"], list(cut["places"])), cut["tokens"])


def _merge(mine: Reason, theirs: Reason) -> None:
    mine.count += theirs.count
    mine.places = [*mine.places, *theirs.places][:PLACES]
