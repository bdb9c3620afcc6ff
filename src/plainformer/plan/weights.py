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
_SHORT = {"float32": "fp32", "F32": "fp32", "float16": "fp16", "F16": "fp16", "bfloat16": "bf16", "BF16": "bf16"}
WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}
BACKENDS = ("plain", "fused", "compiled", "onednn", "int8")
SCALE = 4  # bytes: an fp32 number for each output
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
        backend: of the linears, see above; int8 is one.
        stored: the type in the file: one for all ("float32"), or one for each parameter, by our names; None for a new
            model, which has no file.
        mapped: whether tensors that need no conversion stay pages of the file: so on a CPU, unless a model is trained.
        transposed: whether the file has the matrices of layers as (I, O), as GPT-2's do: packing copies them.
    """

    dtype: str | None = "fp32"
    backend: str = "plain"
    stored: str | Mapping[str, str] | None = "float32"
    mapped: bool = True
    transposed: bool = False

    def type_of(self, name: str) -> str | None:
        """Return the type in which a parameter is stored; None where it is not."""
        return self.stored if self.stored is None or isinstance(self.stored, str) else self.stored.get(name)

    def dtype_of(self, name: str) -> str:
        """Return the dtype that a plain weight has."""
        return self.dtype or _SHORT.get(self.type_of(name) or "float32", "fp32")


def stored_bytes(kind: str, shape: Shape) -> int:
    """Return the bytes of a tensor in a file; `kind` as the file's reader names it: "float16", "Q4_K"."""
    size = math.prod(shape)
    if kind in NUMBERS:
        return size * NUMBERS[kind]
    numbers, bytes_ = BLOCKS[kind]
    return size // numbers * bytes_


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
    if loading.backend in ("onednn", "int8"):  # a table stays, and the linear that is tied to it has a copy
        after += [_prepared(_plain(name, p, loading), p, loading) for name, p in second if p.kind == "linear"]
    peak = max(_reading_peak(plain, before, loading), _preparing_peak(plain, before, second, loading))
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
    dtype, stored = loading.dtype_of(name), loading.type_of(name)
    size = parameter.size * WIDTHS[dtype]
    mapped = loading.mapped and stored is not None and _SHORT.get(stored) == dtype
    return Held(name, 0 if mapped else size, size if mapped else 0, dtype)


def _prepared(one: Held, parameter: Parameter, loading: Loading) -> Held:
    """Return it as the backend leaves it."""
    size, grouped = one.own + one.mapped, _GROUP.fullmatch(one.name) is not None
    if parameter.kind == "linear" and loading.backend == "int8":
        return Held(one.name, parameter.size + SCALE * parameter.shape[0], 0, "int8")
    copied = loading.backend == "onednn" or (
        loading.backend == "compiled" and loading.transposed and ".layers." in one.name
    )
    if (copied and parameter.kind == "linear") or (grouped and loading.backend != "plain"):
        return Held(one.name, size, 0, one.dtype)
    return one


def _reading_peak(plain: Sized, before: list[Held], loading: Loading) -> int:
    """Return the most own bytes while tensors are read: blocks become fp32 first, and then the model's dtype."""
    peak = total = 0
    for (name, parameter), one in zip(plain, before, strict=True):
        total += one.own
        in_blocks = (loading.type_of(name) or "") in BLOCKS
        peak = max(peak, total + (parameter.size * 4 if in_blocks and one.dtype != "fp32" else 0))
    return peak


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
            "fused": (joined or old, joined),
            "compiled": (joined or old, joined),
            "onednn": (size, joined + size),
            # The weight joined, divided by its scales, and rounded.
            "int8": (size // 4 + outputs, joined + size + size // 4 + outputs),
        }[loading.backend]
        peak = max(peak, total + temporary)
        total += made - old
    return peak


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
