"""Tables: CSV as RFC 4180 has it, and lines of fields between tabs, where a quotation mark is a character like any other."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from plainformer.data.files import text_lines
from plainformer.data.rows import DataRow, Reading
from plainformer.errors import InputError, plural

MAX_FIELD = 2**28


def read_csv(reading: Reading) -> Iterator[DataRow]:
    """Yield the rows of CSV files; the first line names the columns, unless `header` says that it is a row."""
    for path in reading.files:
        yield from _rows(reading, _csv(path, reading.name(path)), reading.name(path))


def read_tsv(reading: Reading) -> Iterator[DataRow]:
    """Yield the rows of files with tabs between fields. Nothing is quoted: SST-2's sentences hold single marks."""
    for path in reading.files:
        name = reading.name(path)
        fields = ((number, line.split("\t") if line else []) for number, line in text_lines(path, name))
        yield from _rows(reading, fields, name)


def _csv(path: Path, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each record with the number of its last line."""
    if csv.field_size_limit() < MAX_FIELD:  # the default, 131,072, is shorter than many a document
        csv.field_size_limit(MAX_FIELD)
    records = csv.reader((line for _, line in text_lines(path, name, ends=True)), strict=True)
    try:
        for record in records:
            yield records.line_num, record
    except csv.Error as error:
        raise InputError(f"{name} line {records.line_num} is not CSV: {error}", "correct the line") from None


def _rows(reading: Reading, records: Iterator[tuple[int, list[str]]], name: str) -> Iterator[DataRow]:
    columns: list[str] | None = None
    header = reading.source.header
    for number, fields in records:
        place = f"{name} line {number}"
        if not fields:
            reading.counts.skip("blank line", place)
            continue
        if columns is None:
            named = not reading.numbered if header is None else header
            columns = _names(fields, place) if named else [str(i) for i in range(len(fields))]
            if named:
                continue
        if len(fields) != len(columns):
            raise InputError(
                f"{place} has {plural(len(fields), 'field')}, where the first line has {len(columns)}",
                "correct the line; a field that holds a separator or line end must be quoted in CSV",
            )
        yield DataRow(zip(columns, fields, strict=True), place)


def _names(fields: Sequence[str], place: str) -> list[str]:
    names = [field.strip() for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{place} names the column {twice[0]!r} twice", "if it is a row and not a header, give header: false"
        )
    return names
