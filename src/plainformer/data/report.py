"""What is to be known of data before training: how many rows, which labels, how long, what is cut, what is on two sides.

`DataReport` is made of what was gathered elsewhere (`survey`, `duplicates`, `alike`, a store's counters and lengths), reads no
file, and is written by `plainformer data`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.data.alike import Near
from plainformer.data.counts import Counts
from plainformer.data.duplicates import Conflicts, Overlap, WindowShare, conflicts, inside, overlaps
from plainformer.data.survey import Survey
from plainformer.errors import plural

RARE_ROWS, RARE_SHARE = 10, 0.01
MOST_LABELS = 1000  # more are texts or numbers, not labels
PERCENTILES = (0, 5, 50, 95, 99, 100)


@dataclass(frozen=True)
class Lengths:
    """How long examples are, in tokens: percentiles, their sum, how many are longer than `limit` (None: no limit)."""

    percentiles: Mapping[int, int]
    total: int
    longer: int = 0
    limit: int | None = None

    @classmethod
    def of(cls, lengths: npt.NDArray[Any], limit: int | None = None) -> Lengths | None:
        """Return them for examples' lengths, (N,); None for no examples."""
        if not len(lengths):
            return None
        values = np.percentile(lengths, PERCENTILES, method="lower")
        longer = 0 if limit is None else int((lengths > limit).sum())
        found = {p: int(value) for p, value in zip(PERCENTILES, values, strict=True)}
        return cls(found, int(lengths.sum(dtype=np.int64)), longer, limit)

    def line(self) -> str:
        """Return it as a sentence."""
        names = {0: "shortest", 50: "median", 100: "longest"}
        said = ", ".join(f"{names.get(p, f'{p} %')} {n:,}" for p, n in self.percentiles.items())
        longer = f"; {self.longer:,} longer than {self.limit:,}" if self.limit is not None else ""
        return f"tokens: {said}; {self.total:,} in all{longer}"


@dataclass(frozen=True)
class LabelRow:
    """A label's line in the table: how often it is in each part; `rare` in train: under 10, or under 1 %."""

    label: str
    counts: Mapping[str, int]
    rare: bool


@dataclass(frozen=True)
class Part:
    """One part: rows, those that repeat an earlier one, what was left out, how long its examples are."""

    name: str
    rows: int
    repeats: int
    counts: Counts = field(default_factory=Counts)
    lengths: Lengths | None = None

    def lines(self) -> list[str]:
        """Return it for people."""
        said = [f"{self.name}: {plural(self.rows, 'row')}"]
        if self.repeats:
            said.append(f"  {self.repeats:,} repeat an earlier one")
        if self.lengths is not None:
            said.append(f"  {self.lengths.line()}")
        return said + [f"  {line}" for line in self.counts.lines()]


