"""Inputs of a command: texts, files, folders and stdin, one after the other, each with the place that it is from.

A text file gives one input per line, or is one input; a `.jsonl` file one JSON value per line, a `.json` file a list of them, and a
`.csv` or `.tsv` file one per row, under the names of its first line. Nothing is held: an endless stream is read line by line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from plainformer.cli import STDIN
from plainformer.cli.options import (
    MAX_INPUT_BYTES,
    bounded,
    is_file,
    is_folder,
    open_stdin,
    read_bounded,
    read_stdin,
    restored,
)
from plainformer.config.values import decode_text, no_effect, read_json_line
from plainformer.errors import InputError, PlainformerError, did_you_mean, opt

TABLES = {".csv": ",", ".tsv": "\t"}
RECORDS = (".jsonl", ".json", *TABLES)  # files whose inputs have fields
TEXTS = (".txt", ".text", ".md", ".rst")
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".caf", ".m4a")
_MEDIA = (*IMAGES, *SOUNDS)
_PATH = re.compile(r"(\.{1,2}|~)/\S*|\S+(" + "|".join(map(re.escape, (*RECORDS, *TEXTS, *_MEDIA))) + ")", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
        value: what the task gets; None for a blank line, and for what cannot be read.
        place: where it is from, in words: "line 2 of big.txt".
        where: the same for a row of JSON or CSV: "file", "line", the row's own "id".
        given: what such a row shows as "input"; None where the file says it.
        problem: why it cannot be read.
    """

    value: Any
    place: str
    where: Mapping[str, Any] = field(default_factory=dict)
    given: Any = None
    problem: PlainformerError | None = None

    @property
    def blank(self) -> bool:
        """Whether there is nothing to answer, and nothing wrong."""
        return self.value is None and self.problem is None


@dataclass(frozen=True)
class Reading:
    """How inputs are read.

    Attributes:
        whole: a text file is one input. literal: every value is a text, whatever files there are.
        field: the field of a row of JSON or CSV that is the input; None takes "text", or the whole row.
        form: the names of a task's own fields, as "question" and "context".
    """

    whole: bool = False
    literal: bool = False
    field: str | None = None
    form: tuple[str, ...] = ()


def check_paths(values: Sequence[str], *, literal: bool = False) -> None:
    """Refuse a path that leads nowhere, before a model is loaded: it would otherwise be read as a text of one word."""
    for value in values:
        if literal or value == STDIN or not _PATH.fullmatch(value) or is_file(value) or is_folder(value):
            continue
        try:
            siblings = [path.name for path in Path(value).parent.iterdir()]
        except (OSError, ValueError):  # no such folder, a NUL in the name
            siblings = []
        near = did_you_mean(Path(value).name, siblings, few=False) or "check the path"
        as_text = "" if value.lower().endswith(_MEDIA) else f"; {opt('literal')} takes it as text"
        raise InputError(f"there is no file {value!r}", near + as_text)


def check_reading(values: Sequence[str], reading: Reading) -> None:
    """Refuse ways of reading that no input is read in."""
    kinds = {value: _kind(value, reading) for value in values}
    texts = [value for value, kind in kinds.items() if kind in ("stdin", "text", "folder")]
    no_effect(reading.whole and not texts, "whole", ": no INPUT is read as a text file")
    no_effect(reading.whole and reading.field is not None, "whole", f"with {opt('field')}")
    records = [value for value, kind in kinds.items() if kind in ("stdin", "records", "folder")]
    fix = "give a .jsonl, .json, .csv or .tsv file"
    no_effect(reading.field is not None and not records, "field", ": no INPUT has fields", fix)


def _kind(value: str, reading: Reading) -> str:
    if reading.literal:
        return "literal"
    if value == STDIN:
        return "stdin"
    if is_file(value):
        return "records" if Path(value).suffix.lower() in RECORDS else "text"
    return "folder" if is_folder(value) else "literal"


