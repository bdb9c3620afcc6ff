"""Bytes of weights, tensor by tensor: as a file stores them, as they are held, and what loading needs in between. No torch.

What is true of this library: a weight in memory has the dtype of the model, also where a file has 4 bits for it. On a CPU,
fp32 weights of a safetensors file are pages of that file, which the system may take back, unless they are joined or
rearranged by the backend of the linears (`model/fast/prepare.py`):

    plain     as they are
    fused     q, k, v and gate, up are joined: copies take their place
    compiled  the same; a single weight stays where it is
    onednn    every linear's is a copy in another layout; a tied table exists twice
    int8      every linear's is one byte a number and a scale for each output; tables, norms and convolutions keep their
              dtype, so that a tied table exists twice
    int4      the same with blocks of 32 numbers that have 20 bytes, 34 where words are scored
    keep      what a GGUF packs into blocks that kernels can read stays there, tables too; other weights are fp32
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from plainformer.config import ModelConfig
from plainformer.config.local import Local
from plainformer.config.shapes import Parameter, Shape, every_name, first_names
from plainformer.plan.states import shard_bytes
from plainformer.plan.stored import SHORT, StoredFile, stored_bytes

WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}
BACKENDS = ("plain", "fused", "compiled", "onednn", "int8", "int4", "keep")
SCALE = 4  # bytes: an fp32 number for each output
BLOCK, FOUR_BITS, EIGHT_BITS = 32, 20, 34  # numbers of a block that `int4` makes, its bytes, those of one with 8 bits
SCORES = "head.out.weight"  # what `int4` rounds to 8 bits
WHILE_ROUNDING = {FOUR_BITS: 5 + 13 / BLOCK, EIGHT_BITS: 2.25}  # fp32 numbers for each that is rounded
_GROUP = re.compile(r"(.*\.(?:qkv|kv|gate_up))\.\w+\.(weight|bias)")


class Held(NamedTuple):
    """What is in memory of one parameter: bytes of its own, bytes that are pages of a file, and the dtype."""

    name: str
    own: int
    mapped: int
    dtype: str


@dataclass(frozen=True)
class Loaded:
    """A loaded model's weights.

    Attributes:
        held: of each parameter; one that exists twice is there twice. peak: the most bytes of own memory while loading.
    """

    held: tuple[Held, ...]
    peak: int

    @property
    def own(self) -> int:
        """Return the bytes of own memory."""
        return sum(one.own for one in self.held)

    @property
    def mapped(self) -> int:
        """Return the bytes of pages of a file."""
        return sum(one.mapped for one in self.held)

    @property
    def bytes(self) -> int:
        """Return all bytes."""
        return self.own + self.mapped


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How weights are loaded.

    Attributes:
        dtype: "fp32", "bf16" or "fp16"; None: as stored, and fp32 for what a file packs into blocks.
        backend: of the linears, see above; int8, int4 and keep are three of them.
        stored: the type in the file, one for all ("float32"), or the file by its header; None for a new model, which has
            no file, or one of which nothing is known.
        mapped: whether tensors that need no conversion stay pages of the file: so on a CPU, unless a model is trained.
        transposed: whether the file has the matrices of layers as (I, O), as GPT-2's do: packing copies them.
        copied: whether each weight is copied into memory of its own, as for training.
    """

    dtype: str | None = "fp32"
    backend: str = "plain"
    stored: str | StoredFile | None = "float32"
    mapped: bool = True
    transposed: bool = False
    copied: bool = False

    def type_of(self, name: str) -> str | None:
        """Return the type in which a parameter is stored; None where it is not."""
        if not isinstance(self.stored, StoredFile):
            return self.stored
        found = self.stored.by_parameter.get(name)
        return None if found is None else found.kind

    def dtype_of(self, name: str) -> str:
        """Return the dtype that a plain weight has."""
        return self.dtype or SHORT.get(self.type_of(name) or "float32", "fp32")

    def stays(self, name: str) -> bool:
        """Return whether a parameter stays in the file's blocks."""
        found = self.stored.by_parameter.get(name) if isinstance(self.stored, StoredFile) else None
        return self.backend == "keep" and found is not None and found.can_stay

    def is_mapped(self, name: str) -> bool:
        """Return whether a weight is pages of the file: of its dtype, and in its order."""
        if not self.mapped or SHORT.get(self.type_of(name) or "") != self.dtype_of(name):
            return False
        return not (isinstance(self.stored, StoredFile) and self.stored.by_parameter[name].rearranged)