@dataclass(frozen=True)
class DataReport:
    """All that is to be known.

    Attributes:
        parts: train, validation, test, as far as there are any. labels: the table of labels, commonest first; empty
            where targets are not labels. unseen: labels of other parts that train does not have.
        overlaps: copies across parts. conflicts: equal inputs with different targets. near: nearly copies; None where
            they were not looked for. windows: for text without rows, how much of validation is in train.
        split: what `splits.json` says; None where parts were given.
    """

    parts: tuple[Part, ...]
    labels: tuple[LabelRow, ...] = ()
    unseen: tuple[str, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    conflicts: Conflicts = field(default_factory=Conflicts)
    near: Near | None = None
    windows: WindowShare | None = None
    split: Mapping[str, Any] | None = None

    @property
    def rare(self) -> tuple[LabelRow, ...]:
        """The rare labels."""
        return tuple(row for row in self.labels if row.rare)

    @property
    def leaks(self) -> list[str]:
        """What train shares with what it is measured by: as sentences, the worst first; none where there is nothing."""
        said = [one.line() for one in self.overlaps]
        if self.windows is not None and self.windows.found:
            said.append(
                f"{100 * self.windows.share:.1f} % of validation's windows of {self.windows.size} tokens are in train"
            )
        if self.near is not None and self.near.across:
            said.append(self.near.lines()[0])
        return said

    def lines(self) -> list[str]:
        """Return the report for people: parts, labels, what is wrong."""
        said = [line for part in self.parts for line in part.lines()]
        if self.split is not None:
            group = f" by {self.split['group']}" if self.split.get("group") else ""
            fold = f"; fold {self.split['fold']} of {self.split['folds']} is held out" if "fold" in self.split else ""
            said.append(f"split: {self.split['by']}{group}, seed {self.split['seed']}{fold}")
        said += self._label_lines()
        if self.conflicts.inputs:
            shown = "; ".join(self.conflicts.examples)
            inputs = plural(self.conflicts.inputs, "input has", "inputs have")
            said.append(f"{inputs} several targets, {plural(self.conflicts.rows, 'row')} in all: {shown}")
        leaks = self.leaks
        said += [f"leak: {line}" for line in leaks]
        if len(self.parts) > 1 and not leaks:
            said.append("no row of train was found in another part")
        if self.near is not None:
            said += [line for line in self.near.lines() if line not in leaks]
        return said

    def _label_lines(self) -> list[str]:
        names = [part.name for part in self.parts]
        said = [
            f"label {row.label!r}: "
            + ", ".join(f"{row.counts.get(name, 0):,} {name}" for name in names)
            + (" (rare)" if row.rare else "")
            for row in self.labels
        ]
        if self.unseen:
            shown = ", ".join(map(repr, self.unseen[:5]))
            said.append(f"{plural(len(self.unseen), 'label')} of other parts, not in train: {shown}")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        parts = []
        for part in self.parts:
            lengths = None if part.lengths is None else asdict(part.lengths)
            said = {"name": part.name, "rows": part.rows, "repeats": part.repeats}
            parts.append({**said, "counts": part.counts.to_dict(), "lengths": lengths})
        windows = self.windows
        return {
            "parts": parts,
            "labels": [asdict(row) for row in self.labels],
            "unseen": list(self.unseen),
            "overlaps": [asdict(one) for one in self.overlaps],
            "conflicts": asdict(self.conflicts),
            "near": None if self.near is None else asdict(self.near),
            "windows": None
            if windows is None
            else {"size": windows.size, "windows": windows.windows, "found": windows.found},
            "split": None if self.split is None else dict(self.split),
        }


def report(
    surveys: Sequence[Survey],
    *,
    counts: Mapping[str, Counts] | None = None,
    lengths: Mapping[str, npt.NDArray[Any]] | None = None,
    max_length: int | None = None,
    near: Near | None = None,
    windows: WindowShare | None = None,
    split: Mapping[str, Any] | None = None,
) -> DataReport:
    """Return the report of parts that were surveyed, train first.

    Args:
        surveys: one of each part. counts, lengths: by the part's name: what was left out, tokens of each example.
        max_length: `data.max_length`. near, windows, split: see `DataReport`.
    """
    counts, lengths = counts or {}, lengths or {}
    parts = []
    for one in surveys:
        long = Lengths.of(lengths[one.name], max_length) if one.name in lengths else None
        parts.append(Part(one.name, len(one), inside(one), counts.get(one.name, Counts()), long))
    labels, unseen = _label_table(surveys)
    return DataReport(
        tuple(parts), labels, unseen, tuple(overlaps(list(surveys))), conflicts(list(surveys)), near, windows, split
    )


def _label_table(surveys: Sequence[Survey]) -> tuple[tuple[LabelRow, ...], tuple[str, ...]]:
    tables = {one.name: one.label_counts() for one in surveys}
    names = {label for table in tables.values() for label in table}
    total = sum(sum(table.values()) for table in tables.values())
    # Targets that hardly repeat are texts or numbers.
    if not names or len(names) > MOST_LABELS or 2 * len(names) > max(total, 2 * RARE_ROWS):
        return (), ()
    train = tables[surveys[0].name]
    enough = max(RARE_ROWS, RARE_SHARE * sum(train.values()))
    ordered = sorted(names, key=lambda label: (-train[label], label))
    rows = tuple(
        LabelRow(label, {name: table[label] for name, table in tables.items()}, train[label] < enough)
        for label in ordered
    )
    return rows, tuple(sorted(label for label in names if not train[label]))
