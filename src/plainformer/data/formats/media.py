"""Folders of clips or images. What is said of each is in a list, in a text beside it, or in the name of its folder.

A row holds the file's path (`MediaPath`); what decodes it is the objective's processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from plainformer.data.files import suffix_of, whole_text
from plainformer.data.formats.json_files import read_jsonl
from plainformer.data.formats.tables import read_csv, read_tsv
from plainformer.data.rows import DataRow, MediaPath, Reading
from plainformer.errors import InputError, did_you_mean, plural

SOUNDS = frozenset({".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".caf", ".m4a"})
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
LISTS = ("transcripts", "metadata", "labels")
_READERS: dict[str, Callable[[Reading], Iterator[DataRow]]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
}
_FILE_COLUMNS = ("file", "file_name", "filename", "path", "clip")  # besides "audio" and "image"


def read_audio(reading: Reading) -> Iterator[DataRow]:
    """Yield a row for each clip: "audio", its path, with the columns of a list, or "text" (a .txt beside it), or "label"."""
    yield from _read(reading, SOUNDS, "audio", "clip")


def read_images(reading: Reading) -> Iterator[DataRow]:
    """Yield a row for each image: "image", its path, with the columns of a list, or "label", the name of its folder."""
    yield from _read(reading, IMAGES, "image", "image")


def _read(reading: Reading, suffixes: frozenset[str], column: str, noun: str) -> Iterator[DataRow]:
    media = [path for path in reading.files if path.suffix.lower() in suffixes]
    lists = [path for path in reading.files if suffix_of(path) in _READERS and _is_list(path, reading)]
    if len(lists) > 1:
        raise InputError(
            f"{reading.source.path} has more than one list: {', '.join(map(reading.name, lists))}", "keep one"
        )
    if lists:
        yield from _listed(reading, lists[0], media, column, noun)
        return
    if not media:
        raise InputError(
            f"{reading.source.path} has no {noun} of a known kind", f"known: {', '.join(sorted(suffixes))}"
        )
    texts = [path.with_suffix(".txt") for path in media] if column == "audio" else []
    beside = [path.is_file() for path in texts]
    if any(beside):
        yield from _transcribed(reading, media, texts, beside)
    else:
        yield from _by_folder(reading, media, column, noun)


def _is_list(path: Path, reading: Reading) -> bool:
    return len(reading.files) == 1 or path.name.split(".")[0] in LISTS


def _listed(reading: Reading, listed: Path, media: list[Path], column: str, noun: str) -> Iterator[DataRow]:
    known = {path.resolve() for path in media}
    named: set[Path] = set()
    chosen = ""
    for row in _READERS[suffix_of(listed)](replace(reading, files=(listed,))):
        chosen = chosen or _file_column(row, column)
        path = listed.parent / str(row.get(chosen, ""))
        if not path.is_file():
            raise InputError(
                f"{row.place} names {row.get(chosen)!r}, which is not a file in {listed.parent}",
                "paths of a list begin at its folder",
            )
        named.add(path.resolve())
        rest = {name: value for name, value in row.items() if name != chosen}
        yield DataRow({column: MediaPath(path), **rest}, row.place)
    for path in sorted(known - named):
        reading.counts.skip(f"{noun} that the list does not name", path.name)


def _file_column(row: DataRow, column: str) -> str:
    for name in (column, *_FILE_COLUMNS):
        if name in row:
            return name
    raise InputError(
        f"{row.place} has no column {column!r} with the file's path; its columns are {', '.join(map(repr, row))}",
        did_you_mean(column, row, few=False) or f"call it {column!r} or 'file'",
    )


def _transcribed(reading: Reading, media: list[Path], texts: list[Path], beside: list[bool]) -> Iterator[DataRow]:
    for path, text, there in zip(media, texts, beside, strict=True):
        name = reading.name(path)
        if there:
            yield DataRow({"audio": MediaPath(path), "text": whole_text(text, reading.name(text)).strip()}, name)
        else:
            reading.counts.skip("clip without a .txt beside it", name)


def _by_folder(reading: Reading, media: list[Path], column: str, noun: str) -> Iterator[DataRow]:
    labels = {path.parent.name for path in media}
    if len(labels) < 2:
        raise InputError(
            f"{reading.source.path}: nothing says what its {plural(len(media), noun)} are",
            "put them into a folder for each label, or add metadata.csv or metadata.jsonl with a column 'file' beside others",
        )
    for path in media:
        yield DataRow({column: MediaPath(path), "label": path.parent.name}, reading.name(path))
