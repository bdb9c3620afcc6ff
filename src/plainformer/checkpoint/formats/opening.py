"""Open a checkpoint's weight files as one source of tensors, whatever their format and number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plainformer.checkpoint.formats.gguf_file import open_gguf
from plainformer.checkpoint.formats.safetensors_file import SafetensorsFile
from plainformer.checkpoint.formats.source import INDEX_SUFFIX, TensorSource, require, some, weight_map
from plainformer.checkpoint.formats.torch_file import TorchFile
from plainformer.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch


def open_weights(paths: Sequence[Path]) -> TensorSource:
    """Open one weight file, or all the shards of one checkpoint as a single source.

    Where an `*.index.json` beside the shards lists them, its weight map must agree with what they hold.

    Raises:
        CheckpointError: a file is missing, misnamed, damaged or unsafe; two shards hold the same name.
        UsageError: `paths` is empty.
    """
    if not paths:
        raise UsageError("no weight file was given", "pass the files that find_weights(folder) returns")
    sources: list[TensorSource] = []
    try:
        for path in paths:
            sources.append(_open_one(Path(path)))
        _check_weight_maps([Path(p) for p in paths], sources)
        return sources[0] if len(sources) == 1 else ShardedSource(sources, [Path(p) for p in paths])
    except BaseException:
        for source in sources:
            source.close()
        raise


def _open_one(path: Path) -> TensorSource:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return SafetensorsFile(path)
    if suffix in (".bin", ".pt", ".pth"):
        return TorchFile(path)
    if suffix == ".gguf":
        return open_gguf(path)
    raise CheckpointError(
        f"{path}: {path.suffix!r} is not the ending of a weight format", "known: .safetensors, .bin, .gguf"
    )


class ShardedSource:
    """Several sources that look like one. A name that occurs twice is an error: which one is meant would be a guess."""

    def __init__(self, sources: Sequence[TensorSource], paths: Sequence[Path]) -> None:
        self._sources = list(sources)
        self._owner: dict[str, TensorSource] = {}
        first_path: dict[str, Path] = {}
        for source, path in zip(sources, paths, strict=True):
            for name in source.names():
                if name in self._owner:
                    raise CheckpointError(
                        f"tensor {name!r} is in both {first_path[name].name} and {path.name} of {path.parent}",
                        "files of two checkpoints are mixed in this folder: keep one set and its index",
                    )
                self._owner[name] = source
                first_path[name] = path

    def names(self) -> list[str]:
        return list(self._owner)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name).shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._find(name).dtype(name)

    def read(self, name: str) -> torch.Tensor:
        return self._find(name).read(name)

    def describe(self) -> dict[str, str]:
        parts = [source.describe() for source in self._sources]
        merged = {"format": ", ".join(dict.fromkeys(part["format"] for part in parts))}
        return merged | {"files": str(len(parts)), "tensors": str(len(self._owner))}

    def release(self) -> None:
        for source in self._sources:
            source.release()

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def _find(self, name: str) -> TensorSource:
        return self._owner[require(name, self._owner, "the checkpoint")]


def _check_weight_maps(paths: Sequence[Path], sources: Sequence[TensorSource]) -> None:
    """Refuse shards that do not hold what the index beside them says: they come from different checkpoints.

    A shard may hold more than the index lists (older ones keep buffers there); those tensors stay visible in `names()`.
    """
    listed: dict[Path, set[str]] = {}
    for index in {
        p.parent / (stem + INDEX_SUFFIX) for p in paths for stem in ("model" + p.suffix, "pytorch_model.bin")
    }:
        if index.is_file():
            for tensor, shard in weight_map(index).items():
                listed.setdefault(index.parent / shard, set()).add(tensor)
    for path, source in zip(paths, sources, strict=True):
        absent = listed.get(path, set()).difference(source.names())
        if absent:
            raise CheckpointError(
                f"{path}: the index says that this file holds {some(sorted(absent))}, but it does not",
                "the index and the shards belong to different checkpoints: download both again",
            )