def is_one_text(values: Sequence[str], reading: Reading) -> bool:
    """Whether there is one input: a text, or a whole file."""
    return len(values) == 1 and (_kind(values[0], reading) == "literal" or reading.whole)


def read_texts(values: Sequence[str], reading: Reading, skipped: list[Path]) -> Iterator[Item]:
    """Yield texts, and what else a row may hold; a folder's files of other kinds are added to `skipped`."""
    for number, value in enumerate(values, 1):
        kind = _kind(value, reading)
        if kind == "literal":
            text = restored(value)
            yield Item(text, f"input {number}" if len(values) > 1 else "the input", {}, text)
        elif kind == "stdin":
            yield from _of_file(open_stdin(), None, reading)
        else:
            for path in _files(value, (*TEXTS, *RECORDS), skipped):
                try:
                    with path.open("rb") as file:
                        yield from _of_file(file, path, reading)
                except OSError as error:
                    yield Item(None, str(path), {"file": str(path)}, problem=_unreadable(path, error))


def read_media(values: Sequence[str], suffixes: Sequence[str], skipped: list[Path]) -> Iterator[Item]:
    """Yield files of pictures or of sound, whose content the task reads, and stdin's content."""
    for value in values:
        if value == STDIN:
            yield Item(read_stdin(), "stdin", {})
        else:
            for path in _files(value, suffixes, skipped) if is_folder(value) else [value]:
                yield Item(str(path), str(path), {"file": str(path)})


def count(values: Sequence[str], reading: Reading) -> int | None:
    """Return how many inputs there are in files and on the command line; None where stdin is one, or a file is in the way."""
    if STDIN in values:
        return None
    try:
        return sum(_count_of(value, reading) for value in values)
    except (PlainformerError, OSError, csv.Error, UnicodeDecodeError):
        return None


def _count_of(value: str, reading: Reading) -> int:
    if _kind(value, reading) == "literal":
        return 1
    total = 0
    for path in _files(value, (*TEXTS, *RECORDS), []):
        suffix = path.suffix.lower()
        with path.open("rb") as file:
            if suffix in TABLES or suffix == ".json":
                total += sum(not item.blank for item in _of_file(file, path, reading))
            else:
                total += 1 if reading.whole and suffix != ".jsonl" else sum(bool(line.strip()) for line in file)
    return total


def _files(value: str, suffixes: Sequence[str], skipped: list[Path]) -> Iterable[Path]:
    """Return the file of that name, or a folder's files of these kinds."""
    from plainformer.entities.documents import files_in

    if not is_folder(value):
        return [Path(value)]
    found = list(files_in(value, suffixes, skipped.append))
    if not found:
        raise InputError(f"the folder {value!r} has no files of this kind", f"kinds: {', '.join(suffixes)}")
    return found


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read: {error.strerror or error}", "check its permissions")


# ---- what a file holds --------------------------------------------------------------------------------------------------


def _of_file(file: BinaryIO, path: Path | None, reading: Reading) -> Iterator[Item]:
    suffix = path.suffix.lower() if path is not None else ".jsonl" if reading.field is not None else ""
    name = str(path) if path is not None else "stdin"
    where = {"file": name} if path is not None else {}
    if suffix in TABLES:
        yield from _rows(file, name, where, TABLES[suffix], reading)
    elif suffix == ".json":
        yield from _json(file, name, where, reading)
    elif reading.whole and suffix != ".jsonl":
        yield _text(read_bounded(file, name), name, where, blank=False)
    else:
        yield from _lines(file, name, where, reading, jsonl=suffix == ".jsonl")


def _lines(file: BinaryIO, name: str, where: Mapping[str, Any], reading: Reading, *, jsonl: bool) -> Iterator[Item]:
    number = 0
    # Only line feeds end a line, so a form feed or U+2028 inside a text stays in it.
    while data := file.readline(MAX_INPUT_BYTES + 1):
        number += 1
        place = f"line {number} of {name}" if "file" in where else f"{name} line {number}"
        item = _text(bounded(data, name), place, {**where, "line": number})
        if jsonl and item.value is not None:
            item = _converted(item, reading, lambda text, place=place: read_json_line(text, place))
        yield item


