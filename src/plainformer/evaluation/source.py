"""The rows of an evaluation: read once to know which they are, and again as they are answered; none is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from plainformer.config.training import SourceConfig
from plainformer.data.columns import Columns, mapped, value_of
from plainformer.data.counts import Counts
from plainformer.data.read import Rows, read
from plainformer.data.rows import DataRow
from plainformer.data.survey import PARTS, hash_of, plain
from plainformer.errors import InputError, UsageError, did_you_mean, opt

if TYPE_CHECKING:
    from plainformer.data.sides import Side
    from plainformer.evaluation.exams.base import Exam

_ALL = (1 << 128) - 1


@dataclass(frozen=True)
class Unit:
    """What intervals are drawn over.

    Attributes:
        said: what people call it. column: of the data, None where each row is one; part: of the column's texts.
    """

    said: str
    column: str | None = None
    part: str = ""

    @classmethod
    def parse(cls, text: str) -> Unit:
        """Return the unit that a caller names: "speaker", "file:folder". Raises UsageError for an unknown part."""
        column, _, part = text.rpartition(":") if ":" in text else (text, "", "")
        if part and part not in PARTS:
            hint = did_you_mean(part, PARTS) or f"known: {', '.join(PARTS)}"
            raise UsageError(f"{opt('unit', text)} asks for the part {part!r} of a column", hint)
        return cls(column if not part else f"{column}'s {part.replace('_', ' ')}", column, part)

    def of(self, row: DataRow) -> bytes | None:
        """Return the hash of a row's unit; None where the row is one. Raises UsageError."""
        if self.column is None:
            return None
        value = value_of(row, self.column)
        if value is None:
            if self.column in row:
                what = f"{row.place} has no value for {self.column!r}, which {opt('unit', self.column)} names"
                raise UsageError(what, "give each row one, or name another column")
            what = f"{row.place} has no {self.column!r}, which {opt('unit', self.column)} names"
            raise UsageError(what, did_you_mean(self.column, row) or f"its columns are {', '.join(row)}")
        return hash_of(plain(PARTS[self.part](value) if self.part and isinstance(value, str) else value))


@dataclass(frozen=True)
class Example:
    """A row under the exam's names, its hash, and that of its unit."""

    row: DataRow
    key: bytes
    unit: bytes | None


@dataclass
class Source:
    """The rows that are evaluated.

    Attributes:
        name: for people. rows: of the files; or of one side of a run.
        columns: which is which. unit: what intervals are drawn over. side: of a run, else "".
        limit: how many rows are used. counts: what the last pass left out.
        identity: hash of which rows these are, in any order, and what is right in them. number: of them.
        seen: what `Exam.look` noted.
    """

    name: str
    rows: Rows
    columns: Columns
    unit: Unit
    targets: tuple[str, ...]
    side: str = ""
    part: Side | None = None
    limit: int | None = None
    counts: Counts = field(default_factory=Counts)
    identity: str = ""
    number: int = 0
    seen: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Example]:
        """Yield the rows that have what the exam needs; the others are counted."""
        counts = self.counts = Counts()
        inputs = [name for name in self.columns.names if name not in self.targets]
        for row in islice(self._raw(), self.limit):
            counts.rows += 1
            found = self.columns.row(row)
            missing = self.columns.missing(found)
            if missing:
                counts.drop(missing, row.place)
                continue
            yield Example(found, hash_of(*(plain(found.get(name)) for name in inputs)), self.unit.of(row))
        counts.passed = dict(self.rows.counts.passed)

    def _raw(self) -> Iterator[DataRow]:
        return iter(self.rows) if self.part is None else (row for _, row in self.part)

    def survey(self, exam: type[Exam], *, whole: bool = False) -> None:
        """Read all rows once: which they are, in any order, and what `exam` has to know of them.

        `whole`: the identity is that of all rows, those beyond the limit too: a part of a test set is that test set.
        """

        def looked(examples: Iterable[Example]) -> Iterator[Example]:
            for example in examples:
                exam.look(example.row, self.seen)
                yield example

        self.identity, self.number = self._identity(looked(self))
        if not self.number:
            said = "; ".join(self.counts.lines()) or "it is empty"
            raise InputError(f"{self.name} has no row to evaluate on: {said}", f"check the data and {opt('columns')}")
        if whole and self.limit is not None:
            self.identity, _ = self._identity(replace(self, limit=None))

    def _identity(self, examples: Iterable[Example]) -> tuple[str, int]:
        """Return a hash of examples and what is right for them, in any order, and their number."""
        total = number = 0
        for example in examples:
            learnt = [plain(example.row.get(name)) for name in self.targets if name in self.columns.names]
            total = (total + int.from_bytes(hash_of(example.key.hex(), *learnt), "big")) & _ALL
            number += 1
        return hash_of(f"{total:032x}", str(number)).hex(), number

    def digest(self) -> str:
        """Return a hash of the rows, their order, and how they are read."""
        whole = self.rows.digest() if self.part is None else self.part.digest()
        return hash_of(whole, repr(sorted(self.columns.names.items())), repr(self.limit), repr(self.unit)).hex()


def file_source(
    exam: type[Exam], rows: Rows, there: Iterable[DataRow], name: str, columns: Mapping[str, Any], unit: str | None
) -> Source:
    """Return the rows of a file or folder.

    Args:
        there: the first of the rows, for the names of columns. name: for people. columns, unit: as the caller says.
    Raises:
        UsageError, InputError: columns that are not there.
    """
    chosen, _ = mapped(there, exam.columns, columns, name)
    targets = tuple(column.name for column in exam.columns if column.target)
    return Source(name, rows, chosen, unit_of(exam, chosen, unit), targets)


def unit_of(exam: type[Exam], columns: Columns, asked: str | None) -> Unit:
    """Return what intervals are drawn over."""
    if asked is not None:
        return Unit.parse(asked)
    return Unit(exam.unit, columns.names.get(exam.unit_column) if exam.unit_column is not None else None)


def read_source(path: str, columns: Mapping[str, Any], options: Mapping[str, Any]) -> Rows:
    """Return the rows of a path, unread; `options`: of `SourceConfig`."""
    return read(
        SourceConfig(path=path, **{name: value for name, value in options.items() if value is not None}), columns
    )
