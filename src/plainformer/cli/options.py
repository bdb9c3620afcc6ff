"""Options that several verbs share, and how their results are written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar
from unicodedata import category

from cyclopts import Parameter

from plainformer.cli import STDIN
from plainformer.errors import InputError, PlainformerError, opt, plural

Text = TypeVar("Text", str, str | None)
MAX_INPUT_BYTES = 256 * 2**20  # of one line, one text file or one picture: longer is a mistake, or an endless stream
Ref = Annotated[
    str, Parameter(help="A local folder, a .gguf file, a bundled name (see `plainformer models`) or a Hub id.")
]


def _whole(kind: Any, tokens: Sequence[Any]) -> int:
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{restored(text)!r} is not a whole number") from None


WHOLE = Parameter(converter=_whole)  # left to itself, the parser rounds 2.5
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
    return read_bounded(open_stdin(), "stdin")


def read_bounded(file: BinaryIO, where: str) -> bytes:
    """Return all of a file, up to the bound of one input."""
    return bounded(file.read(MAX_INPUT_BYTES + 1), where)


def is_file(value: str) -> bool:
    """Whether a file has that name."""
    return _is(Path.is_file, value)


def is_folder(value: str) -> bool:
    """Whether a folder has that name."""
    return _is(Path.is_dir, value)


def _is(kind: Callable[[Path], bool], value: str) -> bool:
    try:
        return 0 < len(value) < 4096 and kind(Path(value))  # Path("") is the current folder
    except (OSError, ValueError):  # a text too long, or with a character that no file name has
        return False


def bounded(data: bytes, where: str) -> bytes:
    """Return the data unchanged, or raise if it exceeds the size limit for one input."""
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
    """Print one JSON value per line, at once."""
    for value in values:
        print(as_json(value), flush=True)


def harmless(text: str) -> str:
    """Return text without what a terminal would obey: an answer may hold any characters."""
    return "".join(c if c in "\n\t" or category(c) != "Cc" else ascii(c)[1:-1] for c in text)


def some_skipped(count: int, total: int, what: str) -> PlainformerError:
    """Return the error with which a run ends that went on without some of its inputs."""
    were = "was" if count == 1 else "were"
    return PlainformerError(f"{count:,} of {total:,} {what} {were} skipped", "the lines above say which, and why")


def passed_over(files: Sequence[Path], why: str) -> str:
    """Return a line about files that were not read, the first of them by name."""
    more = ", ..." if len(files) > 1 else ""
    return f"{plural(len(files), 'file')} passed over ({why}: {files[0].name}{more})"


def write_page(name: str, path: Path, page: str) -> None:
    """Write a page to the file that option `name` gives."""
    try:
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}"
        raise InputError(what, f"choose another path for {opt(name)}") from error


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
