"""GGUF: a bounded reader of the header, and dequantisation by the `gguf` library.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is read here and not by
`gguf.GGUFReader` for two reasons: that one trusts every count in the file, and it makes several arrays for every token
of a vocabulary (5 s for 49,000 tokens, where this takes a tenth of a second). The bit layouts of the quantisation types
are the library's.
"""

from __future__ import annotations

import math
import mmap
import struct
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.checkpoint.formats.source import (
    StoredTensor,
    TensorSource,
    checked_file,
    mapped,
    mapped_tensor,
    wrong_content,
)
from plainformer.errors import CheckpointError

if TYPE_CHECKING:
    import torch

VERSIONS = (2, 3)
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_KEY_BYTES = 65_535  # the specification's limit
# A forged count must not turn gigabytes of weights into Python objects. Real vocabularies end at 262,144 tokens.
MAX_ARRAY_ITEMS = 2**23
MAX_METADATA_BYTES = 2**28
MAX_ARRAY_DEPTH = 4
DEFAULT_ALIGNMENT = 32

STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4", "NVFP4")
_K_BLOCKS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_I_BLOCKS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS")
_TERNARY = ("TQ1_0", "TQ2_0")
QUANTISED = _BLOCKS + _K_BLOCKS + _I_BLOCKS + _TERNARY
_SUPPORTED = "supported: " + ", ".join((*STORED, *QUANTISED))

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_FIX = "the file is damaged or forged: download it again"


def open_gguf(path: Path) -> TensorSource:
    """Open a GGUF file (version 2 or 3, little-endian); its key-value pairs are the source's `metadata`.

    Raises:
        CheckpointError: missing, misnamed, big-endian, of another version, truncated, or with a header that does not
            fit the file.
    """
    header = _Header(path, mapped(checked_file(path)))
    return TensorSource(path, f"gguf version {header.version}", header.tensors, [header.data], header.metadata)


def _read(data: mmap.mmap, kind: str, shape: tuple[int, ...], start: int) -> torch.Tensor:
    if kind in STORED:
        return mapped_tensor(data, STORED[kind], shape, start)
    return _dequantise(data, kind, shape, start)


def _dequantise(data: mmap.mmap, kind: str, shape: tuple[int, ...], start: int) -> torch.Tensor:
    import numpy as np

    from plainformer.model.fast.blocks import dequantise

    size = stored_size(kind, math.prod(shape))
    return dequantise(np.frombuffer(data, dtype=np.uint8, count=size, offset=start), kind, shape)


def _blocks(data: mmap.mmap, kind: str, shape: tuple[int, ...], start: int) -> torch.Tensor:
    """Return a matrix as its bytes, (rows, bytes of a row)."""
    return mapped_tensor(data, "uint8", (shape[0], stored_size(kind, shape[1])), start)


def stored_size(kind: str, numbers: int) -> int:
    """Return the bytes of numbers that are whole blocks."""
    import gguf

    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return numbers // block_elements * block_bytes