def usual_backend(config: ModelConfig, dtype: str = "fp32", *, cpu: bool = True) -> str:
    """Return the backend that `backend="auto"` chooses; between fused and onednn it measures: fused is said here."""
    causal = config.main_stack.direction == "causal"
    return "compiled" if cpu and dtype == "fp32" and causal else "fused"


def weights(
    config: ModelConfig, loading: Loading | None = None, local: Local | None = None, *, zero: int = 0, dp: int = 1
) -> Loaded:
    """Return what a process holds of a model's weights, and the peak while it loads them.

    Args:
        local: of one rank of a layout; None for a single process. zero, dp: how data-parallel ranks share them out: with 2
            and 3 each has a part of every parameter.
    """
    loading = loading or Loading()
    if zero >= 2 and dp > 1:
        sizes = _parameters(config, local)[0]
        width = WIDTHS[loading.dtype or "fp32"]
        shards = [Held(name, shard_bytes(p.shape, width, zero, dp), 0, loading.dtype or "fp32") for name, p in sizes]
        return Loaded(tuple(shards), sum(shard.own for shard in shards))
    plain, second = _parameters(config, local)
    before = [_plain(name, parameter, loading) for name, parameter in plain]
    after = [_prepared(one, parameter, loading) for one, (_, parameter) in zip(before, plain, strict=True)]
    if loading.backend in ("onednn", "int8", "int4"):  # a table stays, and the linear that is tied to it has a copy
        after += [_prepared(_plain(name, p, loading), p, loading) for name, p in second if p.kind == "linear"]
    peak = max(_reading_peak(before, loading, local), _preparing_peak(plain, before, second, loading))
    held = tuple(after)
    return Loaded(held, max(peak, sum(one.own for one in held)))


def adapter_bytes(shapes: Mapping[str, Shape], dtype: str = "fp32") -> int:
    """Return the bytes of adapters that are not merged yet: `prepare_for_inference` merges them, and none are left."""
    return sum(math.prod(shape) for shape in shapes.values()) * WIDTHS[dtype]


Sized = list[tuple[str, Parameter]]


def _parameters(config: ModelConfig, local: Local | None) -> tuple[Sized, Sized]:
    """Return the parameters that are held, and the further names of those that are tied."""
    every = every_name(config)
    if local is None:
        first = first_names(config)
        return [(n, p) for n, p in every.items() if first[n] == n], [(n, p) for n, p in every.items() if first[n] != n]
    sizes = {name: Parameter(part.local_shape, every[name].kind) for name, part in local.parts.items()}
    others = [(name, Parameter(sizes[kept].shape, every[name].kind)) for name, kept in local.tied if kept in sizes]
    return list(sizes.items()), others


def _plain(name: str, parameter: Parameter, loading: Loading) -> Held:
    """Return a parameter as `load_weights` leaves it."""
    if loading.stays(name):
        assert isinstance(loading.stored, StoredFile)
        tensor = loading.stored.by_parameter[name]
        size = stored_bytes(tensor.kind, parameter.shape)
        return Held(name, size if tensor.rearranged else 0, 0 if tensor.rearranged else size, tensor.kind)
    dtype, mapped = loading.dtype_of(name), loading.is_mapped(name)
    size = parameter.size * WIDTHS[dtype]
    return Held(name, 0 if mapped else size, size if mapped else 0, dtype)


def _prepared(one: Held, parameter: Parameter, loading: Loading) -> Held:
    """Return it as the backend leaves it."""
    size, grouped = one.own + one.mapped, _GROUP.fullmatch(one.name) is not None
    if parameter.kind == "linear" and loading.backend in ("int8", "int4"):
        rounded = "int8" if one.name == SCORES else loading.backend
        return Held(one.name, rounded_bytes(one.name, parameter.shape, loading.backend), 0, rounded)
    if loading.backend == "keep":  # biases of a group are joined, and nothing else
        joined = grouped and one.name.endswith(".bias")
        return Held(one.name, size, 0, one.dtype) if joined else one
    copied = loading.backend == "onednn" or (
        loading.backend == "compiled" and loading.transposed and ".layers." in one.name
    )
    if (copied and parameter.kind == "linear") or (grouped and loading.backend != "plain"):
        return Held(one.name, size, 0, one.dtype)
    return one


