"""A table as plain text. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def table_lines(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: Collection[str]) -> list[str]:
    """Return a table in lines, the heads first; no lines without rows.

    Args:
        texts: heads of columns that begin on the left; the others end on the right, as numbers do.
    """
    written = [heads, *rows]
    if len(written) == 1:
        return []
    widths = [max(map(len, cells)) for cells in zip(*written, strict=True)]
    return ["  ".join(_cells(heads, row, widths, texts)).rstrip() for row in written]


def _cells(heads: Sequence[str], row: Sequence[str], widths: Sequence[int], texts: Collection[str]) -> Iterable[str]:
    for head, cell, width in zip(heads, row, widths, strict=True):
        yield cell.ljust(width) if head in texts else cell.rjust(width)
