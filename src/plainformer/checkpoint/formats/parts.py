"""A model that llama.cpp's `gguf-split` cut into several files: `name-00001-of-00003.gguf` and so on.

The first part has the metadata, each has some of the tensors. Any part is taken for the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from plainformer.checkpoint.formats.gguf_file import open_gguf
from plainformer.checkpoint.formats.opening import merged
from plainformer.checkpoint.formats.source import TensorSource, some
from plainformer.errors import CheckpointError

_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


def part_names(name: str) -> list[str]:
    """Return the names of all files of a model of which `name` is one, first part first."""
    found = _NUMBERED.fullmatch(name)
    if found is None:
        return [name]
    stem, number, count, ending = found.groups()
    if not 1 <= int(number) <= int(count):
        return [name]
    return [f"{stem}-{part:05d}-of-{count}{ending}" for part in range(1, int(count) + 1)]


def whole_models(names: Iterable[str]) -> list[str]:
    """Return the models among GGUF files: each by its only file, or by the first of its parts that is there."""
    first: dict[str, str] = {}
    for name in sorted(names):
        first.setdefault(part_names(name)[0], name)
    return list(first.values())


def open_gguf_model(path: Path) -> TensorSource:
    """Open a GGUF file, with all other parts of its model if it is one of several.

    Raises:
        CheckpointError: a part is missing or belongs to another model, or as `open_gguf`.
    """
    opened = open_gguf(path)
    count = opened.metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return opened
    names = part_names(path.name)
    if len(names) != count:
        fix = "give all parts the names that they were published with: NAME-00001-of-0000N.gguf, in one folder"
        raise CheckpointError(f"{path}: is one of {count} parts of a model, and its name does not say which", fix)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        what = f"{path}: is one of {count} parts of a model, and these are missing: {some(missing)}"
        raise CheckpointError(what, "put them into the same folder")
    parts = [opened if name == path.name else open_gguf(path.parent / name) for name in names]
    for number, part in enumerate(parts):
        if part.metadata.get("split.count") != count or part.metadata.get("split.no") != number:
            what = f"{part.where}: is not part {number + 1} of {count}, which its name says"
            raise CheckpointError(what, "the parts of several models are mixed: keep those of one")
    whole = merged(parts, parts[0].metadata)
    stated = parts[0].metadata.get("split.tensors.count", len(whole.names()))
    if stated != len(whole.names()):
        what = f"{path}: the parts hold {len(whole.names())} tensors, and the first says {stated}"
        raise CheckpointError(what, "the parts of several models are mixed: keep those of one")
    return whole
