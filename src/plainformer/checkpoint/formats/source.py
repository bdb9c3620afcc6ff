"""What every weight file offers (`TensorSource`), how a folder's weight files are found, and reading with suspicion."""

from __future__ import annotations

import json
import math
import mmap
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.config.checks import json_hint
from plainformer.errors import CheckpointError, UsageError, a_type, did_you_mean

if TYPE_CHECKING:
    import torch

# The order of preference. Safetensors first: it cannot contain code and is read without a copy.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX_SUFFIX = ".index.json"
MAX_JSON_BYTES = 32 * 2**20  # the index of a 700 GB mixture-of-experts checkpoint is about 10 MB

_UNUSABLE: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda n: n.startswith("adapter_model."), "an adapter (LoRA) without its base model"),
    (lambda n: n.startswith("tf_model") or n.endswith(".h5"), "TensorFlow weights"),
    (lambda n: n.endswith(".msgpack"), "Flax weights"),
    (lambda n: n.endswith((".onnx", ".onnx_data")), "an exported ONNX graph"),
    (lambda n: n == "rust_model.ot", "rust-bert weights"),
    (lambda n: n.startswith("openvino"), "an exported OpenVINO graph"),
    (lambda n: ".ckpt" in n, "a TensorFlow or training checkpoint"),
    (lambda n: n.endswith((".pth", ".pt")), "a PyTorch file of unknown content"),
    (lambda n: n.endswith(".gguf"), "a GGUF file: pass the file itself"),
    (lambda n: n.startswith("consolidated"), "weights under the vendor's own names"),
    (lambda n: n.endswith(".safetensors"), "not under the name model.safetensors, and no index lists it"),
    (lambda n: n.endswith(".bin"), "not under the name pytorch_model.bin, and no index lists it"),
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: its shape in torch's order (rows, columns), the type it is stored in, and how to read it.

    `blocks`: reads what a file packs into blocks as the bytes that it is, row by row.
    """

    shape: tuple[int, ...]
    stored: str  # torch's name of the dtype, or the quantisation type: "float32", "Q4_K"
    read: Callable[[], torch.Tensor]
    blocks: Callable[[], torch.Tensor] | None = None


class TensorSource:
    """Named tensors in one or more files, read one at a time.

    Attributes:
        where: the file or folder, for messages.
        metadata: what the file says of itself, such as a GGUF's key-value pairs.
        dtype: torch's name of the type to compute in where the stored ones are not for that (fp8); None where they are.
    """

    def __init__(
        self,
        where: Path,
        kind: str,
        tensors: dict[str, StoredTensor],
        maps: Sequence[mmap.mmap] = (),
        metadata: dict[str, Any] | None = None,
        files: int = 1,
        dtype: str | None = None,
    ) -> None:
        self.where, self.kind, self.files, self.dtype = where, kind, files, dtype
        self.metadata: dict[str, Any] = metadata or {}
        self.tensors, self.maps = tensors, tuple(maps)
        self._closed = False

    def names(self) -> list[str]:
        """Return every tensor's name, in the order of the file."""
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape without reading the data."""
        return self._find(name).shape

    def stored(self, name: str) -> str:
        """Return the type that a tensor is stored in: torch's name of a dtype, or a quantisation type."""
        return self._find(name).stored

    def is_mapped(self, name: str) -> bool:
        """Return whether `read` gives a view of the file's pages, and takes no memory of its own."""
        return bool(self.maps) and self.stored(name) in ("float32", "bfloat16", "float16", "float64")

    def read(self, name: str) -> torch.Tensor:
        """Return the tensor on the CPU.

        Where the format allows it this is a private memory-mapped view, not a copy: pages are loaded when they are
        touched, and writing to it changes neither the file nor another reader.
        """
        return self._find(name).read()

    def in_blocks(self, name: str) -> bool:
        """Return whether a tensor is packed into blocks of several numbers."""
        return self._find(name).blocks is not None

    def blocks(self, name: str) -> torch.Tensor:
        """Return a tensor that is packed into blocks as its bytes, (rows, bytes of a row): a view of the file's pages."""
        read = self._find(name).blocks
        assert read is not None
        return read()

    def describe(self) -> dict[str, str]:
        """Return what the source is, for people."""
        return {"format": self.kind, "files": str(self.files), "tensors": str(len(self.tensors))}

    def release(self) -> None:
        """Give memory-mapped pages back to the system where it can take them (Linux); they are read anew when touched.

        A private mapping's *changed* pages are lost: this is for the time before a tensor is given away.
        """
        if sys.platform == "linux":
            for data in self.maps:
                data.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the files. Tensors that were read stay valid: they keep their mapping alive themselves."""
        self.tensors, self.maps, self._closed = {}, (), True

    def _find(self, name: str) -> StoredTensor:
        if self._closed:
            raise UsageError(f"{self.where}: is closed", "read tensors before close()")
        if name not in self.tensors:
            raise CheckpointError(f"{self.where}: holds no tensor {name!r}", did_you_mean(name, self.tensors))
        return self.tensors[name]


def mapped_tensor(data: mmap.mmap, dtype: str, shape: tuple[int, ...], start: int) -> torch.Tensor:
    """Return a view of mapped bytes, or a copy where they are not aligned: torch's kernels may want that."""
    import torch

    kind, count = getattr(torch, dtype), math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=kind)
    if start % kind.itemsize:
        size = count * kind.itemsize
        return torch.frombuffer(data, dtype=torch.uint8, count=size, offset=start).clone().view(kind).view(shape)
    return torch.frombuffer(data, dtype=kind, count=count, offset=start).view(shape)


