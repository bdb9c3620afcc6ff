"""CoNLL: a token and its tag per line, sentences apart by a line that is empty or white space (WNUT-17: a single tab)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from plainformer.data.files import text_lines
from plainformer.data.rows import DataRow, Reading
from plainformer.errors import InputError, plural

_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)?:")


def read_conll(reading: Reading) -> Iterator[DataRow]:
    """Yield a row for each sentence: "tokens", from the first column, and "tags", from the last; others by number.

    Lines "-DOCSTART-", and comments ("# ..." before a sentence) are passed over and counted. Where every token of a file
    begins with the same language code ("en:", as WikiANN has it), the code is taken off.
    """
    for path in reading.files:
        name = reading.name(path)
        language = _language(path, name)
        if language:
            reading.counts.skip(f"the {language!r} before every token", name)
        yield from _sentences(reading, path, name, len(language))


def _language(path: Path, name: str) -> str:
    """Return the code before every token of a file; "" where there is none."""
    found = ""
    for _, line in text_lines(path, name):
        if not line.strip() or _passed(line):
            continue
        if not found:
            match = _LANGUAGE.match(line)
            if match is None:
                return ""
            found = match[0]
        if not line.startswith(found) or line[len(found) :].startswith(("\t", " ")):
            return ""
    return found


def _passed(line: str) -> str:
    """Return what a line is that holds no token; "" for one that does."""
    if line.startswith("-DOCSTART-"):
        return "-DOCSTART- line"
    return "comment" if line.startswith("# ") and "\t" not in line else ""


def _fields(line: str) -> list[str]:
    # Tokens may hold spaces where tabs are between columns: no-break spaces in tweets, names with spaces.
    return line.rstrip().split("\t") if "\t" in line.rstrip() else line.split()


def _sentences(reading: Reading, path: Path, name: str, cut: int) -> Iterator[DataRow]:
    sentence: list[list[str]] = []
    first, width = 1, 0
    for number, line in text_lines(path, name):
        place = f"{name} line {number}"
        if not line.strip():
            if sentence:
                yield _row(sentence, f"{name} line {first}")
            sentence = []
            continue
        passed = _passed(line)
        if passed and not sentence and (passed != "comment" or len(_fields(line)) != width):
            reading.counts.skip(passed, place)
            continue
        fields = _fields(line[cut:])
        width = width or len(fields)
        if len(fields) != width or width < 2:
            expected = width if width > 1 else "a token and a tag"
            raise InputError(
                f"{place} has {plural(len(fields), 'column')}, not {expected}", "correct the line, or give the format"
            )
        first = first if sentence else number
        sentence.append(fields)
    if sentence:
        yield _row(sentence, f"{name} line {first}")


def _row(sentence: list[list[str]], place: str) -> DataRow:
    columns = list(zip(*sentence, strict=True))
    names = ["tokens", *map(str, range(1, len(columns) - 1)), "tags"]
    return DataRow({name: list(column) for name, column in zip(names, columns, strict=True)}, place)
