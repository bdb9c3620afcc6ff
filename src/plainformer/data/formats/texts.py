"""Plain text: a file is a document, or each of its paragraphs or lines is."""

from __future__ import annotations

from collections.abc import Iterator

from plainformer.data.files import filled_lines, text_lines, whole_text
from plainformer.data.rows import DataRow, Reading


def read_text(reading: Reading) -> Iterator[DataRow]:
    """Yield each file as a row: "text", and "file", its path below the folder that was given."""
    for path in reading.files:
        name = reading.name(path)
        text = whole_text(path, name)
        if text.strip():
            yield DataRow({"text": text, "file": name}, name)
        else:
            reading.counts.skip("empty file", name)


def read_paragraphs(reading: Reading) -> Iterator[DataRow]:
    """Yield each run of lines that are not blank as a row: "text", and "file"."""
    for path in reading.files:
        name = reading.name(path)
        held: list[str] = []
        first = 1
        for number, line in text_lines(path, name):
            if line.strip():
                first = first if held else number
                held.append(line)
            elif held:
                yield _paragraph(held, name, first)
                held = []
        if held:
            yield _paragraph(held, name, first)


def _paragraph(lines: list[str], name: str, first: int) -> DataRow:
    return DataRow({"text": "\n".join(lines), "file": name}, f"{name} line {first}")


def read_lines(reading: Reading) -> Iterator[DataRow]:
    """Yield each line that is not blank as a row: "text", and "file"."""
    for line, name, place in filled_lines(reading):
        yield DataRow({"text": line, "file": name}, place)
