"""Options that several verbs share, and how their results are written."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

from cyclopts import Parameter

from plainformer.cli import STDIN
from plainformer.cli.screen import console as console
from plainformer.cli.screen import shown as shown
from plainformer.cli.screen import table as table
from plainformer.config.values import decode_text, no_effect, read_json_line
from plainformer.errors import InputError, PlainformerError, opt

Text = TypeVar("Text", str, str | None)
MAX_INPUT_BYTES = 256 * 2**20  # of one line, one text file or one picture: longer is a mistake, or an endless stream
Ref = Annotated[
    str, Parameter(help="A local folder, a .gguf file, a bundled name (see `plainformer models`) or a Hub id.")
]
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
    return _bounded(open_stdin().read(MAX_INPUT_BYTES + 1), "stdin")


def read_inputs(values: Sequence[str], *, whole: bool, literal: bool) -> Iterator[Any]:
    """Yield texts from the command line, from files, and from stdin ("-").

    A file gives one input per line; a `.jsonl` file one JSON value per line: a string, an object with "text" (and "pair"),
    or what else the task takes. `whole` makes each text file one input; `literal` takes every value as text even if a
    file has that name.
    """
    _check(values, whole=whole, literal=literal)
    for value in values:
        if literal:
            yield restored(value)
        elif value == STDIN:
            yield from _parts(open_stdin(), "stdin", whole=whole, jsonl=False)
        elif is_file(value):
            with Path(value).open("rb") as file:
                yield from _parts(file, value, whole=whole, jsonl=value.endswith(".jsonl"))
        else:
            yield value


def _check(values: Sequence[str], *, whole: bool, literal: bool) -> None:
    texts = [value for value in values if value == STDIN or (is_file(value) and not value.endswith(".jsonl"))]
    no_effect(whole and (literal or not texts), "whole", ": no INPUT is read as a text file")
    for value in values:
        # A misspelt file would otherwise be read as a text of one word.
        if not literal and re.fullmatch(r"\S+\.(txt|jsonl)", value) and not is_file(value):
            raise InputError(f"there is no file {value!r}", f"check the path; {opt('literal')} takes it as text")


def is_file(value: str) -> bool:
    """Whether a file has that name."""
    try:
        return len(value) < 4096 and Path(value).is_file()
    except (OSError, ValueError):  # a text too long, or with a character that no file name has
        return False


def _parts(file: BinaryIO, where: str, *, whole: bool, jsonl: bool) -> Iterator[Any]:
    """Yield inputs as they arrive: an endless stream is answered line by line and never held."""
    if whole and not jsonl:
        yield decode_text(_bounded(file.read(MAX_INPUT_BYTES + 1), where), where)
        return
    number = 0
    # Only line feeds end a line, so a form feed or U+2028 inside a text stays in it.
    while data := file.readline(MAX_INPUT_BYTES + 1):
        number += 1
        line = decode_text(_bounded(data, where), f"{where}, line {number}").rstrip("\n").removesuffix("\r")
        if line.strip():
            yield _json_input(line, where, number) if jsonl else line


def _bounded(data: bytes, where: str) -> bytes:
    if len(data) > MAX_INPUT_BYTES:
        what = f"an input of {where} is longer than {MAX_INPUT_BYTES // 2**20} MiB"
        raise InputError(what, "cut it into lines or files")
    return data


def _json_input(line: str, where: str, number: int) -> Any:
    value = read_json_line(line, f"{where}, line {number}")
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return (value["text"], value["pair"]) if "pair" in value else value["text"]
    if isinstance(value, str | list | dict):
        return value
    raise InputError(f"{where}, line {number}: {value!r} is not an input", 'give a string, or an object with "text"')


def write_json(values: Iterable[Any]) -> None:
    """Print one JSON value per line, at once."""
    for value in values:
        try:
            line = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError:
            what = "the answer holds NaN or infinity, which JSON cannot"
            raise PlainformerError(what, f"try {opt('dtype', 'fp32')}") from None
        print(line, flush=True)
