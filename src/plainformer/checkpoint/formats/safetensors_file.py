"""Safetensors: memory-mapped reading after a check of the header, and sharded, atomic writing.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data
(https://github.com/huggingface/safetensors#format). The library checks a header too; ours comes first because it can
say which tensor is wrong and why, and what the file is when it is not a safetensors file at all.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from plainformer.checkpoint.formats.source import (
    checked_file,
    mapped,
    parse_json_object,
    release_pages,
    require,
    wrong_content,
)
from plainformer.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 32 * 2**20  # 100,000 tensors take about 12 MB; forged JSON takes twenty times its size in memory
MAX_DIMS = 64  # torch's limit

# Safetensors' names to torch's, with bytes an element.
_DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
}
_WRITABLE = {torch_name for torch_name, _ in _DTYPES.values()}


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """One `.safetensors` file as a `TensorSource`; `read` gives a private memory-mapped view, loaded page by page.

    Raises:
        CheckpointError: the file is missing, misnamed, truncated, or its header does not describe its data.
    """

    def __init__(self, path: Path) -> None:
        self.path = checked_file(Path(path))
        self._entries, self.metadata, self._start = _read_header(self.path)
        _check_with_library(self.path)
        self._data: mmap.mmap | None = mapped(self.path)

    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        import torch

        return cast("torch.dtype", getattr(torch, _DTYPES[self._entry(name).dtype][0]))

    def read(self, name: str) -> torch.Tensor:
        import torch

        entry = self._entry(name)
        if self._data is None:
            raise UsageError(f"{self.path}: is closed", "read tensors before close()")
        dtype, start, size = self.dtype(name), self._start + entry.start, entry.end - entry.start
        if not size:
            return torch.empty(entry.shape, dtype=dtype)
        if start % dtype.itemsize:  # other writers align nothing; torch's kernels may want it
            return (
                torch.frombuffer(self._data, dtype=torch.uint8, count=size, offset=start)
                .clone()
                .view(dtype)
                .view(entry.shape)
            )
        count = math.prod(entry.shape)
        return torch.frombuffer(self._data, dtype=dtype, count=count, offset=start).view(entry.shape)

    def describe(self) -> dict[str, str]:
        counts = Counter(entry.dtype for entry in self._entries.values())
        dtypes = ", ".join(f"{dtype} × {count}" for dtype, count in counts.most_common())
        return {"format": "safetensors", "files": "1", "tensors": str(len(self._entries)), "dtypes": dtypes}

    def release(self) -> None:
        release_pages(self._data)

    def close(self) -> None:
        self._data = None  # tensors keep the mapping alive by themselves

    def _entry(self, name: str) -> _Entry:
        return self._entries[require(name, self._entries, self.path)]


def _check_with_library(path: Path) -> None:
    """Ask the library for a second opinion on the header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the safetensors library refuses it: {error}", "download it again") from error


def _read_header(path: Path) -> tuple[dict[str, _Entry], dict[str, str], int]:
    """Return the checked header and where the data begins. Allocates no more than the file's size, whatever the file claims."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            prefix = file.read(9)
            length = int.from_bytes(prefix[:8], "little")
            if len(prefix) < 9 or prefix[8:9] != b"{":
                raise wrong_content(path, "safetensors")
            if length > size - 8:
                raise CheckpointError(
                    f"{path}: truncated: its header should take {length:,} bytes, the file has {size:,}",
                    "download it again",
                )
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(f"{path}: a header of {length:,} bytes is over the limit of {MAX_HEADER_BYTES:,}")
            header = parse_json_object(prefix[8:9] + file.read(length - 1), f"{path} (header)")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: '__metadata__' must map strings to strings", "the header is damaged")
    entries = {name: _checked_entry(path, name, raw) for name, raw in header.items()}
    _check_layout(path, entries, size - 8 - length)
    return entries, metadata, 8 + length


def _checked_entry(path: Path, name: str, raw: object) -> _Entry:
    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!r}: {what}", "the header is damaged or forged: download it again")

    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise bad("must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise bad(f"dtype {dtype!r} is not supported; supported: {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(_is_size(dim) for dim in shape):
        raise bad(f"shape {str(shape)[:80]} is not a list of at most {MAX_DIMS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise bad(f"data_offsets {str(offsets)[:80]} is not [begin, end]")
    needed = math.prod(shape) * _DTYPES[dtype][1]
    if offsets[1] - offsets[0] != needed:
        raise bad(f"shape {shape} of {dtype} takes {needed:,} bytes, but data_offsets {offsets} do not span that")
    return _Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _check_layout(path: Path, entries: Mapping[str, _Entry], data_bytes: int) -> None:
    """Check that the tensors cover the data part exactly once: no overlap, no hole, no end beyond the file."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.end > data_bytes:
            raise CheckpointError(
                f"{path}: truncated: tensor {name!r} ends at data byte {entry.end:,}, the file holds {data_bytes:,}",
                "download it again",
            )
        if entry.start != position:
            what = "overlaps the one before it" if entry.start < position else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {name!r} at data byte {entry.start:,} {what}", "the file is forged")
        position = entry.end
    if position != data_bytes:
        raise CheckpointError(
            f"{path}: {data_bytes - position:,} bytes after the last tensor belong to no tensor", "download it again"
        )


# ------------------------------------------------------------------------------------------------------------ writing


