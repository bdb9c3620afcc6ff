"""Sums of products of fp32 numbers, 32 side by side, whatever the width of the processor's registers.

Loops over numbers leave it to the compiler how many sums are kept, and it keeps another number of them for four rows than for
one: a row would get other bits beside others than alone.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.core.datamodel import models, register_default  # type: ignore[attr-defined]

from plainformer.model.fast.lanes import BYTE, FLOAT, INT, _fma, _instruction, _load, _of


class Wide(types.Type):
    """32 fp32 numbers in registers, or 16: every other 16 of 32."""

    def __init__(self, count: int) -> None:
        super().__init__(name=f"Wide{count}")
        self.count = count


@register_default(Wide)
class _WideModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Wide) -> None:
        super().__init__(manager, kind, _of(FLOAT, kind.count))


WIDE, HALF = Wide(32), Wide(16)


@_instruction
def nothing(typing: Any) -> Any:
    """Return 32 zeros."""
    return WIDE(), lambda context, builder, signature, args: ir.Constant(_of(FLOAT, 32), [0.0] * 32)


@_instruction
def half_nothing(typing: Any) -> Any:
    """Return 16 zeros."""
    return HALF(), lambda context, builder, signature, args: ir.Constant(_of(FLOAT, 16), [0.0] * 16)


def _numbers(builder: Any, address: Any, like: Any, count: int) -> Any:
    """Return numbers at an address as fp32; they are of the type of `like`: fp32, or whole ones in eight bits."""
    if like != types.int8:
        return _load(builder, address, _of(FLOAT, count))
    whole = builder.sext(_load(builder, address, _of(BYTE, count)), _of(INT, count))
    return builder.sitofp(whole, _of(FLOAT, count))


@_instruction
def wide_at(typing: Any, address: Any, like: Any) -> Any:
    """Return the 32 numbers at an address, see `_numbers`."""
    return WIDE(types.int64, like), lambda context, builder, signature, args: _numbers(builder, args[0], like, 32)


@_instruction
def half_at(typing: Any, address: Any, like: Any) -> Any:
    """Return 16."""
    return HALF(types.int64, like), lambda context, builder, signature, args: _numbers(builder, args[0], like, 16)


@_instruction
def one_at(typing: Any, address: Any, like: Any) -> Any:
    """Return one."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(_numbers(builder, args[0], like, 1), ir.Constant(INT, 0))

    return types.float32(types.int64, like), code


@_instruction
def add_wide(typing: Any, sums: Any, factors: Any, address: Any) -> Any:
    """Return sums + factors * the fp32 numbers at an address, as many as there are."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _fma(context, builder, args[1], _load(builder, args[2], args[0].type), args[0])

    return sums(sums, sums, types.int64), code


def _sum(builder: Any, total: Any) -> Any:
    half = total.type.count // 2
    if not half:
        return builder.extract_element(total, ir.Constant(INT, 0))
    parts = [ir.Constant(_of(INT, half), list(range(first, first + half))) for first in (0, half)]
    return _sum(builder, builder.fadd(*(builder.shuffle_vector(total, total, part) for part in parts)))


@_instruction
def in_wide(typing: Any, sums: Any) -> Any:
    """Return the sum of the 32."""
    return types.float32(WIDE), lambda context, builder, signature, args: _sum(builder, args[0])


@_instruction
def in_halves(typing: Any, first: Any, second: Any) -> Any:
    """Return the same of two halves."""
    return types.float32(HALF, HALF), lambda context, builder, signature, args: _sum(builder, builder.fadd(*args))