class _Header:
    """Walk the header once, checking every count against the bytes that are left before it is believed."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data = path, data
        self._size, self._at, self._items = len(data), 0, 0
        self._end = min(self._size, MAX_METADATA_BYTES)
        self.version = self._read_version()
        tensor_count, pair_count = self._unpack("<QQ")
        self._check_count(tensor_count, 24, "tensors")
        self._check_count(pair_count, 13, "metadata entries")
        self.metadata = self._read_metadata(pair_count)
        self.tensors = self._read_tensors(tensor_count)

    def _fail(self, what: str, fix: str = _FIX) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}", fix)

    def _read_version(self) -> int:
        if self.data[:4] != b"GGUF":
            raise wrong_content(self.path, "GGUF")
        self._at = 4
        version = int(self._unpack("<I")[0])
        if version not in VERSIONS:
            if version & 0xFFFF == 0 and version:
                raise self._fail("is big-endian", "convert it with gguf's gguf-convert-endian to little-endian")
            raise self._fail(f"is GGUF version {version}; versions {VERSIONS} are supported", "convert the model anew")
        return version

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        size = struct.calcsize(layout)
        if self._at + size > self._end:
            raise self._ends_early()
        values = struct.unpack_from(layout, self.data, self._at)
        self._at += size
        return values

    def _ends_early(self) -> CheckpointError:
        if self._end < self._size:
            return self._fail(f"the header is longer than {MAX_METADATA_BYTES:,} bytes")
        return self._fail(f"truncated: the header goes on beyond the file's {self._size:,} bytes", "download it again")

    def _check_count(self, count: int, least_bytes: int, what: str) -> None:
        if count > (self._end - self._at) // least_bytes:
            raise self._fail(f"claims {count:,} {what}, more than fit into its {self._size:,} bytes")

    def _strings(self, count: int, limit: int = MAX_METADATA_BYTES) -> list[str]:
        """Return the next strings; one loop without calls, since vocabularies have 10^5 of them."""
        data, at, end, length_of = self.data, self._at, self._end, _LENGTH.unpack_from
        strings: list[str] = []
        for _ in range(count):
            start = at + 8
            if start > end:
                raise self._ends_early()
            length = length_of(data, at)[0]
            at = start + length
            if at > end or length > limit:
                raise self._fail(f"claims a string of {length:,} bytes at byte {start:,}, which does not fit")
            try:
                strings.append(data[start:at].decode("utf-8"))
            except UnicodeDecodeError:
                raise self._fail(f"holds a string that is not UTF-8 at byte {start:,}") from None
        self._at = at
        return strings

    # ------------------------------------------------------------------------------------------------------ metadata

    def _read_metadata(self, count: int) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for _ in range(count):
            (key,) = self._strings(1, MAX_KEY_BYTES)
            if key in table:
                raise self._fail(f"metadata key {key!r} occurs twice")
            table[key] = self._values(self._unpack("<I")[0], 1, key, depth=0)[0]
        return table

    def _values(self, kind: int, count: int, key: str, depth: int) -> list[Any]:
        """Return the next values, all of one type."""
        scalar = _SCALARS.get(kind)
        least = struct.calcsize("<" + scalar) if scalar else 8
        if count > 1:  # one value alone is checked where it is read
            self._check_count(count, least, f"items in {key!r}")
        self._items += count
        if self._items > MAX_ARRAY_ITEMS:
            raise self._fail(f"metadata {key!r}: arrays of more than {MAX_ARRAY_ITEMS:,} items in all")
        if scalar:
            return list(self._unpack(f"<{count}{scalar}"))
        if kind == _STRING:
            return self._strings(count)
        if kind != _ARRAY:
            raise self._fail(f"metadata {key!r} has the unknown type {kind}")
        if depth >= MAX_ARRAY_DEPTH:
            raise self._fail(f"metadata {key!r}: arrays nested deeper than {MAX_ARRAY_DEPTH}")
        heads = (self._unpack("<IQ") for _ in range(count))  # each array says the type and the count of its values
        return [self._values(item_kind, items, key, depth + 1) for item_kind, items in heads]

    # ------------------------------------------------------------------------------------------------------- tensors

    def _read_tensors(self, count: int) -> dict[str, StoredTensor]:
        infos = [self._tensor_info() for _ in range(count)]
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1) or alignment > 2**20:
            raise self._fail(f"general.alignment={str(alignment)[:40]} is not a power of two from 8")
        data_start = -(-self._at // alignment) * alignment
        table: dict[str, StoredTensor] = {}
        places: list[tuple[int, int, str]] = []
        for name, shape, type_number, offset in infos:
            if name in table:
                raise self._fail(f"tensor {name!r} occurs twice")
            if offset % alignment:
                raise self._fail(f"tensor {name!r}: offset {offset:,} is not a multiple of the alignment {alignment}")
            kind, size = self._kind_and_size(name, shape, type_number)
            start, end = data_start + offset, data_start + offset + size
            if end > self._size:
                what = f"tensor {name!r} ({kind}, {list(shape)}) ends at byte {end:,}, the file has {self._size:,}"
                raise self._fail(f"truncated: {what}", "download it again")
            where = self.data, kind, shape, start
            as_bytes = partial(_blocks, *where) if kind in QUANTISED and len(shape) == 2 else None
            table[name] = StoredTensor(shape, kind, partial(_read, *where), as_bytes)
            if size:
                places.append((start, end, name))
        places.sort()
        for (_, end, before), (start, _, name) in pairwise(places):
            if start < end:
                raise self._fail(f"tensors {before!r} and {name!r} overlap")
        return table

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        (name,) = self._strings(1, MAX_KEY_BYTES)
        dim_count = self._unpack("<I")[0]
        if dim_count > MAX_DIMS:
            raise self._fail(f"tensor {name!r} has {dim_count:,} dimensions; {MAX_DIMS} are the limit")
        shape = self._unpack(f"<{dim_count}Q")[::-1]
        if any(size >= 2**63 for size in shape):
            raise self._fail(f"tensor {name!r} has the impossible shape {list(shape)}")
        return name, shape, *self._unpack("<IQ")

    def _kind_and_size(self, name: str, shape: tuple[int, ...], type_number: int) -> tuple[str, int]:
        import gguf

        try:
            kind = gguf.GGMLQuantizationType(type_number)
            block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise self._fail(f"tensor {name!r} has the unknown type number {type_number}", _SUPPORTED) from None
        if kind.name not in STORED and kind.name not in QUANTISED:
            raise self._fail(f"tensor {name!r} is stored as {kind.name}, which is not supported", _SUPPORTED)
        row = shape[-1] if shape else 1
        if row % block_elements:
            raise self._fail(f"tensor {name!r}: rows of {row:,} are not whole {kind.name} blocks of {block_elements}")
        return kind.name, math.prod(shape) // block_elements * block_bytes
