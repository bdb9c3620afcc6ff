"""Which column of the data is which of the objective's: as `data.columns` says, else by name, else by another usual name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol

from plainformer.data.counts import Counts
from plainformer.data.rows import DataRow
from plainformer.errors import InputError, UsageError, did_you_mean, opt

LOOKED_AT = 1000  # rows whose columns are known before the first is mapped: an object of JSON may leave one out


class Wanted(Protocol):
    """A column that an objective reads: `train.objectives.base.Column`."""

    @property
    def name(self) -> str: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...
    @property
    def required(self) -> bool: ...
    @property
    def target(self) -> bool: ...


@dataclass(frozen=True)
class Columns:
    """The objective's name of each column → the data's: a name, or a path into nested values.

    Attributes:
        required: names of which a row must have a value, or be dropped.
    """

    names: Mapping[str, str]
    required: frozenset[str] = frozenset()

    def row(self, row: DataRow) -> DataRow:
        """Return the row under the objective's names, without what it does not read; what is absent is left out."""
        found = ((name, value_of(row, source)) for name, source in self.names.items())
        return DataRow({name: value for name, value in found if value is not None}, row.place)

    def missing(self, row: Mapping[str, Any]) -> str:
        """Return why a mapped row cannot be used; "" where it can."""
        absent = next((name for name in self.names if name in self.required and name not in row), None)
        return "" if absent is None else f"no value for {absent!r}"

    def rows(self, rows: Iterable[DataRow], counts: Counts) -> Iterator[DataRow]:
        """Yield the rows under the objective's names; those without a required value are dropped, and counted."""
        for row in rows:
            mapped = self.row(row)
            reason = self.missing(mapped)
            if reason:
                counts.drop(reason, row.place)
            else:
                yield mapped


def value_of(row: Mapping[str, Any], source: str) -> Any:
    """Return a row's value by a column's name or by a path: "translation.fr", "fr.0"; None without one."""
    if source in row or "." not in source:
        return row.get(source)
    value: Any = row
    for part in source.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            return None
    return value


def mapped(
    rows: Iterable[DataRow], wanted: Sequence[Wanted], given: Mapping[str, str | int], where: str
) -> tuple[Columns, Iterator[DataRow]]:
    """Return which columns are which, and the rows, still unmapped: the first were read to see their columns.

    Args:
        rows: as read. wanted: what the objective reads. given: `data.columns`. where: the data's name, for messages.
    Raises:
        UsageError: `given` has a name that the objective does not read, or a column that is not there.
        InputError: a required column is missing, or several may be meant.
    """
    stream = iter(rows)
    first = list(islice(stream, LOOKED_AT))
    there = list(dict.fromkeys(name for row in first for name in row))
    return choose(there, wanted, given, where, first), chain(first, stream)


def choose(
    there: Sequence[str],
    wanted: Sequence[Wanted],
    given: Mapping[str, str | int],
    where: str,
    rows: Sequence[DataRow] = (),
) -> Columns:
    """Return which of the columns `there` are which; see `mapped`. A path of `given` must lead somewhere in `rows`."""
    known = {column.name: column for column in wanted}
    for name, source in given.items():
        if name not in known:
            raise UsageError(
                f"{opt('data.columns')} names {name!r}, which the objective does not read", did_you_mean(name, known)
            )
        _check(source, there, rows, where)
    chosen = {name: there[source] if isinstance(source, int) else source for name, source in given.items()}
    names: dict[str, str] = {}
    for name, column in known.items():
        # A column that is another of the objective's by its own name is not this one by a usual name.
        taken = {*chosen.values(), *(other for other in known if other != name)}
        found = chosen.get(name) or _by_name(column, there, taken, where)
        if found is not None:
            names[name] = found
    return Columns(names, frozenset(name for name, column in known.items() if column.required))


def _check(source: str | int, there: Sequence[str], rows: Sequence[DataRow], where: str) -> None:
    """Refuse a column of `data.columns` that the data does not have."""
    if isinstance(source, bool) or not isinstance(source, str | int):
        raise UsageError(f"{opt('data.columns')} has {source!r} for a column", "give a name, or a number from 0")
    if isinstance(source, int):
        if not 0 <= source < len(there):
            raise UsageError(
                f"{opt('data.columns')} asks for column {source} of {where}, which has {len(there)}", "count from 0"
            )
    elif source not in there and all(value_of(row, source) is None for row in rows):
        raise UsageError(f"{opt('data.columns')} asks for {source!r}, which is not in {where}", _found(source, there))


def _by_name(column: Wanted, there: Sequence[str], taken: set[str], where: str) -> str | None:
    if column.name in there:
        return column.name
    found = [alias for alias in column.aliases if alias in there and alias not in taken]
    if len(found) > 1:
        raise InputError(
            f"{where} has no column {column.name!r}, and several that may be it: {', '.join(map(repr, found))}",
            f"say which: {opt('data.columns')} {{{column.name}: {found[0]}}}",
        )
    if found:
        return found[0]
    if column.required:
        raise InputError(
            f"{where} has no column {column.name!r}", f"{_found(column.name, there)}; {_advice(column, there)}"
        )
    return None


def _advice(column: Wanted, there: Sequence[str]) -> str:
    if any(len(name.split()) > 4 for name in there):
        return f"its first line seems to be a row: give header: false, and {opt('data.columns')} by number from 0"
    example = there[0] if there else "..."
    return f"say which it is: {opt('data.columns')} {{{column.name}: {example}}}"


def _found(name: str, there: Sequence[str]) -> str:
    shown = ", ".join(repr(one if len(one) <= 40 else one[:40] + "…") for one in there[:20])
    close = did_you_mean(name, there, few=False)
    return f"its columns are {shown or 'none'}" + (f"; {close}" if close else "")
