"""How the answers to many inputs are written: JSON lines, CSV, or words under headings. Each input has its row, answered or not."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from plainformer.cli.inputs import Item
from plainformer.cli.options import as_json, harmless
from plainformer.cli.progress import screen

# Their answers are a line each, by which they can be told apart.
_ONE_LINE = {
    *("text-classification", "zero-shot-classification", "image-classification", "audio-classification"),
    *("feature-extraction", "image-feature-extraction", "audio-feature-extraction", "multiple-choice"),
}


class Rows:
    """Writes answers as they come."""

    def write(self, item: Item, result: Any) -> None:
        """Write an input's answer."""
        raise NotImplementedError

    def skip(self, item: Item, reason: str) -> None:
        """Write that an input has none: a blank line, or one that was skipped."""

    def end(self) -> None:
        """Write what has been kept back."""


class JsonRows(Rows):
    """One object per line: where the input is from, the input, its answer."""

    def write(self, item: Item, result: Any) -> None:
        from plainformer.tasks.results import plain

        found = plain(result)
        screen.write(as_json({**_about(item), **(found if isinstance(found, dict) else {"results": found})}))

    def skip(self, item: Item, reason: str) -> None:
        screen.write(as_json({**_about(item), "skipped": reason}))


class PlainRows(Rows):
    """The answer for people; of several inputs each under a heading, unless answers are a line each.

    Args:
        task: its name. several: whether there are more inputs than one, asked when the first is answered.
    """

    def __init__(self, task: str, several: Any) -> None:
        self._several = several
        self._headed: bool | None = False if task in _ONE_LINE else None
        self._first = True

    def write(self, item: Item, result: Any) -> None:
        if self._headed is None:
            self._headed = self._several()
        if self._headed:
            screen.write(("" if self._first else "\n") + heading(item))
        self._first = False
        screen.write(for_people("\n".join(lines_of(result))))


class CsvRows(Rows):
    """A table: a row for each answer, of an input with several parts (entities, ranked documents) for each part.

    The first line names the columns: where the input is from, the input, the answer's fields, and "skipped" with the reason
    where there is no answer. They are those of the first answer; what was skipped before it waits for it.
    """

    def __init__(self) -> None:
        self._columns: list[str] = []
        self._waiting: list[dict[str, Any]] = []

    def write(self, item: Item, result: Any) -> None:
        rows = [{**_about(item), **record} for record in records(result)]
        if not self._columns and rows:
            self._begin(list(rows[0]))
        self._put(rows)

    def skip(self, item: Item, reason: str) -> None:
        row = {**_about(item), "skipped": reason}
        if self._columns:
            self._put([row])
        else:
            self._waiting.append(row)

    def end(self) -> None:
        if not self._columns and self._waiting:
            self._begin(list(self._waiting[0]))

    def _begin(self, columns: list[str]) -> None:
        places = dict.fromkeys(name for row in self._waiting for name in row)
        first = [name for name in ("file", "line", "item", "id", "input") if name in places or name in columns]
        self._columns = list(dict.fromkeys([*first, *columns, "skipped"]))
        self._line(self._columns)
        self._put(self._waiting)

    def _put(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            cells = (row.get(name) for name in self._columns)
            self._line([as_json(cell) if isinstance(cell, list | tuple | dict) else cell for cell in cells])

    def _line(self, cells: list[Any]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(["" if cell is None else cell for cell in cells])
        screen.write(text.getvalue())


def heading(item: Item) -> str:
    """Return the line above an answer: where its input is from, and how it begins."""
    given = item.given if isinstance(item.given, str) else "" if item.given is None else as_json(item.given)
    text = " ".join(given.split())
    text = text if len(text) <= 60 else text[:59] + "…"
    return for_people(f"==> {item.place}: {text} <==" if text else f"==> {item.place} <==")


def for_people(text: str) -> str:
    """Return text as it is written to stdout: to a terminal, without what that would obey."""
    return harmless(text) if sys.stdout.isatty() else text


def lines_of(result: Any) -> list[str]:
    """Return a result for people: the answer first."""
    if isinstance(result, tuple | list):
        return [line for part in result for line in lines_of(part)]
    return list(result.lines())


def records(result: Any) -> Iterator[dict[str, Any]]:
    """Yield a result's rows in a table, column → value; what does not apply to it has its columns all the same."""
    if isinstance(result, tuple | list):
        for part in result:
            yield from records(part)
        return
    from plainformer.tasks.results import rows_of

    optional = dict.fromkeys(f.name for f in fields(result) if f.default is None and f.repr)
    for row in rows_of(result):
        yield {**row, **{name: None for name in optional if name not in row}}


def _about(item: Item) -> dict[str, Any]:
    return {**item.where, **({} if item.given is None else {"input": item.given})}
