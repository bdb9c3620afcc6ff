"""Safetensors: memory-mapped reading after a check of the header, and sharded, atomic writing.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data
(https://github.com/huggingface/safetensors#format). The library checks that the header describes the data exactly; here
it is bounded before that, and a file that is something else is named.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.checkpoint.formats.source import (
    INDEX_SUFFIX,
    StoredTensor,
    TensorSource,
    checked_file,
    mapped,
    mapped_tensor,
    parse_json_object,
    wrong_content,
)
from plainformer.config.values import check_whole
from plainformer.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 32 * 2**20  # 100,000 tensors take about 12 MB; forged JSON takes twenty times its size in memory
MAX_DIMS = 64  # torch's limit

# Safetensors' names to torch's.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


def open_safetensors(path: Path) -> TensorSource:
    """Open one `.safetensors` file; reading gives a private memory-mapped view, loaded page by page.

    Raises:
        CheckpointError: the file is missing, misnamed, truncated, or its header does not describe its data.
    """
    header, start = _read_header(checked_file(path))
    _check_with_library(path)
    metadata = header.pop("__metadata__", {})
    data = mapped(path)
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        shape, dtype = tuple(entry["shape"]), _DTYPES.get(entry["dtype"])
        if dtype is None or len(shape) > MAX_DIMS:
            what = f"dtype {entry['dtype']!r}" if dtype is None else f"a shape of {len(shape):,} sizes"
            known = f"supported: at most {MAX_DIMS} sizes, of " + ", ".join(_DTYPES)
            raise CheckpointError(f"{path}: tensor {name!r}: {what} is not supported", known)
        read = partial(mapped_tensor, data, dtype, shape, start + entry["data_offsets"][0])
        tensors[name] = StoredTensor(shape, dtype, read)
    return TensorSource(path, "safetensors", tensors, [data], metadata)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header and where the data begins. Allocates no more than the file's size, whatever the file claims."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            prefix = file.read(9)
            length = int.from_bytes(prefix[:8], "little")
            if len(prefix) < 9 or prefix[8:9] != b"{":
                raise wrong_content(path, "safetensors")
            if length > size - 8:
                what = f"truncated: its header should take {length:,} bytes, the file has {size:,}"
                raise CheckpointError(f"{path}: {what}", "download it again")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(f"{path}: a header of {length:,} bytes is over the limit of {MAX_HEADER_BYTES:,}")
            return parse_json_object(prefix[8:9] + file.read(length - 1), f"{path} (header)"), 8 + length
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _check_with_library(path: Path) -> None:
    """Let the library check that every entry is whole and that the tensors cover the data exactly once."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: truncated, damaged or forged: {error}", "download it again") from error


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
    written to a temporary folder and moved at the end: an interruption leaves the old weights, or an error that says
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
    check_whole("max_shard_bytes", max_shard_bytes)
    folder, stated = Path(folder), {"format": "pt"} if metadata is None else dict(metadata)
    shards: list[list[str]] = []
    total = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
            for shard in _shards(tensors, max_shard_bytes):
                shards.append(list(shard))
                total += _write_shard(shard, Path(temporary) / f"{len(shards)}", stated)
                shard.clear()  # before the next one is gathered
            return _move(Path(temporary), folder, shards, total)
    except OSError as error:
        raise _cannot_write(folder, error.strerror or str(error)) from error


def _cannot_write(folder: Path, cause: str) -> CheckpointError:
    fix = "choose a folder that is writable and has enough free space"
    return CheckpointError(f"{folder}: the weights cannot be written: {cause}", fix)


def _shards(tensors: Iterable[tuple[str, torch.Tensor]], max_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors in shards of at most `max_bytes`, at least one shard."""
    seen: set[str] = set()
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if name in seen or name == "__metadata__":
            raise UsageError(f"tensor name {name!r} is given twice or reserved", "each tensor needs its own name")
        _check_writable(name, tensor)
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        seen.add(name)
        shard[name] = tensor.detach()
        size += tensor.nbytes
    yield shard


def _check_writable(name: str, tensor: torch.Tensor) -> None:
    import torch

    if tensor.layout != torch.strided or str(tensor.dtype).removeprefix("torch.") not in _DTYPES.values():
        raise UsageError(
            f"tensor {name!r} ({tensor.dtype}, {tensor.layout}) has no place in a safetensors file",
            "convert it to a dense tensor of an ordinary dtype first",
        )
    if tensor.device.type == "meta":
        raise UsageError(f"tensor {name!r} is on the meta device: it has no values", "load or initialise it first")


def _write_shard(shard: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> int:
    """Write one file; return the bytes of its tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    size, free = sum(tensor.nbytes for tensor in shard.values()), shutil.disk_usage(path.parent).free
    if size > free:
        raise _cannot_write(path.parent.parent, f"{size:,} bytes are needed, {free:,} are free")
    try:
        save_file(_unshared({name: tensor.cpu().contiguous() for name, tensor in shard.items()}), path, metadata)
    except (SafetensorError, ValueError) as error:
        raise _cannot_write(path.parent.parent, str(error)) from error
    with path.open("rb+") as file:  # the move must not reach the disk before the data does
        os.fsync(file.fileno())
    return size


def _move(temporary: Path, folder: Path, shards: list[list[str]], total_bytes: int) -> list[Path]:
    """Give the shards their names, write the index, remove what an earlier write left."""
    count, index = len(shards), "model.safetensors" + INDEX_SUFFIX
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    names = names if count > 1 else ["model.safetensors"]
    pattern = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
    stale = {entry.name for entry in folder.iterdir() if pattern.fullmatch(entry.name)}
    if stale.intersection(names):  # an interruption between the moves must not leave an index over mixed shards
        (folder / index).unlink(missing_ok=True)
    for number, name in enumerate(names, start=1):
        os.replace(temporary / f"{number}", folder / name)
    if count > 1:
        table = {tensor: name for tensors, name in zip(shards, names, strict=True) for tensor in tensors}
        content = {"metadata": {"total_size": total_bytes}, "weight_map": table}
        (temporary / index).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary / index, folder / index)
        stale.discard(index)
    for name in stale.difference(names):
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in names]


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same tensors, copied where two would cover the same memory, which the library refuses to write."""
    end_of_last = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if tensor.nbytes and tensor.data_ptr() < end_of_last:
            tensors[name] = tensor.clone()
        elif tensor.nbytes:
            end_of_last = tensor.data_ptr() + tensor.nbytes
    return tensors