def rounded_bytes(name: str, shape: Shape, backend: str) -> int:
    """Return the bytes of a linear's weight that is rounded: "int8" or "int4"."""
    outputs, inputs = shape
    if backend == "int8":
        return outputs * (inputs + SCALE)
    return outputs * -(-inputs // BLOCK) * (EIGHT_BITS if name == SCORES else FOUR_BITS)


def _reading_peak(before: list[Held], loading: Loading, local: Local | None) -> int:
    """Return the most own bytes while a file's tensors are read, one after the other.

    Blocks become fp32 numbers first, then these are rearranged, and then they get the model's dtype: each of these steps makes
    a copy, unless there is nothing to do.
    """
    if not isinstance(loading.stored, StoredFile):
        return sum(one.own for one in before)
    places: dict[str, list[Held]] = defaultdict(list)
    divided = set()
    for one in before:
        part = None if local is None else local.parts[one.name]
        places[one.name if part is None else part.name].append(one)
        divided |= {one.name} if part is not None and part.dim is not None else set()
    total = peak = 0
    for tensor in loading.stored.tensors:
        held = [one for name in tensor.ours for one in places.get(name, ())]
        read = tensor.numbers * WIDTHS["fp32"] if tensor.in_blocks else 0
        changed = tensor.numbers * WIDTHS.get(tensor.read_as, 4) if tensor.rearranged else 0
        kept = not loading.copied and all(one.dtype == tensor.read_as and one.name not in divided for one in held)
        if held and loading.stays(held[0].name):
            read = changed = 0
        if held:
            spare = (read if changed else 0) if kept else read + changed
            total += sum(one.own for one in held)
            peak = max(peak, total + spare)
    return max(peak, sum(one.own for one in before))


def _preparing_peak(plain: Sized, before: list[Held], second: Sized, loading: Loading) -> int:
    """Return the most own bytes while the backend's weights are made, one after the other, from plain ones."""
    own = {one.name: one.own for one in before}
    total = peak = sum(own.values())
    for members in _modules([*plain, *second]):
        old = sum(own.get(name, 0) for name, _ in members)
        size = sum(parameter.size for _, parameter in members) * WIDTHS[loading.dtype_of(members[0][0])]
        joined = size if len(members) > 1 else 0
        outputs = sum(parameter.shape[0] for _, parameter in members) * SCALE
        made, temporary = {
            "plain": (old, 0),
            "keep": (old, 0),
            "fused": (joined or old, joined),
            "compiled": (joined or old, joined),
            "onednn": (size, joined + size),
            # The weight joined, divided by its scales, and rounded.
            "int8": (size // 4 + outputs, joined + size + size // 4 + outputs),
            "int4": _to_blocks(members),
        }[loading.backend]
        peak = max(peak, total + temporary)
        total += made - old
    return peak


def _to_blocks(members: Sized) -> tuple[int, int]:
    """Return the bytes of a group's weights as `int4` rounds them, one after the other, and the most that takes."""
    made = most = 0
    for name, parameter in members:
        outputs, inputs = parameter.shape
        padded = outputs * -(-inputs // BLOCK) * BLOCK * WIDTHS["fp32"]
        most = max(most, made + round(padded * WHILE_ROUNDING[EIGHT_BITS if name == SCORES else FOUR_BITS]))
        made += rounded_bytes(name, parameter.shape, "int4")
    return made, most


def _modules(sized: Sized) -> Iterator[Sized]:
    """Yield the weights of each linear, or of each group of linears that read the same, in the order of preparing."""
    groups: dict[str, Sized] = defaultdict(list)
    for name, parameter in sized:
        if parameter.kind == "linear":
            found = _GROUP.fullmatch(name)
            groups[found[1] if found else name].append((name, parameter))
    by_shape: dict[tuple[int, int], list[Sized]] = defaultdict(list)
    for members in groups.values():
        by_shape[sum(p.shape[0] for _, p in members), members[0][1].shape[1]].append(members)
    for same in by_shape.values():
        yield from same
