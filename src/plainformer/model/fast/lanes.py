"""What plain loops cannot say to Numba: sums of products of bytes, and half-precision numbers.

A `Lanes` is eight fp32 sums side by side. `add_block` adds to them the products of 32 unsigned and 32 signed bytes, four to a
lane and exactly, times a scale; the instructions are those that the processor has: one (VNNI), two (AVX2), or what LLVM makes of
multiplications of whole numbers anywhere else.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.core.datamodel import models, register_default  # type: ignore[attr-defined]
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array

BYTE, SHORT, INT, WORD, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _instruction(made: Any) -> Any:
    """Return what kernels call by a function that writes LLVM's code for it."""
    return intrinsic(made)


def _of(element: ir.Type, count: int) -> ir.VectorType:
    return ir.VectorType(element, count)


class Lanes(types.Type):
    """Eight fp32 numbers in one register."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


@register_default(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _of(FLOAT, 8))


class Bytes(types.Type):
    """32 bytes in one register, with &, |, ^ and shifts by whole numbers."""

    def __init__(self) -> None:
        super().__init__(name="Bytes")


@register_default(Bytes)
class _BytesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _of(BYTE, 32))


LANES, BYTES = Lanes(), Bytes()


def _has(context: Any, *features: str) -> bool:
    """Return whether the processor that code is made for has one of some instructions."""
    target = context.codegen()
    return any(f"+{feature}" in target._tm_features.split(",") for feature in features)


def _call(builder: Any, name: str, result: ir.Type, *given: Any) -> Any:
    """Call an instruction by LLVM's name for it."""
    kind = ir.FunctionType(result, [value.type for value in given])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, given)


def _load(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _store(context: Any, builder: Any, address: Any, value: Any) -> Any:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)
    return context.get_dummy_value()


def _all_same(builder: Any, value: Any, count: int) -> Any:
    one = builder.insert_element(ir.Constant(_of(value.type, count), ir.Undefined), value, ir.Constant(INT, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_of(INT, count), [0] * count))


def _products(context: Any, builder: Any, unsigned: Any, signed: Any) -> Any:
    """Return the sums of four products each: 32 bytes and 32 bytes → eight whole numbers."""
    if _has(context, "avx512vnni", "avxvnni"):
        none = ir.Constant(_of(INT, 8), [0] * 8)
        return _call(builder, "llvm.x86.avx512.vpdpbusd.256", _of(INT, 8), none, unsigned, signed)
    if _has(context, "avx2"):
        # Not the instruction for pairs of bytes: what it adds in 16 bits ends at 32,767, and two products may be 64,770.
        shorts, sums = _of(SHORT, 16), _of(INT, 8)
        eight = ir.Constant(shorts, [8] * 16)
        u, s = builder.bitcast(unsigned, shorts), builder.bitcast(signed, shorts)
        even = builder.and_(u, ir.Constant(shorts, [255] * 16)), builder.ashr(builder.shl(s, eight), eight)
        odd = builder.lshr(u, eight), builder.ashr(s, eight)
        return builder.add(*(_call(builder, "llvm.x86.avx2.pmadd.wd", sums, *both) for both in (even, odd)))
    wide, total = _of(INT, 32), None
    product = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
    for part in range(4):
        every = ir.Constant(_of(INT, 8), list(range(part, 32, 4)))
        some = builder.shuffle_vector(product, product, every)
        total = some if total is None else builder.add(total, some)
    return total


@_instruction
def number_at(typing: Any, address: Any) -> Any:
    """Return the fp32 number at an address."""
    return types.float32(types.int64), lambda context, builder, signature, args: _load(builder, args[0], FLOAT)


