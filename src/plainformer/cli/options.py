"""Options that several verbs share, and how their results are written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar
from unicodedata import category

from cyclopts import Parameter

from plainformer.cli import STDIN
from plainformer.errors import InputError, PlainformerError, opt

Text = TypeVar("Text", str, str | None)
MAX_INPUT_BYTES = 256 * 2**20  # of one line, one text file or one picture: longer is a mistake, or an endless stream
Json = Annotated[bool, Parameter(name="--json", negative="", help="Machine-readable output on stdout.")]


def restored(text: Text) -> Text:
    """Return a reference or an option's value: a hyphen there is a hyphen."""
    return "-" if text == STDIN else text


def open_stdin() -> BinaryIO:
    """Return stdin as bytes, if there is one."""
    if sys.stdin is None:
        raise InputError("stdin is closed", 'give it something to read, or leave "-" out')
    return sys.stdin.buffer


def read_stdin() -> bytes:
    """Return all of stdin, up to the bound of one input."""
    return bounded(open_stdin().read(MAX_INPUT_BYTES + 1), "stdin")


def is_file(value: str) -> bool:
    """Whether a file has that name."""
    try:
        return len(value) < 4096 and Path(value).is_file()
    except (OSError, ValueError):  # a text too long, or with a character that no file name has
        return False


def bounded(data: bytes, where: str) -> bytes:
    """Return what was read, if it is no longer than one input may be."""
    if len(data) > MAX_INPUT_BYTES:
        what = f"an input of {where} is longer than {MAX_INPUT_BYTES // 2**20} MiB"
        raise InputError(what, "cut it into lines or files")
    return data


def as_json(value: Any) -> str:
    """Return a value as JSON on one line."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        what = "the answer holds NaN or infinity, which JSON cannot"
        raise PlainformerError(what, f"try {opt('dtype', 'fp32')}") from None


def write_json(values: Iterable[Any]) -> None:
    """Print one JSON value a line, at once."""
    for value in values:
        print(as_json(value), flush=True)


def harmless(text: str) -> str:
    """Return text without what a terminal would obey: an answer may hold any characters."""
    return "".join(c if c in "\n\t" or category(c) != "Cc" else ascii(c)[1:-1] for c in text)


def probe_output(name: str, path: str | Path) -> None:
    """Refuse a file that could not be written, given as option `name`, before anything long runs."""
    target, why = Path(path), ""
    try:
        if target.is_dir():
            why = "it is a folder"
        elif not target.parent.is_dir():
            why = f"there is no folder {str(target.parent)!r}"
        elif not os.access(target if target.exists() else target.parent, os.W_OK):
            why = "there is no permission"
    except (OSError, ValueError) as error:  # a name too long, a NUL in it
        why = getattr(error, "strerror", "") or str(error)
    if why:
        raise InputError(f"{opt(name, str(path))} cannot be written: {why}", "choose another path")


def console() -> Any:
    """Return a rich console on stdout that neither wraps nor colours when piped."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False, soft_wrap=True)

    class Piped(Console):
        """Writes by itself: rich fills every line with blanks, and ends the program where the reader has gone."""

        def print(self, *objects: Any, **options: Any) -> None:
            with self.capture() as captured:
                super().print(*objects, **options)
            sys.stdout.write("\n".join(line.rstrip() for line in captured.get().split("\n")))

    return Piped(highlight=False, soft_wrap=True, width=1 << 12)


def table(*columns: str, right: Sequence[str] = ()) -> Any:
    """Return a plain table; the columns in `right` are aligned to the right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        wraps = column in ("about", "answers", "also called", "where")
        justify: Any = "right" if column in right else "left"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=not wraps)
    return made


def shown(text: str) -> str:
    """Return a token's text with its blanks visible, safe from rich's markup."""
    from rich.markup import escape

    return escape(json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"'))
