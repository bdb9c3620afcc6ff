"""What a file stores: the type and the bytes of each tensor, and the parameters that it becomes. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from plainformer.config.shapes import Shape

# Bytes of a number as files name it. What a GGUF file packs into blocks: numbers of a block, bytes of a block.
NUMBERS = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1, "uint8": 1,
    "F32": 4, "F16": 2, "BF16": 2,
}  # fmt: skip
BLOCKS = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "MXFP4": (32, 17),
    "NVFP4": (64, 36), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
}  # fmt: skip
# Blocks that kernels read as they lie in a file (`model/fast/blocks.py`), so that `quantize="keep"` leaves them there.
READ_AS_THEY_ARE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
SHORT = {"float32": "fp32", "F32": "fp32", "float16": "fp16", "F16": "fp16", "bfloat16": "bf16", "BF16": "bf16"}


def stored_bytes(kind: str, shape: Shape) -> int:
    """Return the bytes of a tensor in a file; `kind` as the file's reader names it: "float16", "Q4_K"."""
    size = math.prod(shape)
    if kind in NUMBERS:
        return size * NUMBERS[kind]
    numbers, bytes_ = BLOCKS[kind]
    return size // numbers * bytes_


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a file.

    Attributes:
        kind: the type that it is stored in: "F32", "Q4_K". shape: as torch has it.
        ours: the parameters that it becomes, by our names; () where the model does not use it.
        rearranged: whether its numbers change their order, or themselves, on the way, which takes a copy.
        can_stay: whether it can stay in the blocks that it is packed into: a matrix of linears or of a table, its rows whole.
    """

    kind: str
    shape: Shape
    ours: tuple[str, ...] = ()
    rearranged: bool = False
    can_stay: bool = False

    @property
    def numbers(self) -> int:
        """Return how many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Return its bytes in the file."""
        return stored_bytes(self.kind, self.shape)

    @property
    def in_blocks(self) -> bool:
        """Return whether it is packed into blocks, which become fp32 numbers as they are read."""
        return self.kind in BLOCKS

    @property
    def read_as(self) -> str:
        """Return the dtype that its numbers have once they are read."""
        return "fp32" if self.in_blocks else SHORT.get(self.kind, self.kind)


@dataclass(frozen=True)
class StoredFile:
    """A file of weights by its header.

    Attributes:
        size: bytes of the file, of all its parts. tensors: in their order.
    """

    size: int
    tensors: tuple[FileTensor, ...]

    @property
    def rest(self) -> int:
        """Return the bytes of the file that no tensor has: its header, the vocabulary, padding between tensors."""
        return self.size - sum(tensor.bytes for tensor in self.tensors)

    @cached_property
    def by_parameter(self) -> dict[str, FileTensor]:
        """Return the tensor of each parameter, by our names."""
        return {name: tensor for tensor in self.tensors for name in tensor.ours}

    @property
    def bytes_a_number(self) -> float:
        """Return the bytes that a number of a matrix takes on average, where blocks stay as they are."""
        found = [tensor for tensor in self.tensors if len(tensor.shape) > 1 and tensor.ours]
        size = sum(tensor.bytes if tensor.can_stay else 4 * tensor.numbers for tensor in found)
        return size / max(sum(tensor.numbers for tensor in found), 1)

    def kinds(self) -> dict[str, list[FileTensor]]:
        """Return the tensors of each type; the type that has most bytes comes first."""
        found: dict[str, list[FileTensor]] = {}
        for tensor in self.tensors:
            found.setdefault(tensor.kind, []).append(tensor)
        return dict(sorted(found.items(), key=lambda one: -sum(tensor.bytes for tensor in one[1])))


@dataclass(frozen=True)
class FileType:
    """What a file has of one type.

    Attributes:
        kind: the type: "Q4_K". tensors, numbers, bytes: in the file.
        loaded: bytes of the same weights once they are loaded; None where several devices share them.
        dtype: which they have then.
    """

    kind: str
    tensors: int
    numbers: int
    bytes: int
    loaded: int | None = None
    dtype: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {name: value for name, value in asdict(self).items() if name != "kind"}