# ---------------------------------------------------------------------------------------------------- finding files


def find_weights(folder: Path) -> list[Path]:
    """Return the weight files of a folder: `model.safetensors`, its sharded form, then `pytorch_model.bin` likewise.

    Raises:
        CheckpointError: there is none (the message lists what the folder holds and why that cannot be used), the index
            is damaged or leads out of the folder, or a shard that it lists is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder", "pass the folder that holds config.json and the weights")
    entries = {entry.name: entry for entry in folder.iterdir()}
    usable = [name for name, entry in entries.items() if entry.is_file() or name in WEIGHT_FILES]
    names = choose_weights(usable, folder, lambda name: folder / name, listed=sorted(entries))
    return [checked_file(folder / name) for name in names if not name.endswith(INDEX_SUFFIX)]


def choose_weights(
    names: Collection[str], where: object, get: Callable[[str], Path], listed: Sequence[str] = ()
) -> list[str]:
    """Return which of a folder's or repository's files to load: one, or an index and its shards; errors as `find_weights`.

    Args:
        get: gives the path of a file by its name.
        listed: what a message shows of a place without weights.
    """
    best = next((name for name in WEIGHT_FILES if name in names), None)
    if best is None:
        found = [f"{name} ({why})" for name in listed if "/" not in name and (why := why_unusable(name))]
        raise CheckpointError(
            f"{where} holds no weights that can be loaded: {some(found or listed)}",
            "needed: one of " + ", ".join(WEIGHT_FILES),
        )
    if not best.endswith(INDEX_SUFFIX):
        return [best]
    shards = list(dict.fromkeys(weight_map(get(best)).values()))
    missing = [shard for shard in shards if shard not in names]
    if missing:
        raise CheckpointError(
            f"{where}: {best} lists {len(shards)} shards, and these are missing: {some(missing)}",
            "download the missing files into the same folder, or pass the Hub name to fetch them all",
        )
    return [best, *shards]


def why_unusable(name: str) -> str:
    """Return why a file that looks like weights cannot be read; empty for any other file."""
    return next((why for matches, why in _UNUSABLE if matches(name)), "")


def weight_map(path: Path) -> dict[str, str]:
    """Return the table of an `*.index.json`: tensor name → shard, a plain name with the ending that belongs to it.

    Raises:
        CheckpointError: the file is not such an index, or a name would lead out of the folder.
    """
    table = read_json_object(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(
            f"{path}: has no 'weight_map' from tensor names to files",
            "it is not an index of weights: take that of the original checkpoint",
        )
    ending = path.name.removesuffix(INDEX_SUFFIX).rpartition(".")[2]
    for tensor, shard in table.items():
        said = f"{path}: tensor {tensor!r} is said to be in {shard!r}"
        # A separator, a drive or `..` would let a downloaded index read any file of this machine.
        if not isinstance(shard, str) or not re.fullmatch(r"[^./\\:\0][^/\\:\0]*", shard):
            fix = "do not use this checkpoint: a shard must lie in the same folder as its index"
            raise CheckpointError(f"{said}, which is not a plain file name", fix)
        if not shard.endswith("." + ending):
            raise CheckpointError(f"{said}, which is not a .{ending} file")
    return table


def some(names: Sequence[str], limit: int = 8) -> str:
    """Return the first few of many names, for a message."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + rest


