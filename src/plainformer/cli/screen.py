"""How results are laid out: tables and facts that fit the terminal, or a line for each row where they are piped."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

UNBOUNDED = 1 << 12  # columns of a pipe: a row is a line, for grep and awk
_LEAST = 12  # columns that a text needs at least to be read in a table
_GAP = 3


def width(stream: TextIO | None = None) -> int | None:
    """Return how many columns a stream (stdout) has; None where it is piped and COLUMNS does not say."""
    stream = sys.stdout if stream is None else stream
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def console() -> Any:
    """Return a rich console on stdout, as wide as the terminal, that does not colour when piped."""
    from rich.console import Console

    columns = width()
    wide = {"soft_wrap": columns is None, "width": columns or UNBOUNDED}
    if sys.stdout.isatty():
        return Console(highlight=False, **wide)  # type: ignore[arg-type]

    class Piped(Console):
        """Writes by itself: rich fills every line with blanks, and ends the program where the reader has gone."""

        def print(self, *objects: Any, **options: Any) -> None:
            with self.capture() as captured:
                super().print(*objects, **options)
            sys.stdout.write("\n".join(line.rstrip() for line in captured.get().split("\n")))

    return Piped(highlight=False, **wide)  # type: ignore[arg-type]


class Table:
    """A plain table, whose cells are rich's markup.

    Where it is wider than the screen, its columns of text wrap at words. Where even that leaves no room, each row is a
    few lines: its first cell, and what the others are.
    """

    def __init__(self, columns: Sequence[str], right: Sequence[str] = ()) -> None:
        self.columns, self.right = columns, right
        self.rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """Add a row: a cell for each column."""
        self.rows.append(cells)

    def __rich_console__(self, screen: Any, options: Any) -> Iterator[Any]:
        from rich.cells import cell_len
        from rich.text import Text

        plain = [[Text.from_markup(cell).plain for cell in row] for row in [self.columns, *self.rows]]
        sizes = [max(map(cell_len, cells)) for cells in zip(*plain, strict=True)]
        words = [
            max((cell_len(word) for cell in cells for word in cell.split()), default=0)
            for cells in zip(*plain, strict=True)
        ]
        # A column of numbers or names never wraps; one with spaces does, down to its longest word.
        texts = [
            any(" " in cell for cell in cells) and name not in self.right
            for name, cells in zip(self.columns, zip(*plain, strict=True), strict=True)
        ]
        room = options.max_width - _GAP * (len(sizes) - 1)
        least = [
            max(word, min(size, _LEAST)) if text else size for word, size, text in zip(words, sizes, texts, strict=True)
        ]
        if sum(least) <= room:
            yield self._table(_shares(sizes, least, room))
        else:
            yield from self._records(plain[1:], options.max_width)

    def _table(self, sizes: Sequence[int]) -> Any:
        from rich import box
        from rich.table import Table as RichTable

        made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name, size in zip(self.columns, sizes, strict=True):
            made.add_column(name, justify="right" if name in self.right else "left", width=size, overflow="fold")
        for row in self.rows:
            made.add_row(*row)
        return made

    def _records(self, rows: Sequence[Sequence[str]], columns: int) -> Iterator[str]:
        from rich.markup import escape

        for first, *others in rows:
            said = [f"{name} {cell}".strip() for name, cell in zip(self.columns[1:], others, strict=True) if cell]
            spaced = any(" " in cell for cell in others)
            lines = [first, *(said if spaced else [", ".join(said)] if said else [])]
            for place, line in enumerate(lines):
                yield escape("\n".join(folded(line, columns, "  " if place else "", "    ")))


def _shares(sizes: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Return the columns' widths: what each needs at least, and the room that is left where it is wanted."""
    wanted = [size - now for size, now in zip(sizes, least, strict=True)]
    spare = min(room - sum(least), sum(wanted))
    widths = [now + spare * more // max(sum(wanted), 1) for now, more in zip(least, wanted, strict=True)]
    widths[-1] += spare - sum(widths) + sum(least)
    return widths


def folded(text: str, columns: int, first: str = "", later: str = "") -> list[str]:
    """Return a text in lines that break between words; the first is indented by `first`, the others by `later`."""
    shape: Any = {"initial_indent": first, "subsequent_indent": later, "break_on_hyphens": False}
    return textwrap.wrap(text, max(columns, len(later) + 8), replace_whitespace=False, **shape) or [""]


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table; the columns in `right` are aligned to the right, and never wrap."""
    return Table(columns, right)


def print_facts(out: Any, facts: Mapping[str, str], *, indent: str = "", label: int = 18) -> None:
    """Print a name and a text for each fact; long texts go on below themselves."""
    for name, text in facts.items():
        start = f"{indent}{name:<{label}} "
        lines = folded(text, out.width, start, " " * len(start) if out.width > 60 else indent + "  ")
        out.print("\n".join(lines), markup=False)


def shown(text: str) -> str:
    """Return a token's text with its blanks visible, safe from rich's markup."""
    from rich.markup import escape

    return escape(visible(text))


def visible(text: str) -> str:
    """Return a text with its blanks and control characters visible."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"')