@_instruction
def fused(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once; a sum that comes in as `a` is not taken in another order for what follows it."""
    return types.float32(types.float32, types.float32, types.float32), lambda context, builder, signature, args: _call(
        builder, "llvm.fma.f32", FLOAT, *args
    )


@_instruction
def put_number(typing: Any, address: Any, value: Any) -> Any:
    """Write one."""
    return types.none(types.int64, types.float32), lambda context, builder, signature, args: _store(
        context, builder, *args
    )


@_instruction
def no_sums(typing: Any) -> Any:
    """Return eight zeros."""
    return LANES(), lambda context, builder, signature, args: ir.Constant(_of(FLOAT, 8), [0.0] * 8)


@_instruction
def add_block(typing: Any, sums: Any, u: Any, q_at: Any, scales: Any, scale: Any) -> Any:
    """Return sums + (u · q, four to a lane) * scales * scale, of 32 bytes each, eight scales and one."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        signed = _load(builder, args[2], _of(BYTE, 32))
        whole = builder.sitofp(_products(context, builder, args[1], signed), _of(FLOAT, 8))
        scaled = builder.fmul(args[3], _all_same(builder, args[4], 8))
        return _call(builder, "llvm.fma.v8f32", _of(FLOAT, 8), whole, scaled, args[0])

    return LANES(sums, BYTES, types.int64, LANES, types.float32), code


@_instruction
def add_lanes(typing: Any, sums: Any, factors: Any, at: Any) -> Any:
    """Return sums + factors * the eight numbers at an address."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = _of(FLOAT, 8)
        return _call(builder, "llvm.fma.v8f32", lanes, args[1], _load(builder, args[2], lanes), args[0])

    return LANES(sums, LANES, types.int64), code


@_instruction
def in_all(typing: Any, a: Any, b: Any) -> Any:
    """Return the sum of both sums' eight."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = builder.fadd(*args)
        for half in (4, 2, 1):  # of the last, each half is added to the other
            other = ir.Constant(_of(INT, 8), [(i + half) % 8 for i in range(8)])
            total = builder.fadd(total, builder.shuffle_vector(total, total, other))
        return builder.extract_element(total, ir.Constant(INT, 0))

    return types.float32(a, b), code


def _half(context: Any, builder: Any, address: Any, place: int) -> Any:
    """Return one of four numbers that are stored in half precision, eight times.

    All four are read: one alone would be put into a register that still waits for other sums.
    """
    if _has(context, "f16c"):
        four = builder.fpext(_load(builder, address, _of(ir.HalfType(), 4)), _of(FLOAT, 4))
        return builder.shuffle_vector(four, four, ir.Constant(_of(INT, 8), [place] * 8))
    wide = builder.zext(_load(builder, builder.add(address, WORD(2 * place)), SHORT), INT)
    # Moved to where single precision has its exponent, a number is 2^-112 of what it should be; infinity stays one.
    moved = builder.shl(builder.and_(wide, INT(0x7FFF)), INT(13))
    value = builder.fmul(builder.bitcast(moved, FLOAT), FLOAT(2.0**112))
    ends = builder.icmp_unsigned(">=", moved, INT(0x0F800000))
    endless = builder.bitcast(builder.or_(moved, INT(0x7F800000)), FLOAT)
    value = builder.select(ends, endless, value)
    sign = builder.shl(builder.and_(wide, INT(0x8000)), INT(16))
    return _all_same(builder, builder.bitcast(builder.or_(builder.bitcast(value, INT), sign), FLOAT), 8)


@_instruction
def half_at(typing: Any, address: Any) -> Any:
    """Return a number in half precision, eight times. Six more bytes are read, which must be there."""
    return LANES(types.int64), lambda context, builder, signature, args: _half(context, builder, args[0], 0)


@_instruction
def half_before(typing: Any, address: Any) -> Any:
    """Return the number in half precision that ends there, eight times. Six bytes before it are read, too."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _half(context, builder, builder.sub(args[0], WORD(8)), 3)

    return LANES(types.int64), code


@_instruction
def times(typing: Any, lanes: Any, factor: Any) -> Any:
    """Return each of the eight times a number."""
    return LANES(LANES, types.float32), lambda context, builder, signature, args: builder.fmul(
        args[0], _all_same(builder, args[1], 8)
    )


@_instruction
def first_and_last(typing: Any, first: Any, last: Any) -> Any:
    """Return the first four of some and the last four of others."""
    order = ir.Constant(_of(INT, 8), [0, 1, 2, 3, 12, 13, 14, 15])
    return LANES(LANES, LANES), lambda context, builder, signature, args: builder.shuffle_vector(*args, order)


@_instruction
def bytes_at(typing: Any, address: Any) -> Any:
    """Return 32 bytes."""
    return BYTES(types.int64), lambda context, builder, signature, args: _load(builder, args[0], _of(BYTE, 32))


@_instruction
def halves_at(typing: Any, address: Any) -> Any:
    """Return the lower halves of 16 bytes, then the upper ones."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        both = _load(builder, args[0], _of(BYTE, 16))
        low = builder.and_(both, ir.Constant(both.type, [15] * 16))
        high = builder.lshr(both, ir.Constant(both.type, [4] * 16))
        return builder.shuffle_vector(low, high, ir.Constant(_of(INT, 32), list(range(32))))

    return BYTES(types.int64), code


@_instruction
def bits_at(typing: Any, address: Any) -> Any:
    """Return the bits of four bytes, each as a byte."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        four = _load(builder, args[0], INT)
        return builder.zext(builder.bitcast(four, _of(ir.IntType(1), 32)), _of(BYTE, 32))

    return BYTES(types.int64), code


@_instruction
def put_bytes(typing: Any, address: Any, value: Any) -> Any:
    """Write 32 bytes."""
    return types.none(types.int64, BYTES), lambda context, builder, signature, args: _store(context, builder, *args)


@_instruction
def put_lanes(typing: Any, address: Any, value: Any) -> Any:
    """Write eight numbers."""
    return types.none(types.int64, LANES), lambda context, builder, signature, args: _store(context, builder, *args)


def _operator(function: Any, name: str) -> None:
    """Let an operator of Python's work on bytes: with other bytes, or one number for all."""

    @_instruction
    def of_bytes(typing: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            other = args[1] if isinstance(b, Bytes) else _all_same(builder, builder.trunc(args[1], BYTE), 32)
            return getattr(builder, name)(args[0], other)

        return BYTES(a, b if isinstance(b, Bytes) else types.int64), code

    @overload(function)
    def operate(a, b):  # type: ignore[no-untyped-def]  # Numba compares annotations
        if isinstance(a, Bytes):
            return lambda a, b: of_bytes(a, b)
        return None


for _function, _name in (
    (operator.and_, "and_"),
    (operator.or_, "or_"),
    (operator.xor, "xor"),
    (operator.lshift, "shl"),
    (operator.rshift, "lshr"),
):
    _operator(_function, _name)


def _nearest(context: Any, builder: Any, floats: Any) -> Any:
    """Return 32 numbers of up to 127 as bytes; half goes to the even one, and what is not a number to anything."""
    if not _has(context, "avx2"):
        near = _call(builder, "llvm.roundeven.v32f32", floats.type, floats)
        return _call(builder, "llvm.fptosi.sat.v32i8.v32f32", _of(BYTE, 32), near)
    parts = []
    for first in range(0, 32, 8):
        eight = builder.shuffle_vector(floats, floats, ir.Constant(_of(INT, 8), list(range(first, first + 8))))
        parts.append(_call(builder, "llvm.x86.avx.cvt.ps2dq.256", _of(INT, 8), eight))
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        order = ir.Constant(_of(INT, count), list(range(count)))
        parts = [builder.shuffle_vector(a, b, order) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return builder.trunc(parts[0], _of(BYTE, 32))


@_instruction
def round_32(typing: Any, x_at: Any, q_at: Any, sums_at: Any) -> Any:
    """Write 32 numbers as bytes of one scale, the largest 127, and eight sums of four of what they now are; return the scale.

    It is NaN or infinite where a number is.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        floats, whole = _of(FLOAT, 32), _of(INT, 32)
        given = _load(builder, args[0], floats)
        # Without their signs, numbers are in the order of their bits; infinity comes after all, and then NaN.
        bits = builder.and_(builder.bitcast(given, whole), ir.Constant(whole, [0x7FFFFFFF] * 32))
        widest = builder.bitcast(_call(builder, "llvm.vector.reduce.umax.v32i32", INT, bits), FLOAT)
        scale = builder.fdiv(widest, FLOAT(127.0))
        some = builder.fcmp_ordered(">", scale, FLOAT(0.0))
        turned = builder.select(some, builder.fdiv(FLOAT(1.0), scale), FLOAT(0.0))
        rounded = _nearest(context, builder, builder.fmul(given, _all_same(builder, turned, 32)))
        _store(context, builder, args[1], rounded)
        fours = _products(context, builder, ir.Constant(_of(BYTE, 32), [1] * 32), rounded)
        sums = builder.fmul(builder.sitofp(fours, _of(FLOAT, 8)), _all_same(builder, scale, 8))
        _store(context, builder, args[2], sums)
        return scale

    return types.float32(types.int64, types.int64, types.int64), code


@_instruction
def pointer(typing: Any, address: Any) -> Any:
    """Return an address as a pointer."""
    kind = ir.IntType(8).as_pointer()
    return types.voidptr(types.int64), lambda context, builder, signature, args: builder.inttoptr(args[0], kind)


@_instruction
def address_of(typing: Any, array: Any) -> Any:
    """Return where an array begins."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(make_array(array)(context, builder, args[0]).data, ir.IntType(64))

    return types.int64(array), code
