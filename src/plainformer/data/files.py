"""Files of data sets: found in folders, opened compressed or not, read line by line. Each failure names its place."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from plainformer.config.values import decode_text
from plainformer.errors import InputError

if TYPE_CHECKING:
    from plainformer.data.rows import Reading

MAX_LINE_BYTES = 256 * 2**20  # a longer line is not a row but a file of another format
_BOM = b"\xef\xbb\xbf"


def suffix_of(path: Path) -> str:
    """Return a file's suffix in lower case, without that of its compression: ".jsonl" of packages.jsonl.gz."""
    path = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return path.suffix.lower()


def files_in(folder: Path) -> list[Path]:
    """Return all files of a folder and of its folders by name, without hidden ones."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


@contextmanager
def opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Open a file, decompressed; `name` is what messages call it.

    Raises:
        InputError: it cannot be opened or, while it is read, decompressed.
    """
    try:
        with path.open("rb") as raw:
            if path.suffix.lower() == ".gz":
                with gzip.open(raw, "rb") as unpacked:
                    yield unpacked  # type: ignore[misc]  # gzip's own type of file
            else:
                yield raw
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{name} is not a whole gzip file: {error}", "copy or download it again") from None
    except OSError as error:
        raise InputError(
            f"{name} cannot be read: {error.strerror or error}", "check the path and permissions"
        ) from None


def text_lines(path: Path, name: str, *, ends: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers from 1, without byte order mark and, unless `ends`, line ends."""
    with opened(path, name) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise InputError(
                    f"{name} line {number} is longer than {MAX_LINE_BYTES // 2**20} MiB",
                    "is it a file of another format? Give the format",
                )
            if number == 1 and line.startswith(_BOM):
                line = line[len(_BOM) :]
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{name} line {number} is not UTF-8 text: byte {error.start} of the line is 0x{line[error.start]:02x}",
                    "convert the file, e.g. with iconv",
                ) from None
            yield number, text if ends else text.rstrip("\n").removesuffix("\r")


def whole_text(path: Path, name: str) -> str:
    """Return the text of a UTF-8 file, without a byte order mark; line ends become "\\n"."""
    with opened(path, name) as file:
        data = file.read()
    return decode_text(data, name).replace("\r\n", "\n")


def unreadable(name: str, error: BaseException, fix: str) -> InputError:
    """Return the error for a file that a library cannot read."""
    said: Any = error.args[0] if error.args else type(error).__name__
    return InputError(f"{name} cannot be read: {said}", fix)


def filled_lines(reading: Reading) -> Iterator[tuple[str, str, str]]:
    """Yield each line that is not blank, with its file's name and its place; blank ones are counted."""
    for path in reading.files:
        name = reading.name(path)
        for number, line in text_lines(path, name):
            place = f"{name} line {number}"
            if line.strip():
                yield line, name, place
            else:
                reading.counts.skip("blank line", place)