# --------------------------------------------------------------------------------------------- reading with suspicion


def checked_file(path: Path) -> Path:
    """Return `path` if it is a regular file (or a link to one, as the Hub's cache has) with something in it."""
    if not path.exists():
        if path.is_symlink():
            raise CheckpointError(f"{path}: is a link to a file that is gone", "download the checkpoint again")
        raise CheckpointError(f"{path}: no such file")
    if not path.is_file():  # a folder, or a pipe that would block for ever
        raise CheckpointError(f"{path}: is not a regular file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: is empty (0 bytes)", "an interrupted download? fetch the file again")
    return path


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file of at most `max_bytes`; duplicate keys are an error, since readers disagree on them.

    Raises:
        CheckpointError: not a regular file, too big, not UTF-8, not JSON, or not an object.
    """
    return parse_json_object(_read_json_bytes(path, max_bytes), str(path))


def read_json_objects(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects that a file lists; errors as those of `read_json_object`."""
    value = _parse_json(_read_json_bytes(path, MAX_JSON_BYTES), str(path))
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise CheckpointError(
            f"{path}: a list of JSON objects was expected", f"take the {path.name} of the original checkpoint"
        )
    return value


def _read_json_bytes(path: Path, max_bytes: int) -> bytes:
    size = checked_file(path).stat().st_size
    if size > max_bytes:
        raise CheckpointError(f"{path}: has {size:,} bytes, which is too much for a JSON file of a checkpoint")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """Do as `read_json_object` for bytes already in memory; `where` names them in errors."""
    value = _parse_json(data, where)
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: a JSON object was expected, not {a_type(value)}")
    return value


def _parse_json(data: bytes, where: str) -> Any:

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(table := dict(pairs)) != len(pairs):
            key = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise CheckpointError(f"{where}: key {key!r} occurs twice", "the file is damaged or forged")
        return table

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise CheckpointError(f"{where}: JSON nested too deeply", "the file is damaged or forged") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and integers of more than 4,300 digits
        text = data.decode("utf-8", "replace")
        if text.lstrip().startswith(("{", "[")):
            hint = json_hint(text, error)
        else:
            seen, fix = describe_content(data[:512], len(data))
            hint = f"it looks like {seen}; {fix}"
        raise CheckpointError(f"{where}: is not valid JSON ({error})", hint) from None


def mapped(path: Path) -> mmap.mmap:
    """Map a file's bytes, private and copy-on-write, so that torch may hold writable views which never reach the file.

    Mapped here and not by a library, so that pages can be given back while a model is rearranged.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


_HTML = (b"<!doctype", b"<html", b"<?xml")
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_RENAME = "if it is a PyTorch file, rename it to pytorch_model.bin"
# The first bytes of files that do not have the name they should: what they are, and what to do.
_CONTENTS: tuple[tuple[bytes | tuple[bytes, ...], str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull` in that folder"),
    (_HTML, "an HTML or XML page", "the download gave an error page: fetch the file again"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes", _RENAME),
    (_PICKLE, "a Python pickle", _RENAME),
    (b"GGUF", "a GGUF file", "rename it to end in .gguf"),
    (b"\x89HDF", "an HDF5 file (TensorFlow, Keras)", "export the model to safetensors"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"{", "JSON text", "this is not the weight file"),
)


def describe_content(head: bytes, size: int) -> tuple[str, str]:
    """Return what a file really is, by its first bytes, and what to do about it."""
    text = head.lstrip().lower()
    for starts, seen, fix in _CONTENTS:
        if head.startswith(starts) or text.startswith(starts):
            return seen, fix
    if len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size:
        return "a safetensors file", "rename it to end in .safetensors"
    if not any(head):
        return "nothing but zero bytes", "an interrupted download? fetch the file again"
    return "damaged, or of an unknown format", "download it again"


def wrong_content(path: Path, expected: str) -> CheckpointError:
    """Return the error for a file whose content is not what its name says."""
    with path.open("rb") as file:
        head = file.read(512)
    seen, fix = describe_content(head, path.stat().st_size)
    return CheckpointError(f"{path}: is not a {expected} file: it is {seen}", fix)
