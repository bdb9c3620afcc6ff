"""Open a checkpoint's weight files as one source of tensors, whatever their format and number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plainformer.checkpoint.formats.gguf_file import open_gguf
from plainformer.checkpoint.formats.safetensors_file import open_safetensors
from plainformer.checkpoint.formats.source import (
    INDEX_SUFFIX,
    WEIGHT_FILES,
    StoredTensor,
    TensorSource,
    some,
    weight_map,
)
from plainformer.checkpoint.formats.torch_file import open_torch
from plainformer.errors import CheckpointError, UsageError

_OPENERS = {
    ".safetensors": open_safetensors,
    ".bin": open_torch,
    ".pt": open_torch,
    ".pth": open_torch,
    ".gguf": open_gguf,
}


def open_weights(paths: Sequence[Path]) -> TensorSource:
    """Open one weight file, or all the shards of one checkpoint as a single source.

    Where an `*.index.json` beside the shards lists them, its weight map must agree with what they hold.

    Raises:
        CheckpointError: a file is missing, misnamed, damaged or unsafe; two shards hold the same name.
        UsageError: `paths` is empty.
    """
    if not paths:
        raise UsageError("no weight file was given", "pass the files that find_weights(folder) returns")
    sources = [_open_one(Path(path)) for path in paths]
    _check_weight_maps(sources)
    return sources[0] if len(sources) == 1 else merged(sources)


def _open_one(path: Path) -> TensorSource:
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        known = "known: .safetensors, .bin, .gguf"
        raise CheckpointError(f"{path}: {path.suffix!r} is not the ending of a weight format", known)
    return opener(path)


def merged(sources: Sequence[TensorSource], metadata: dict[str, Any] | None = None) -> TensorSource:
    """Return shards as one source, with the given metadata.

    A name that occurs twice is an error: which one is meant would be a guess.
    """
    tensors: dict[str, StoredTensor] = {}
    owners: dict[str, Path] = {}
    for source in sources:
        for name, tensor in source.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor {name!r} is in both {owners[name].name} and {source.where.name} of {source.where.parent}",
                    "files of two checkpoints are mixed in this folder: keep one set and its index",
                )
            tensors[name], owners[name] = tensor, source.where
    maps = [data for source in sources for data in source.maps]
    kind = ", ".join(dict.fromkeys(source.kind for source in sources))
    return TensorSource(sources[0].where.parent, kind, tensors, maps, metadata, len(sources))


def _check_weight_maps(sources: Sequence[TensorSource]) -> None:
    """Refuse shards that do not hold what the index beside them says: they come from different checkpoints.

    A shard may hold more than the index lists (older ones keep buffers there); those tensors stay visible in `names()`.
    """
    listed: dict[Path, set[str]] = {}
    for folder in {source.where.parent for source in sources}:
        for index in (folder / name for name in WEIGHT_FILES if name.endswith(INDEX_SUFFIX)):
            for tensor, shard in weight_map(index).items() if index.is_file() else ():
                listed.setdefault(folder / shard, set()).add(tensor)
    for source in sources:
        absent = listed.get(source.where, set()).difference(source.tensors)
        if absent:
            raise CheckpointError(
                f"{source.where}: the index says that this file holds {some(sorted(absent))}, but it does not",
                "the index and the shards belong to different checkpoints: take both from one",
            )
