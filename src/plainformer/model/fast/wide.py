"""Sums of products of fp32 numbers, 32 side by side, whatever the width of the processor's registers.

Loops over numbers leave it to the compiler how many sums are kept, and it keeps another number of them for four rows than for
one: a row would get other bits beside others than alone.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.core.datamodel import models, register_default  # type: ignore[attr-defined]

from plainformer.model.fast.lanes import BYTE, FLOAT, INT, _call, _instruction, _load, _of


class Wide(types.Type):
    """32 fp32 numbers in registers."""

    def __init__(self) -> None:
        super().__init__(name="Wide")


@register_default(Wide)
class _WideModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _of(FLOAT, 32))


WIDE = Wide()


@_instruction
def nothing(typing: Any) -> Any:
    """Return 32 zeros."""
    return WIDE(), lambda context, builder, signature, args: ir.Constant(_of(FLOAT, 32), [0.0] * 32)


@_instruction
def wide_at(typing: Any, address: Any, like: Any) -> Any:
    """Return the 32 numbers at an address, which are of the type of `like`: fp32, or whole ones in eight bits."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if like != types.int8:
            return _load(builder, args[0], _of(FLOAT, 32))
        whole = builder.sext(_load(builder, args[0], _of(BYTE, 32)), _of(INT, 32))
        return builder.sitofp(whole, _of(FLOAT, 32))

    return WIDE(types.int64, like), code


@_instruction
def one_at(typing: Any, address: Any, like: Any) -> Any:
    """Return one such number, as fp32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if like != types.int8:
            return _load(builder, args[0], FLOAT)
        return builder.sitofp(_load(builder, args[0], BYTE), FLOAT)

    return types.float32(types.int64, like), code


@_instruction
def add_wide(typing: Any, sums: Any, factors: Any, address: Any) -> Any:
    """Return sums + factors * the 32 fp32 numbers at an address."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _of(FLOAT, 32)
        return _call(builder, "llvm.fma.v32f32", kind, args[1], _load(builder, args[2], kind), args[0])

    return WIDE(WIDE, WIDE, types.int64), code


@_instruction
def in_wide(typing: Any, sums: Any) -> Any:
    """Return the sum of the 32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = args[0]
        for half in (16, 8, 4, 2, 1):
            low, high = ([ir.Constant(INT, i) for i in range(first, first + half)] for first in (0, half))
            a, b = (builder.shuffle_vector(total, total, ir.Constant(_of(INT, half), part)) for part in (low, high))
            total = builder.fadd(a, b)
        return builder.extract_element(total, ir.Constant(INT, 0))

    return types.float32(WIDE), code
