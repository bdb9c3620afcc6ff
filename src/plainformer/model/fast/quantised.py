"""Products with weights in blocks of few bits, as GGUF files have them: read where they lie, multiplied as whole numbers.

Every kind of block is, 32 weights at a time, unsigned bytes u with scales s and minima m: a weight is s * u + m. Rounded to
eight bits, 32 numbers of an input with one scale d, its numbers are d * q. So

    Σ w x = Σ s d (Σ u q) + Σ m (d Σ q)         the inner sums are of whole numbers, and exact

A row of weights is read from memory once, made bytes in the nearest cache, and serves all rows of the input. A row of the
input is rounded by itself: what it gives is the same in every batch. Layouts of the blocks: the `gguf` package, `quants.py`.

Functions get addresses and not arrays: Numba counts an array's references, and threads that count the same ones wait for each
other (eight times as long in all).

Shapes: R rows, I inputs, O outputs, G blocks of 32 inputs, M segments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from plainformer.model.fast.basics import Array, carray, finished, numbers_at, words_at
from plainformer.model.fast.jit import compiled
from plainformer.model.fast.lanes import (
    add_block,
    add_lanes,
    address_of,
    bits_at,
    bytes_at,
    first_and_last,
    half_at,
    half_before,
    halves_at,
    in_all,
    no_sums,
    number_at,
    pointer,
    put_bytes,
    put_lanes,
    put_number,
    round_32,
    times,
)
from plainformer.model.fast.parts import parts_of, share

# Kinds of blocks have the numbers that `blocks.KIND_CODES` gives them; 0 are fp32 numbers, whose inputs are not rounded.
# Multiplications that are worth a part of their own.
PART = 2**15


@compiled()
def round_input(x_RI: Array, q_RI: Array, d_RG: Array, sums_RI: Array) -> None:
    """x ≈ d * q, rounded 32 numbers at a time; `sums_RI`: eight sums of four of these. Inputs beyond x are zero."""
    size, blocks = x_RI.shape[1], d_RG.shape[1]
    edge = np.zeros(32, np.float32)
    for r in range(len(x_RI)):
        for b in range(blocks):
            at, place = address_of(x_RI) + 4 * (size * r + 32 * b), 32 * (blocks * r + b)
            if 32 * b + 32 > size:
                for i in range(size - 32 * b):
                    edge[i] = x_RI[r, 32 * b + i]
                at = address_of(edge)
            d_RG[r, b] = round_32(at, address_of(q_RI) + place, address_of(sums_RI) + place)
    edge[0] = 0  # until here it is needed


def take(*given: Any) -> Any:
    """Do with 32 weights what they are wanted for, and return the sums of products so far.

    The arguments are where to, the sums, the block's number, its bytes, and the scales and minima of its weights, four to a
    lane. "Where to" is one of
        (at, blocks)           all blocks' bytes are kept at an address, then scales, then minima
        (q, d, sums)           a row of the input in bytes, its scales and its sums: one product is added up
        (q, d, sums, blocks)   four such rows, one after the other: four products
    """


@overload(take)
def _of_weights(to, sums, b, made, scales, minima):  # type: ignore[no-untyped-def]  # Numba compares annotations
    return {2: _kept, 3: _one_product, 4: _four_products}[len(to)]


def _kept(to, sums, b, made, scales, minima):  # type: ignore[no-untyped-def]
    at, blocks = to
    put_bytes(at + 32 * b, made)
    put_lanes(at + 32 * (blocks + b), scales)
    put_lanes(at + 32 * (2 * blocks + b), minima)
    return sums


def _one_product(to, sums, b, made, scales, minima):  # type: ignore[no-untyped-def]
    q, d, of_fours = to
    at = 32 * b
    return add_block(sums[0], made, q + at, scales, number_at(d + 4 * b)), add_lanes(sums[1], minima, of_fours + at)


def _four_products(to, sums, b, made, scales, minima):  # type: ignore[no-untyped-def]
    q, d, of_fours, blocks = to
    y0, z0, y1, z1, y2, z2, y3, z3 = sums
    at, step = 32 * b, 32 * blocks
    d += 4 * b
    y0, z0 = add_block(y0, made, q + at, scales, number_at(d)), add_lanes(z0, minima, of_fours + at)
    at, d = at + step, d + 4 * blocks
    y1, z1 = add_block(y1, made, q + at, scales, number_at(d)), add_lanes(z1, minima, of_fours + at)
    at, d = at + step, d + 4 * blocks
    y2, z2 = add_block(y2, made, q + at, scales, number_at(d)), add_lanes(z2, minima, of_fours + at)
    at, d = at + step, d + 4 * blocks
    y3, z3 = add_block(y3, made, q + at, scales, number_at(d)), add_lanes(z3, minima, of_fours + at)
    return y0, z0, y1, z1, y2, z2, y3, z3


def none_yet(to: Any) -> Any:
    """Return the sums that `take` starts with: of products with bytes, and with minima, for each row."""


@overload(none_yet)
def _sums_for(to):  # type: ignore[no-untyped-def]  # Numba compares annotations
    if len(to) < 4:
        return lambda to: (no_sums(), no_sums())
    return lambda to: (no_sums(), no_sums(), no_sums(), no_sums(), no_sums(), no_sums(), no_sums(), no_sums())


@compiled()
def _walk(kind: int, w: int, to: Any, blocks: int) -> Any:
    """Take all blocks of a row of weights, each as 32 bytes, scales and minima; return the sums."""
    if kind == 1:
        return _q8_0(w, to, blocks)
    if kind <= 5:
        return _q4_q5(kind, w, to, blocks)
    if kind <= 7:
        return _q4_k_q5_k(kind, w, to, blocks // 8)
    return _q6_k(w, to, blocks // 8)


@compiled()
def _q8_0(w: int, to: Any, blocks: int) -> Any:
    """A scale, 32 signed bytes."""
    sums = none_yet(to)
    for b in range(blocks):
        at = w + 34 * b
        scale = half_at(at)
        sums = take(to, sums, b, bytes_at(at + 2) ^ 128, scale, times(scale, -128))
    return sums


@compiled()
def _q4_q5(kind: int, w: int, to: Any, blocks: int) -> Any:
    """A scale, a minimum (Q4_1, Q5_1), 32 fifth bits (Q5_0, Q5_1), 16 bytes of two halves each."""
    sums, has_minimum, has_fifth = none_yet(to), kind == 3 or kind == 5, kind >= 4
    head = 4 if has_minimum else 2
    low = head + 4 if has_fifth else head
    for b in range(blocks):
        at = w + (low + 16) * b
        scale = half_at(at)
        minimum = half_at(at + 2) if has_minimum else times(scale, -16 if has_fifth else -8)
        made = halves_at(at + low)
        if has_fifth:
            made = made | (bits_at(at + head) << 4)
        sums = take(to, sums, b, made, scale, minimum)
    return sums


@compiled()
def _six_bits(six: Array, b: int) -> Any:
    """Return the scale and the minimum of block b, 0 to 7, which are packed in twelve bytes."""
    if b < 4:
        return np.float32(six[b] & 63), np.float32(six[b + 4] & 63)
    part = (six[b + 4] & 15) | (six[b - 4] >> 6 << 4)
    below = (six[b + 4] >> 4) | (six[b] >> 6 << 4)
    return np.float32(part), np.float32(below)


@compiled()
def _q4_k_q5_k(kind: int, w: int, to: Any, blocks: int) -> Any:
    """256 weights: a scale of scales, one of minima, eight of each in 6 bits, fifth bits (Q5_K), 128 bytes of two halves."""
    sums, low = none_yet(to), 48 if kind == 7 else 16
    for k in range(blocks):
        at = w + (low + 128) * k
        scale, minimum = half_at(at), half_at(at + 2)
        six = carray(pointer(at + 4), 12, np.uint8)
        for pair in range(4):
            both, b = bytes_at(at + low + 32 * pair), 8 * k + 2 * pair
            first, second = both & 15, both >> 4
            if kind == 7:
                fifths = bytes_at(at + 16) >> (2 * pair)
                first, second = first | ((fifths & 1) << 4), second | ((fifths & 2) << 3)
            part, below = _six_bits(six, 2 * pair)
            sums = take(to, sums, b, first, times(scale, part), times(minimum, -below))
            part, below = _six_bits(six, 2 * pair + 1)
            sums = take(to, sums, b + 1, second, times(scale, part), times(minimum, -below))
    return sums


@compiled()
def _q6_k(w: int, to: Any, blocks: int) -> Any:
    """256 weights: 128 bytes of two halves, 64 of four upper pairs of bits, 16 scales in 8 bits, a scale of those."""
    sums = none_yet(to)
    for k in range(blocks):
        at = w + 210 * k
        whole = half_before(at + 210)
        for side in range(2):
            low = at + 64 * side
            a, c, upper = bytes_at(low), bytes_at(low + 32), bytes_at(at + 128 + 32 * side)
            sums = _sixths(to, sums, 8 * k + 4 * side, (a & 15) | ((upper & 3) << 4), whole, at + 192)
            sums = _sixths(to, sums, 8 * k + 4 * side + 1, (c & 15) | ((upper & 12) << 2), whole, at + 192)
            sums = _sixths(to, sums, 8 * k + 4 * side + 2, (a >> 4) | (upper & 48), whole, at + 192)
            sums = _sixths(to, sums, 8 * k + 4 * side + 3, (c >> 4) | ((upper & 192) >> 2), whole, at + 192)
    return sums


@compiled()
def _sixths(to: Any, sums: Any, b: int, made: Any, whole: Any, parts_at: int) -> Any:
    """Take a block whose two scales are the next of 16 parts of a whole one."""
    parts = carray(pointer(parts_at + 2 * (b % 8)), 2, np.int8)
    scales = first_and_last(times(whole, parts[0]), times(whole, parts[1]))
    return take(to, sums, b, made, scales, times(scales, -32))


@compiled()
def _row(kind: int, w: int, x: int, size: int, rows: int, rounded: Any, y: int) -> None:
    """y = a row of weights from address `w` on, times every row of the input, of `size` numbers from `x` on."""
    blocks = (size + 31) // 32
    if kind == 0:
        for r in range(rows):
            put_number(y + 4 * r, _dot(w, x + 4 * size * r, size))
        return
    q, d, sums = rounded
    while rows > 1:  # the last four may go beyond: there are zeros
        y0, z0, y1, z1, y2, z2, y3, z3 = _walk(kind, w, (q, d, sums, blocks), blocks)
        put_number(y, in_all(y0, z0))
        put_number(y + 4, in_all(y1, z1))
        put_number(y + 8, in_all(y2, z2))
        put_number(y + 12, in_all(y3, z3))
        rows, y = rows - 4, y + 16
        q, d, sums = q + 128 * blocks, d + 16 * blocks, sums + 128 * blocks
    if rows == 1:
        y0, z0 = _walk(kind, w, (q, d, sums), blocks)
        put_number(y, in_all(y0, z0))


@compiled()
def _dot(a_at: int, b_at: int, count: int) -> Any:
    a, b, total = numbers_at(a_at, count), numbers_at(b_at, count), np.float32(0)
    for i in range(count):
        total += a[i] * b[i]
    return total


@compiled()
def multiply_blocks(matrix: Any, x_RI: Array, y_RO: Array, activation: int, activated: int) -> None:
    """y = x Wᵀ * scales + bias, of a matrix in blocks: the rows of all segments, (address, rows, bytes of a row, kind) each."""
    rows, size = x_RI.shape
    blocks, fours = (size + 31) // 32, (rows + 3) // 4 * 4
    q_RI, d_RG = np.zeros((fours, 32 * blocks), np.int8), np.zeros((fours, blocks), np.float32)
    sums_RI = np.zeros((fours, 8 * blocks), np.float32)
    round_input(x_RI, q_RI, d_RG, sums_RI)
    rounded = address_of(q_RI), address_of(d_RG), address_of(sums_RI)
    job = matrix, address_of(x_RI), rows, rounded, address_of(y_RO), activation, activated
    share(parts_of(_outputs, job), matrix.outputs, PART // max(size * rows, 1) + 1)
    q_RI[0, 0] = 0  # until here it is needed, as are the others
    d_RG[0, 0] = 0
    sums_RI[0, 0] = 0


@compiled()
def _outputs(job: Any, first: int, last: int) -> None:
    """Compute some of the outputs of `multiply_blocks`."""
    matrix, x, rows, rounded, y_at, activation, activated = job
    size, outputs, segments_at = matrix.inputs, matrix.outputs, matrix.weight
    y_R, y_RO = np.empty((rows + 3) // 4 * 4, np.float32), numbers_at(y_at, rows * outputs)
    segment, before = words_at(segments_at, 4), 0
    for o in range(first, last):
        while o - before >= segment[1]:
            before += segment[1]
            segments_at += 32
            segment = words_at(segments_at, 4)
        w = segment[0] + (o - before) * segment[2]
        _row(segment[3], w, x, size, rows, rounded, address_of(y_R))
        for r in range(rows):
            y_RO[r * outputs + o] = finished(matrix, o, y_R[r], activation, activated)


@compiled(inner=False)
def widen(segments_M4: Array, y_OI: Array) -> None:
    """y = the numbers of one segment's rows, each s * u + m: exact, but for the last rounding."""
    rows, size = y_OI.shape
    job = address_of(segments_M4), address_of(y_OI), size
    share(parts_of(_widen_rows, job), rows, PART // max(size, 1) + 1)


@compiled()
def _widen_rows(job: Any, first: int, last: int) -> None:
    segment_at, y_at, size = job
    blocks = (size + 31) // 32
    segment = words_at(segment_at, 4)
    own = np.empty(96 * blocks, np.uint8)
    at = address_of(own)
    for o in range(first, last):
        _walk(segment[3], segment[0] + o * segment[2], (at, blocks), blocks)
        _widen_row(at, blocks, y_at + 4 * o * size, size)
    own[0] = 0  # until here it is needed


@compiled()
def _widen_row(at: int, blocks: int, y_at: int, size: int) -> None:
    u, y = carray(pointer(at), 32 * blocks, np.uint8), numbers_at(y_at, size)
    s, m = numbers_at(at + 32 * blocks, 8 * blocks), numbers_at(at + 64 * blocks, 8 * blocks)
    for four in range((size + 3) // 4):
        scale, minimum = s[four], m[four]
        for i in range(4 * four, min(4 * four + 4, size)):
            y[i] = scale * np.float32(u[i]) + minimum
