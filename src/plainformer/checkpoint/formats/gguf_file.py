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
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.checkpoint.formats.source import checked_file, mapped, release_pages, require, wrong_content
from plainformer.errors import CheckpointError, UsageError

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
# Large enough that numpy's overhead vanishes, small enough for a cache: 6 times faster than the library's 16 rows.
CHUNK_ELEMENTS = 1 << 17

STORED = ("F32", "F16", "BF16")
QUANTISED = (
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
)

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FIX = "the file is damaged or forged: download it again"


@dataclass(frozen=True)
class _Tensor:
    type_name: str
    shape: tuple[int, ...]
    start: int
    size: int


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF file (version 2 or 3, little-endian).

    Raises:
        CheckpointError: missing, misnamed, big-endian, of another version, truncated, or with a header that does not
            fit the file.
    """
    return GgufFile(path)


class GgufFile:
    """A GGUF file as a `TensorSource`, with its metadata.

    Attributes:
        metadata: the key-value pairs as plain Python values (int, float, bool, str, list).
        version: the format's version.
    """

    def __init__(self, path: Path) -> None:
        self.path = checked_file(Path(path))
        data = mapped(self.path)
        self._data: mmap.mmap | None = data
        header = _Header(self.path, data)
        self.version = header.version
        self.metadata: dict[str, Any] = header.metadata
        self._tensors = header.tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[require(name, self._tensors, self.path)].shape

    def quantisation(self, name: str) -> str:
        """Return the type that a tensor is stored in, for example "Q4_K"."""
        return self._tensors[require(name, self._tensors, self.path)].type_name

    def dtype(self, name: str) -> torch.dtype:
        import torch

        stored = {"F16": torch.float16, "BF16": torch.bfloat16}
        return stored.get(self._supported(name).type_name, torch.float32)

    def read(self, name: str) -> torch.Tensor:
        import torch

        tensor = self._supported(name)
        if self._data is None:
            raise UsageError(f"{self.path}: is closed", "read tensors before close()")
        if not tensor.size:
            return torch.empty(tensor.shape, dtype=self.dtype(name))
        if tensor.type_name in STORED:
            count = math.prod(tensor.shape)
            flat = torch.frombuffer(self._data, dtype=self.dtype(name), count=count, offset=tensor.start)
            return flat.view(tensor.shape)
        return _dequantise(self._data, tensor)

    def describe(self) -> dict[str, str]:
        counts = Counter(tensor.type_name for tensor in self._tensors.values())
        kinds = ", ".join(f"{kind} × {count}" for kind, count in counts.most_common())
        what = {"format": f"gguf version {self.version}", "files": "1", "tensors": str(len(self._tensors))}
        return what | {"quantisation": kinds}

    def release(self) -> None:
        release_pages(self._data)

    def close(self) -> None:
        self._data = None  # tensors keep the mapping alive by themselves

    def _supported(self, name: str) -> _Tensor:
        tensor = self._tensors[require(name, self._tensors, self.path)]
        if tensor.type_name not in STORED + QUANTISED:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is stored as {tensor.type_name}, which is not supported",
                "supported: " + ", ".join(STORED + QUANTISED),
            )
        return tensor


def _dequantise(data: mmap.mmap, tensor: _Tensor) -> torch.Tensor:
    """Dequantise straight into the result, a cache-sized piece at a time (the library alone needs twice the memory)."""
    import gguf
    import numpy as np
    import torch

    kind = gguf.GGMLQuantizationType[tensor.type_name]
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.frombuffer(data, dtype=np.uint8, count=tensor.size, offset=tensor.start).reshape(-1, block_bytes)
    result = torch.empty(tensor.shape, dtype=torch.float32)
    flat = result.view(-1).numpy()
    step = CHUNK_ELEMENTS // block_elements
    with np.errstate(all="ignore"):  # garbage scales are inf or nan, as in every other reader of the format
        for first in range(0, len(blocks), step):
            # Blocks are independent, so that a piece can be shown to the library as one long row.
            piece = gguf.dequantize(blocks[first : first + step].reshape(1, -1), kind)
            flat[first * block_elements : first * block_elements + piece.size] = piece.reshape(-1)
    return result


class _Header:
    """Walk the header once, checking every count against the bytes that are left before it is believed."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._at = 0
        self._items = 0
        self._end = min(self._size, MAX_METADATA_BYTES)
        self.version = self._read_version()
        tensor_count, pair_count = self._unpack("<QQ")
        self._check_count(tensor_count, 24, "tensors")
        self._check_count(pair_count, 13, "metadata entries")
        self.metadata = self._read_metadata(pair_count)
        self.tensors = self._read_tensors(tensor_count)

    def _fail(self, what: str, fix: str = _FIX) -> CheckpointError:
        return CheckpointError(f"{self._path}: {what}", fix)

    def _read_version(self) -> int:
        if self._data[:4] != b"GGUF":
            raise wrong_content(self._path, "GGUF")
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
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += size
        return values

    def _ends_early(self) -> CheckpointError:
        if self._end < self._size:
            return self._fail(f"the header is longer than {MAX_METADATA_BYTES:,} bytes")
        return self._fail(f"truncated: the header goes on beyond the file's {self._size:,} bytes", "download it again")

    def _check_count(self, count: int, least_bytes: int, what: str) -> None:
        if count > (self._end - self._at) // least_bytes:
            raise self._fail(f"claims {count:,} {what}, more than fit into its {self._size:,} bytes")

    def _string(self, limit: int = MAX_METADATA_BYTES) -> str:
        length = self._unpack("<Q")[0]
        end = self._at + length
        if end > self._end or length > limit:
            raise self._fail(f"claims a string of {length:,} bytes at byte {self._at:,}, which does not fit")
        raw = self._data[self._at : end]
        self._at = end
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._fail(f"holds a string that is not UTF-8 at byte {end - length:,}") from None

    # ------------------------------------------------------------------------------------------------------ metadata

    def _read_metadata(self, count: int) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for _ in range(count):
            key = self._string(MAX_KEY_BYTES)
            if key in table:
                raise self._fail(f"metadata key {key!r} occurs twice")
            table[key] = self._value(self._unpack("<I")[0], key, depth=0)
        return table

    def _value(self, kind: int, key: str, depth: int) -> Any:
        if kind in _SCALARS:
            return self._unpack("<" + _SCALARS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._fail(f"metadata {key!r} has the unknown type {kind}")
        if depth >= MAX_ARRAY_DEPTH:
            raise self._fail(f"metadata {key!r}: arrays nested deeper than {MAX_ARRAY_DEPTH}")
        item_kind, count = self._unpack("<IQ")
        scalar = _SCALARS.get(item_kind)
        least = struct.calcsize("<" + scalar) if scalar else 8
        self._check_count(count, least, f"items in {key!r}")
        self._items += count
        if self._items > MAX_ARRAY_ITEMS:
            raise self._fail(f"metadata {key!r}: arrays of more than {MAX_ARRAY_ITEMS:,} items in all")
        if scalar:
            return list(self._unpack(f"<{count}{scalar}"))
        if item_kind == _STRING:
            return self._strings(count)
        return [self._value(item_kind, key, depth + 1) for _ in range(count)]

    def _strings(self, count: int) -> list[str]:
        """Return a list of strings; the loop has the checks of `_string` inlined, since vocabularies have 10^5 of them."""
        data, at, end, length_of = self._data, self._at, self._end, struct.Struct("<Q").unpack_from
        strings: list[str] = []
        for _ in range(count):
            start = at + 8
            if start > end:
                raise self._ends_early()
            at = start + length_of(data, at)[0]
            if at > end:
                raise self._fail(f"claims a string of {at - start:,} bytes at byte {start:,}, which does not fit")
            try:
                strings.append(data[start:at].decode("utf-8"))
            except UnicodeDecodeError:
                raise self._fail(f"holds a string that is not UTF-8 at byte {start:,}") from None
        self._at = at
        return strings

    # ------------------------------------------------------------------------------------------------------- tensors

    def _read_tensors(self, count: int) -> dict[str, _Tensor]:
        infos = [self._tensor_info() for _ in range(count)]
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1) or alignment > 2**20:
            raise self._fail(f"general.alignment={str(alignment)[:40]} is not a power of two from 8")
        data_start = -(-self._at // alignment) * alignment
        table: dict[str, _Tensor] = {}
        for name, dims, kind, offset in infos:
            if name in table:
                raise self._fail(f"tensor {name!r} occurs twice")
            if offset % alignment:
                raise self._fail(f"tensor {name!r}: offset {offset:,} is not a multiple of the alignment {alignment}")
            type_name, size = self._size_of(name, dims, kind)
            start = data_start + offset
            if start + size > self._size:
                raise self._fail(
                    f"truncated: tensor {name!r} ({type_name}, {list(reversed(dims))}) ends at byte {start + size:,}, "
                    f"the file has {self._size:,}",
                    "download it again",
                )
            table[name] = _Tensor(type_name, tuple(reversed(dims)), start, size)
        self._check_overlap(table)
        return table

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(MAX_KEY_BYTES)
        dim_count = self._unpack("<I")[0]
        if dim_count > MAX_DIMS:
            raise self._fail(f"tensor {name!r} has {dim_count:,} dimensions; {MAX_DIMS} are the limit")
        dims = self._unpack(f"<{dim_count}Q")
        kind, offset = self._unpack("<IQ")
        if any(dim >= 2**63 for dim in dims):
            raise self._fail(f"tensor {name!r} has the impossible shape {list(reversed(dims))}")
        return name, dims, kind, offset

    def _size_of(self, name: str, dims: tuple[int, ...], kind: int) -> tuple[str, int]:
        import gguf

        try:
            quantisation = gguf.GGMLQuantizationType(kind)
            block_elements, block_bytes = gguf.GGML_QUANT_SIZES[quantisation]
        except (ValueError, KeyError):
            supported = "supported: " + ", ".join(STORED + QUANTISED)
            raise self._fail(f"tensor {name!r} has the unknown type number {kind}", supported) from None
        if dims and dims[0] % block_elements:
            raise self._fail(
                f"tensor {name!r}: rows of {dims[0]:,} are not whole {quantisation.name} blocks of {block_elements}"
            )
        if not dims and block_elements > 1:
            raise self._fail(f"tensor {name!r}: a single number cannot be stored in blocks ({quantisation.name})")
        return quantisation.name, math.prod(dims) // block_elements * block_bytes

    def _check_overlap(self, table: dict[str, _Tensor]) -> None:
        end, before = 0, ""
        for name, tensor in sorted(table.items(), key=lambda item: (item[1].start, item[1].size)):
            if tensor.start < end and tensor.size:
                raise self._fail(f"tensors {before!r} and {name!r} overlap")
            end, before = max(end, tensor.start + tensor.size), name
