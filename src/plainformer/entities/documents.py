"""Documents from files, folders and JSON lines, and what was found in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


def read_documents(
    paths: Sequence[str | Path], *, skipped: Callable[[Path], None] = lambda path: None
) -> Iterator[Document]:
    """Yield the documents at these paths, one at a time.

    A file is a document; a `.jsonl` file one per line, a text or an object with "text" and perhaps "id"; a folder all
    that its files of known suffixes hold, by name; `skipped` is told of its others.

    Raises:
        InputError: a path that is not there, is unreadable, not UTF-8 or not JSON.
    """
    for given in paths:
        path = Path(given)
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path)):
                if file.suffix.lower() in SUFFIXES:
                    yield from _documents_of(file)
                else:
                    skipped(file)
        elif path.is_file():
            yield from _documents_of(path)
        else:
            raise InputError(f"there is no file or folder {str(path)!r}", "check the path")


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _documents_of(path: Path) -> Iterator[Document]:
    try:
        if path.suffix.lower() == ".jsonl":
            with path.open("rb") as file:
                lines = ((f"{path}:{number}", line) for number, line in enumerate(file, 1) if line.strip())
                yield from (_from_json(line, where) for where, line in lines)
        elif path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise InputError(f"{path} is longer than {MAX_DOCUMENT_BYTES // 2**20} MiB", "cut it into files")
        else:
            yield Document(str(path), decode_text(path.read_bytes(), path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error


def _from_json(line: bytes, where: str) -> Document:
    value = read_json_line(line, where)
    if isinstance(value, str):
        return Document(where, value)
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        name = value.get("id", value.get("name"))
        return Document(where if name is None else str(name), value["text"])
    raise InputError(f"{where} is not a document", 'give a text, or {"id": ..., "text": ...}')
