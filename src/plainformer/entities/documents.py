"""Documents from files, folders and JSON lines, and what was found in them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from plainformer.config.values import decode_text, read_json_line
from plainformer.errors import InputError

SUFFIXES = frozenset({".txt", ".text", ".md", ".rst", ".jsonl"})  # what a folder's files are taken for documents by
MAX_DOCUMENT_BYTES = 256 * 2**20


class Mention(Protocol):
    """An entity in a text, such as `tasks.token_classification.Entity`: `text` is the text's [start:end]."""

    @property
    def label(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def text(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


@dataclass(frozen=True)
class Document:
    """A text and what it is called: its file, or its "id" or line in a file of JSON lines."""

    name: str
    text: str


@dataclass(frozen=True)
class Found:
    """A document and its entities, in text order."""

    document: Document
    mentions: tuple[Mention, ...]


def files_in(folder: str | Path, suffixes: Collection[str], skipped: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a folder's files of these suffixes and those of its folders, by name; `skipped` is told of its others.

    Hidden ones are passed over.
    """
    root = Path(folder)
    for file in sorted(path for path in root.rglob("*") if path.is_file() and not _hidden(path, root)):
        if file.suffix.lower() in suffixes:
            yield file
        else:
            skipped(file)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def read_documents(
    paths: Sequence[str | Path],
    *,
    skipped: Callable[[Path], object] = lambda path: None,
    failed: Callable[[InputError], object] | None = None,
) -> Iterator[Document]:
    """Yield the documents at these paths, one at a time.

    A file is a document; a `.jsonl` file one per line, a text or an object with "text" and perhaps "id"; a folder all
    that its files of known suffixes hold, by name; `skipped` is told of its others. With `failed`, a document that cannot be
    read is passed over, and `failed` told why.

    Raises:
        InputError: a path that is not there, is unreadable, not UTF-8 or not JSON; a folder without documents.
    """
    for given in paths:
        for file in document_files([given], skipped):
            yield from _documents_of(file, failed)


def document_files(paths: Sequence[str | Path], skipped: Callable[[Path], object] = lambda path: None) -> list[Path]:
    """Return the files of documents at these paths, unread; see `read_documents`."""
    files: list[Path] = []
    for given in paths:
        path = Path(given)
        if given == "":  # Path("") is this folder
            raise InputError("a path is empty", "give a file or a folder")
        if path.is_dir():
            found = list(files_in(path, SUFFIXES, skipped))
            if not found:
                known = ", ".join(sorted(SUFFIXES))
                raise InputError(
                    f"the folder {str(path)!r} has no documents", f"they are files of these kinds: {known}"
                )
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"there is no file or folder {str(path)!r}", "check the path")
    return files


def count_documents(files: Sequence[Path]) -> int:
    """Return how many documents the files of `document_files` hold, without reading what they say."""
    return sum(map(_count_in, files))


def _count_in(path: Path) -> int:
    if path.suffix.lower() != ".jsonl":
        return 1
    try:
        with path.open("rb") as file:
            return sum(bool(line.strip()) for line in file)
    except OSError:  # whoever reads it says so
        return 1


def _documents_of(path: Path, failed: Callable[[InputError], object] | None) -> Iterator[Document]:
    try:
        if path.suffix.lower() == ".jsonl":
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield from _one(lambda: _from_json(line, path, number), failed)  # noqa: B023  # called at once
        elif path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise InputError(f"{path} is longer than {MAX_DOCUMENT_BYTES // 2**20} MiB", "cut it into files")
        else:
            yield from _one(lambda: Document(str(path), decode_text(path.read_bytes(), path)), failed)
    except OSError as error:
        refused = InputError(f"{path} cannot be read: {error.strerror}", "check its permissions")
        if failed is None:
            raise refused from error
        failed(refused)


def _one(read: Callable[[], Document], failed: Callable[[InputError], object] | None) -> Iterator[Document]:
    try:
        document = read()
    except InputError as error:
        if failed is None:
            raise
        failed(error)
        return
    yield document


def _from_json(line: bytes, path: Path, number: int) -> Document:
    place = f"line {number} of {path}"
    value = read_json_line(line, place)
    if isinstance(value, str):
        return Document(f"{path}:{number}", value)
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        name = value.get("id", value.get("name"))
        return Document(f"{path}:{number}" if name is None else str(name), value["text"])
    raise InputError(f"{place} is not a document", 'give a text, or {"id": ..., "text": ...}')