def write_safetensors(
    tensors: Iterable[tuple[str, torch.Tensor]],
    folder: Path,
    *,
    max_shard_bytes: int = 5 * 2**30,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write `model.safetensors`, or `model-00001-of-0000N.safetensors` and their index when one file would be too big.

    Tensors are consumed one shard at a time, so a generator keeps at most one shard in memory. Everything is first
    written under temporary names and renamed at the end: an interruption leaves the old weights, or an error that says
    weights are missing, never a mix. Weights of an earlier write in the same folder are then removed, since a reader
    could prefer them. Names that share memory are each written in full; leave one of them out to keep a tie.

    Args:
        tensors: (name, tensor) pairs; any device, any strides.
        folder: created when it does not exist.
        max_shard_bytes: default 5 GiB. A tensor larger than this gets a shard of its own.
        metadata: strings for the header; default `{"format": "pt"}`, which other readers look for.

    Returns:
        the weight files (without the index).

    Raises:
        UsageError: a name occurs twice, a dtype has no place in the format, `max_shard_bytes` is not positive.
        CheckpointError: the folder cannot be written, or the disk is full.
    """
    if max_shard_bytes <= 0:
        raise UsageError(f"max_shard_bytes={max_shard_bytes} must be positive", "leave it out for 5 GiB")
    folder = Path(folder)
    writer = _ShardWriter(folder, dict(metadata) if metadata is not None else {"format": "pt"})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensor in tensors:
            writer.add(name, tensor, max_shard_bytes)
        return writer.finish()
    except OSError as error:
        raise _cannot_write(folder, error.strerror or str(error)) from error
    finally:
        writer.remove_temporary_files()


def _cannot_write(folder: Path, cause: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: the weights cannot be written: {cause}",
        "choose a folder that is writable and has enough free space",
    )


class _ShardWriter:
    def __init__(self, folder: Path, metadata: dict[str, str]) -> None:
        self._folder = folder
        self._metadata = metadata
        self._token = secrets.token_hex(4)
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._total_bytes = 0
        self._seen: set[str] = set()
        self._shards: list[tuple[Path, list[str]]] = []

    def add(self, name: str, tensor: torch.Tensor, max_shard_bytes: int) -> None:
        import torch

        if name in self._seen or name == "__metadata__":
            raise UsageError(f"tensor name {name!r} is given twice or reserved", "each tensor needs its own name")
        if tensor.layout != torch.strided or str(tensor.dtype).removeprefix("torch.") not in _WRITABLE:
            raise UsageError(
                f"tensor {name!r} ({tensor.dtype}, {tensor.layout}) has no place in a safetensors file",
                "convert it to a dense tensor of an ordinary dtype first",
            )
        if tensor.device.type == "meta":
            raise UsageError(f"tensor {name!r} is on the meta device: it has no values", "load or initialise it first")
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > max_shard_bytes:
            self._flush()
        self._seen.add(name)
        self._pending[name] = tensor.detach()
        self._pending_bytes += size
        self._total_bytes += size

    def _flush(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self._folder / f".model-{len(self._shards) + 1:05d}.{self._token}.tmp"
        self._shards.append((path, list(self._pending)))
        self._check_space()
        tensors = _unshared({name: tensor.cpu().contiguous() for name, tensor in self._pending.items()})
        try:
            save_file(tensors, path, metadata=self._metadata)
        except (SafetensorError, ValueError) as error:
            raise _cannot_write(self._folder, str(error)) from error
        with path.open("rb+") as file:  # the rename must not reach the disk before the data does
            os.fsync(file.fileno())
        self._pending, self._pending_bytes = {}, 0

    def _check_space(self) -> None:
        import shutil

        free = shutil.disk_usage(self._folder).free
        if self._pending_bytes > free:
            raise _cannot_write(self._folder, f"{self._pending_bytes:,} bytes are needed, {free:,} are free")

    def finish(self) -> list[Path]:
        """Give the shards their names, write the index, remove what an earlier write left."""
        if self._pending or not self._shards:
            self._flush()
        count = len(self._shards)
        if count == 1:
            names = ["model.safetensors"]
        else:
            names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        index = self._folder / "model.safetensors.index.json"
        stale = _written_files(self._folder).difference(names)
        if set(names) & _written_files(self._folder) and index.exists():
            index.unlink()  # else an interruption between the renames below would leave an index over mixed shards
        for (temporary, _), name in zip(self._shards, names, strict=True):
            os.replace(temporary, self._folder / name)
        if count > 1:
            self._write_index(index, names)
            stale.discard(index.name)
        for name in stale:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).unlink()
        return [self._folder / name for name in names]

    def _write_index(self, index: Path, names: list[str]) -> None:
        table = {tensor: name for (_, tensors), name in zip(self._shards, names, strict=True) for tensor in tensors}
        content = {"metadata": {"total_size": self._total_bytes}, "weight_map": table}
        temporary = index.with_name(f".{index.name}.{self._token}.tmp")
        self._shards.append((temporary, []))  # so that it is cleaned up after a failure
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, index)

    def remove_temporary_files(self) -> None:
        for path, _ in self._shards:
            with contextlib.suppress(OSError):
                path.unlink()


def _written_files(folder: Path) -> set[str]:
    pattern = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
    return {entry.name for entry in folder.iterdir() if pattern.fullmatch(entry.name)}


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Yield the same tensors, copied where two would cover the same memory, which the library refuses to write."""
    end_of_last = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        size = tensor.numel() * tensor.element_size()
        if size and tensor.data_ptr() < end_of_last:
            tensors[name] = tensor.clone()
        elif size:
            end_of_last = tensor.data_ptr() + size
    return tensors
