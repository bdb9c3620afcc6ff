"""Rows of a data set: from a file, a folder, a pattern, or the Hub.

| format | rows | known by |
|---|---|---|
| text | each file: text, file | .txt .md .rst, source code; a folder of them |
| paragraphs, lines | each run of lines without a blank one, each line: text, file | said in `format` |
| jsonl, json | each object | .jsonl .ndjson; .json that begins with [ |
| csv, tsv | each record; tsv has no quoting | .csv .tsv .tab |
| conll | each sentence: tokens, tags | .conll .iob .bio .conllu |
| squad | each question: id, question, context, answers, title, is_impossible | .json |
| audio, images | each file: audio or image, with a list's columns, text or label | a folder of them |
| npz | each index: the arrays' names | .npz |
| parquet, arrow, hub | each row (`datasets`) | .parquet .arrow; `format: hub` |

All of text may be compressed (.gz) and is UTF-8, with or without a byte order mark; lines end in LF or CR LF.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from glob import glob
from itertools import islice, takewhile
from pathlib import Path

from plainformer.config.training import FORMATS, SourceConfig
from plainformer.config.values import no_effect
from plainformer.data.counts import Counts
from plainformer.data.files import files_in, suffix_of
from plainformer.data.formats.arrays import read_npz
from plainformer.data.formats.conll import read_conll
from plainformer.data.formats.json_files import looks_like, read_json, read_jsonl, read_squad
from plainformer.data.formats.media import IMAGES, SOUNDS, read_audio, read_images
from plainformer.data.formats.tabled import read_tabled, tables
from plainformer.data.formats.tables import read_csv, read_tsv
from plainformer.data.formats.texts import read_lines, read_paragraphs, read_text
from plainformer.data.rows import DataRow, MediaPath, Reading
from plainformer.errors import InputError, opt, plural

READERS: dict[str, Callable[[Reading], Iterator[DataRow]]] = {
    "text": read_text,
    "paragraphs": read_paragraphs,
    "lines": read_lines,
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "conll": read_conll,
    "squad": read_squad,
    "audio": read_audio,
    "images": read_images,
    "npz": read_npz,
    **dict.fromkeys(("parquet", "arrow", "hub"), read_tabled),
}
_CODE = (
    ".py .pyi .c .h .cc .cpp .hpp .cs .java .kt .js .mjs .ts .tsx .go .rs .rb .php .pl .lua .r .jl .scala .sh .sql .tex"
)
TEXTS = frozenset(f".txt .text .md .rst .html .htm .css {_CODE}".split())
SUFFIXES: dict[str, str] = {
    **dict.fromkeys(TEXTS, "text"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".conll", ".iob", ".bio", ".conllu"), "conll"),
    **dict.fromkeys(SOUNDS, "audio"),
    **dict.fromkeys(IMAGES, "images"),
    ".json": "json",
    ".csv": "csv",
    ".npz": "npz",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
# Formats whose files have the suffixes of another.
_LIKE = {"paragraphs": "text", "lines": "text", "squad": "json"}


class Rows:
    """The rows of one source; each pass over them reads the files anew.

    Attributes:
        format: as given, or known by the name. files: what is read.
        counts: what the last pass read and passed over.
    """

    def __init__(self, reading: Reading, format: str, others: Sequence[Path] = ()) -> None:
        self._reading, self._others, self.format = reading, others, format
        self.files = reading.files
        self.counts = Counts()

    def __iter__(self) -> Iterator[DataRow]:
        counts = self.counts = Counts()
        for path in self._others:
            counts.skip("file of another kind", self._reading.name(path))
        reading = replace(self._reading, counts=counts)
        for row in islice(READERS[self.format](reading), reading.source.limit):
            counts.rows += 1
            yield row
        if not counts.rows:
            raise InputError(f"{reading.source.path} has no rows", "check the path and the format")

    def digest(self) -> str:
        """Return a hash of all that decides which rows these are: the files' bytes and names, format and options."""
        source = self._reading.source
        options = (self.format, source.name, source.split, source.header, source.limit, self._reading.numbered)
        state = hashlib.blake2b(repr(options).encode(), digest_size=16)
        if self.format == "hub":
            state.update("".join(table._fingerprint for _, table in tables(self._reading)).encode())
        for path in [*self.files, *self._listed()]:
            state.update(os.fsencode(self._reading.name(path)) + b"\0")
            with path.open("rb") as file:
                state.update(hashlib.file_digest(file, "blake2b").digest())
        return state.hexdigest()

    def _listed(self) -> list[Path]:
        """Return the clips or images that rows name and `files` lacks: those of a list that was given by itself."""
        if self.format not in ("audio", "images"):
            return []
        known = set(self.files)
        named = (Path(value) for row in self for value in row.values() if isinstance(value, MediaPath))
        return [path for path in dict.fromkeys(named) if path not in known]