def _text(data: bytes, place: str, where: Mapping[str, Any], *, blank: bool = True) -> Item:
    try:
        text = decode_text(data, place)
    except InputError as error:
        return Item(None, place, where, problem=error)
    if blank:
        text = text.rstrip("\n").removesuffix("\r")
        if not text.strip():
            return Item(None, place, where, text)
    return Item(text, place, where, text)


def _json(file: BinaryIO, name: str, where: Mapping[str, Any], reading: Reading) -> Iterator[Item]:
    try:
        values = json.loads(decode_text(read_bounded(file, name), name))
    except (ValueError, RecursionError) as error:
        if isinstance(error, PlainformerError):
            raise
        raise InputError(
            f"{name} is not JSON: {error}", f"correct it; {opt('literal')} takes its name as text"
        ) from None
    for number, value in enumerate(values if isinstance(values, list) else [values], 1):
        item = Item(value, f"item {number} of {name}", {**where, "item": number}, value)
        yield _converted(item, reading, lambda value: value)


def _rows(file: BinaryIO, name: str, where: Mapping[str, Any], delimiter: str, reading: Reading) -> Iterator[Item]:
    csv.field_size_limit(MAX_INPUT_BYTES)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    rows = csv.DictReader(text, delimiter=delimiter)
    try:
        columns = [column for column in rows.fieldnames or () if column]
        if reading.field is not None and reading.field not in columns:
            hint = did_you_mean(reading.field, columns) or f"columns: {', '.join(columns)}"
            raise InputError(f"{name} has no column {reading.field!r}", hint)
        line = rows.line_num
        for row in rows:
            line, first = rows.line_num, line + 1
            value = {column: cell or "" for column, cell in row.items() if column}
            item = Item(value, f"line {first} of {name}", {**where, "line": first}, value)
            yield _converted(item, reading, lambda value: value)
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: {error.reason}", "convert it, e.g. with iconv") from None
    except csv.Error as error:
        raise InputError(f"line {rows.line_num} of {name} is not CSV: {error}", "correct it") from None


def _converted(item: Item, reading: Reading, read: Any) -> Item:
    """Return an item with the input that its row of JSON or CSV is, or why it is none."""
    try:
        row = read(item.value)
        where = {**item.where, **_id(row)}
        value = _input_in(row, item.place, reading)
    except InputError as error:
        return replace(item, value=None, problem=error)
    blank = isinstance(value, str) and not value.strip()
    return replace(
        item, value=None if blank else value, where=where, given=list(value) if isinstance(value, tuple) else value
    )


def _id(row: Any) -> dict[str, Any]:
    found = row.get("id") if isinstance(row, dict) else None
    return {"id": found} if isinstance(found, str | int) else {}


def _input_in(row: Any, place: str, reading: Reading) -> Any:
    if reading.field is not None:
        if not isinstance(row, dict):
            raise InputError(f"{place} has no fields", f"leave {opt('field')} out")
        if reading.field not in row:
            hint = did_you_mean(reading.field, row)
            raise InputError(f"{place} has no field {reading.field!r}", hint or f"fields: {', '.join(row)}")
        value = row[reading.field]
        if isinstance(value, str | list):
            return value
        raise InputError(f"{place}: the field {reading.field!r} is {value!r}, not a text", "choose another field")
    if isinstance(row, str | list):
        return row
    if not isinstance(row, dict):
        raise InputError(f"{place}: {row!r} is not an input", 'give a string, or an object with "text"')
    if reading.form and set(reading.form) <= set(row):
        return {name: row[name] for name in reading.form}
    if isinstance(row.get("text"), str):
        return (row["text"], row["pair"]) if "pair" in row else row["text"]
    if isinstance(row.get("messages"), list):
        return row["messages"]
    fields = ", ".join(map(str, row)) or "none"
    raise InputError(f'{place} has no field "text"; its fields: {fields}', f"{opt('field')} NAME chooses one")