def read(source: SourceConfig, columns: Mapping[str, str | int] | None = None) -> Rows:
    """Return the rows of a source, unread.

    Args:
        source: where they are.
        columns: `data.columns`; numbers in it say that a csv or tsv file has no header, unless `source.header` says.
    Raises:
        InputError: no such file, or a format that its name does not tell. UsageError: an option without effect.
    """
    numbered = any(isinstance(column, int) for column in (columns or {}).values())
    if source.format == "hub":
        _check_options(source, "hub")
        return Rows(Reading(source, Path(), (), numbered), "hub")
    root, found, whole = _found(source)
    format = source.format or _format_of(source, root, found, whole)
    _check_options(source, format)
    files = [path for path in found if _fits(path, format)] if whole else found
    if not files:
        raise InputError(f"{source.path} has no file of format {format}", "check the path and the format")
    others = sorted(set(found) - set(files))
    return Rows(Reading(source, root, tuple(files), numbered), format, others)


def _found(source: SourceConfig) -> tuple[Path, list[Path], bool]:
    """Return the folder that places are told from, the files, and whether they are all of a folder."""
    if not source.path.strip():
        raise InputError(f"the path of the data is {source.path!r}", "give a file, a folder or a pattern")
    path = Path(source.path).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            raise InputError(f"{source.path} holds several splits", f"give one of them, such as {path / 'train'}")
        return path, files_in(path), True
    if path.is_file():
        return path.parent, [path], False
    if any(sign in source.path for sign in "*?["):
        matched = sorted(Path(one) for one in glob(str(path), recursive=True))
        files = [one for one in matched if one.is_file()]
        if not files:
            raise InputError(f"no file fits the pattern {source.path!r}", "check it; ** stands for any folders")
        fixed = takewhile(lambda part: not any(sign in part for sign in "*?["), path.parts)
        return Path(*fixed), files, False
    hub = len(path.parts) == 2 and not path.is_absolute()
    fix = "check the path" + ("; a data set on the Hub needs format: hub" if hub else "")
    raise InputError(f"there is no file or folder {source.path!r}", fix)


def _format_of(source: SourceConfig, root: Path, found: list[Path], whole: bool) -> str:
    """Return the format that the names of files tell."""
    if whole and (root / "state.json").is_file():  # a folder that `datasets` wrote
        return "arrow"
    kinds = Counter(SUFFIXES.get(suffix_of(path), "") for path in found)
    media = [kind for kind in ("audio", "images") if kinds[kind]] if whole else []
    known = media or [kind for kind in kinds if kind]
    if not whole and ("audio" in known or "images" in known):
        raise InputError(f"{source.path} is one file of {known[0]}", "give its folder")
    if not found:
        raise InputError(f"the folder {source.path!r} is empty", "check the path")
    if not known:
        suffixes = ", ".join(sorted({path.suffix or "none" for path in found})[:5])
        raise InputError(
            f"{source.path}: nothing is known of files with the suffix {suffixes}",
            f"say their {opt('format')}: {', '.join(FORMATS)}",
        )
    if len(known) > 1 or (not whole and kinds[""]):
        said = ", ".join(plural(count, f"{kind or 'unknown'} file") for kind, count in kinds.most_common())
        raise InputError(f"{source.path} holds files of several kinds: {said}", f"say which {opt('format')} is meant")
    if known[0] == "json":
        first = next(path for path in found if suffix_of(path) == ".json")
        return looks_like(first, first.name)
    return known[0]


def _fits(path: Path, format: str) -> bool:
    """Return whether a file of a folder is read for a format."""
    suffix = suffix_of(path)
    if format in ("audio", "images"):
        return SUFFIXES.get(suffix) in (format, "jsonl", "csv", "tsv") or (format == "audio" and suffix == ".txt")
    return SUFFIXES.get(suffix) == _LIKE.get(format, format)


def _check_options(source: SourceConfig, format: str) -> None:
    why = f"on data of format {format}"
    no_effect(source.name is not None and format != "hub", "name", why)
    no_effect(source.split is not None and format not in ("hub", "npz"), "split", why)
    no_effect(source.header is not None and format not in ("csv", "tsv", "audio", "images"), "header", why)
