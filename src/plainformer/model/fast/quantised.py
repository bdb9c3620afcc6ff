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

from plainformer.model.fast.basics import Array, carray, finished, numbers_at, words_at
from plainformer.model.fast.jit import compiled
from plainformer.model.fast.lanes import (
    add_products,
    address_of,
    bits_at,
    bytes_at,
    half_at,
    halves_at,
    in_all,
    no_sums,
    pointer,
    put_bytes,
    put_same,
    round_32,
)
from plainformer.model.fast.parts import parts_of, share

# Kinds of blocks have the numbers that `blocks.KIND_CODES` gives them; 0 are fp32 numbers, whose inputs are not rounded.
# Multiplications that are worth a part of their own.
PART = 2**15


@compiled()
def round_input(x_RI: Array, q_RI: Array, d_RG: Array, sums_R2G: Array) -> None:
    """x ≈ d * q, rounded 32 numbers at a time; `sums_R2G`: d times the sum of each 16 of q. Inputs beyond x are zero."""
    size, blocks = x_RI.shape[1], d_RG.shape[1]
    edge = np.zeros(32, np.float32)
    for r in range(len(x_RI)):
        for b in range(blocks):
            at = address_of(x_RI) + 4 * (size * r + 32 * b)
            if 32 * b + 32 > size:
                for i in range(size - 32 * b):
                    edge[i] = x_RI[r, 32 * b + i]
                at = address_of(edge)
            d, low, high = round_32(at, address_of(q_RI) + 32 * (blocks * r + b))
            d_RG[r, b] = d
            sums_R2G[r, 2 * b] = d * np.float32(low)
            sums_R2G[r, 2 * b + 1] = d * np.float32(high)
    edge[0] = 0  # until here it is needed


@compiled()
def _make_bytes(kind: int, w: int, u: int, s: int, m: int, blocks: int) -> None:
    """Make a row of weights what the products read: 32 bytes a block, eight scales, two minima."""
    if kind == 1:
        _q8_0(w, u, s, m, blocks)
    elif kind <= 5:
        _q4_q5(kind, w, u, s, m, blocks)
    elif kind <= 7:
        _q4_k_q5_k(kind, w, u, s, m, blocks // 8)
    else:
        _q6_k(w, u, s, m, blocks // 8)


@compiled()
def _put_scale(s: int, m: int, b: int, scale: Any, minimum: Any) -> None:
    put_same(s + 32 * b, scale)
    put_same(s + 32 * b + 16, scale)
    minima = numbers_at(m + 8 * b, 2)
    minima[0] = minimum
    minima[1] = minimum


@compiled()
def _q8_0(w: int, u: int, s: int, m: int, blocks: int) -> None:
    """A scale, 32 signed bytes."""
    for b in range(blocks):
        at = w + 34 * b
        scale = half_at(at)
        _put_scale(s, m, b, scale, np.float32(-128) * scale)
        put_bytes(u + 32 * b, bytes_at(at + 2) ^ 128)


@compiled()
def _q4_q5(kind: int, w: int, u: int, s: int, m: int, blocks: int) -> None:
    """A scale, a minimum (Q4_1, Q5_1), 32 fifth bits (Q5_0, Q5_1), 16 bytes of two halves each."""
    has_minimum, has_fifth = kind == 3 or kind == 5, kind >= 4
    head = 4 if has_minimum else 2
    low = head + 4 if has_fifth else head
    for b in range(blocks):
        at = w + (low + 16) * b
        scale = half_at(at)
        if has_minimum:
            minimum = half_at(at + 2)
        else:
            minimum = scale * np.float32(-16 if has_fifth else -8)
        _put_scale(s, m, b, scale, minimum)
        made = halves_at(at + low)
        if has_fifth:
            made = made | (bits_at(at + head) << 4)
        put_bytes(u + 32 * b, made)


@compiled()
def _q4_k_q5_k(kind: int, w: int, u: int, s: int, m: int, blocks: int) -> None:
    """256 weights: a scale of scales, one of minima, eight of each in 6 bits, fifth bits (Q5_K), 128 bytes of two halves."""
    low = 48 if kind == 7 else 16
    for k in range(blocks):
        at = w + (low + 128) * k
        scale, minimum = half_at(at), half_at(at + 2)
        six = carray(pointer(at + 4), 12, np.uint8)
        for b in range(8):
            if b < 4:
                part, below = six[b] & 63, six[b + 4] & 63
            else:
                part = (six[b + 4] & 15) | (six[b - 4] >> 6 << 4)
                below = (six[b + 4] >> 4) | (six[b] >> 6 << 4)
            _put_scale(s, m, 8 * k + b, scale * np.float32(part), -minimum * np.float32(below))
        for pair in range(4):
            both, to = bytes_at(at + low + 32 * pair), u + 256 * k + 64 * pair
            first, second = both & 15, both >> 4
            if kind == 7:
                fifths = bytes_at(at + 16) >> (2 * pair)
                first, second = first | ((fifths & 1) << 4), second | ((fifths & 2) << 3)
            put_bytes(to, first)
            put_bytes(to + 32, second)


@compiled()
def _q6_k(w: int, u: int, s: int, m: int, blocks: int) -> None:
    """256 weights: 128 bytes of two halves, 64 of four upper pairs of bits, 16 scales in 8 bits, a scale of those."""
    for k in range(blocks):
        at = w + 210 * k
        whole = half_at(at + 208)
        parts, minima = carray(pointer(at + 192), 16, np.int8), numbers_at(m + 64 * k, 16)
        for part in range(16):
            scale = whole * np.float32(parts[part])
            put_same(s + 256 * k + 16 * part, scale)
            minima[part] = np.float32(-32) * scale
        for side in range(2):
            to, low = u + 256 * k + 128 * side, at + 64 * side
            a, b, upper = bytes_at(low), bytes_at(low + 32), bytes_at(at + 128 + 32 * side)
            put_bytes(to, (a & 15) | ((upper & 3) << 4))
            put_bytes(to + 32, (b & 15) | ((upper & 12) << 2))
            put_bytes(to + 64, (a >> 4) | (upper & 48))
            put_bytes(to + 96, (b >> 4) | ((upper & 192) >> 2))


@compiled()
def _four_rows(made: Any, rounded: Any, r: int, blocks: int, y: int) -> None:
    """y = the products of a row of weights with rows r to r + 3."""
    u, scales, m = made
    q_R, d_R, sums_R = rounded
    step = 32 * blocks
    q = q_R + r * step
    d = numbers_at(d_R + 4 * r * blocks, 4 * blocks)
    y0 = y1 = y2 = y3 = no_sums()
    for b in range(blocks):
        at, s = u + 32 * b, scales + 32 * b
        y0 = add_products(y0, at, q + 32 * b, s, d[b])
        y1 = add_products(y1, at, q + step + 32 * b, s, d[blocks + b])
        y2 = add_products(y2, at, q + 2 * step + 32 * b, s, d[2 * blocks + b])
        y3 = add_products(y3, at, q + 3 * step + 32 * b, s, d[3 * blocks + b])
    sums = sums_R + 8 * r * blocks
    out = numbers_at(y + 4 * r, 4)
    out[0] = in_all(y0) + _dot(m, sums, 2 * blocks)
    out[1] = in_all(y1) + _dot(m, sums + 8 * blocks, 2 * blocks)
    out[2] = in_all(y2) + _dot(m, sums + 16 * blocks, 2 * blocks)
    out[3] = in_all(y3) + _dot(m, sums + 24 * blocks, 2 * blocks)


@compiled()
def _one_row(made: Any, rounded: Any, r: int, blocks: int, y: int) -> None:
    u, scales, m = made
    q_R, d_R, sums_R = rounded
    q, d = q_R + 32 * r * blocks, numbers_at(d_R + 4 * r * blocks, blocks)
    total = no_sums()
    for b in range(blocks):
        total = add_products(total, u + 32 * b, q + 32 * b, scales + 32 * b, d[b])
    numbers_at(y + 4 * r, 1)[0] = in_all(total) + _dot(m, sums_R + 8 * r * blocks, 2 * blocks)


@compiled()
def _dot(a_at: int, b_at: int, count: int) -> Any:
    a, b, total = numbers_at(a_at, count), numbers_at(b_at, count), np.float32(0)
    for i in range(count):
        total += a[i] * b[i]
    return total


@compiled()
def _row(kind: int, w: int, x: int, size: int, rows: int, rounded: Any, made: Any, y: int) -> None:
    """y = a row of weights from address `w` on, times every row of the input, of `size` numbers from `x` on."""
    blocks = (size + 31) // 32
    if kind == 0:
        out = numbers_at(y, rows)
        for r in range(rows):
            out[r] = _dot(w, x + 4 * size * r, size)
        return
    _make_bytes(kind, w, *made, blocks)
    r = 0
    while r + 4 <= rows:
        _four_rows(made, rounded, r, blocks, y)
        r += 4
    while r < rows:
        _one_row(made, rounded, r, blocks, y)
        r += 1


@compiled()
def _room(at: int, blocks: int) -> Any:
    """Divide memory into that of bytes, scales, and minima; see `_make_bytes`."""
    return at, at + 32 * blocks, at + 64 * blocks


@compiled()
def multiply_blocks(matrix: Any, x_RI: Array, y_RO: Array, activation: int, activated: int) -> None:
    """y = x Wᵀ * scales + bias, of a matrix in blocks: the rows of all segments, (address, rows, bytes of a row, kind) each."""
    rows, size = x_RI.shape
    blocks = (size + 31) // 32
    q_RI, d_RG = np.empty((rows, 32 * blocks), np.int8), np.empty((rows, blocks), np.float32)
    sums_R2G = np.empty((rows, 2 * blocks), np.float32)
    round_input(x_RI, q_RI, d_RG, sums_R2G)
    rounded = address_of(q_RI), address_of(d_RG), address_of(sums_R2G)
    job = matrix, address_of(x_RI), rows, rounded, address_of(y_RO), activation, activated
    share(parts_of(_outputs, job), matrix.outputs, PART // max(size * rows, 1) + 1)
    q_RI[0, 0] = 0  # until here it is needed, as are the others
    d_RG[0, 0] = 0
    sums_R2G[0, 0] = 0


@compiled()
def _outputs(job: Any, first: int, last: int) -> None:
    """Compute some of the outputs of `multiply_blocks`."""
    matrix, x, rows, rounded, y_at, activation, activated = job
    size, outputs, segments_at = matrix.inputs, matrix.outputs, matrix.weight
    blocks = (size + 31) // 32
    own = np.empty(72 * blocks + 4 * rows, np.uint8)
    made, y = _room(address_of(own), blocks), address_of(own) + 72 * blocks
    y_R, y_RO = numbers_at(y, rows), numbers_at(y_at, rows * outputs)
    segment, before = words_at(segments_at, 4), 0
    for o in range(first, last):
        while o - before >= segment[1]:
            before += segment[1]
            segments_at += 32
            segment = words_at(segments_at, 4)
        _row(segment[3], segment[0] + (o - before) * segment[2], x, size, rows, rounded, made, y)
        for r in range(rows):
            y_RO[r * outputs + o] = finished(matrix, o, y_R[r], activation, activated)
    own[0] = 0  # until here it is needed


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
    own = np.empty(72 * blocks, np.uint8)
    made = _room(address_of(own), blocks)
    for o in range(first, last):
        _make_bytes(segment[3], segment[0] + o * segment[2], *made, blocks)
        _widen_row(made, y_at + 4 * o * size, size)
    own[0] = 0  # until here it is needed


@compiled()
def _widen_row(made: Any, y_at: int, size: int) -> None:
    blocks = (size + 31) // 32
    u, s, m = (
        carray(pointer(made[0]), 32 * blocks, np.uint8),
        numbers_at(made[1], 8 * blocks),
        numbers_at(made[2], 2 * blocks),
    )
    y = numbers_at(y_at, size)
    for group in range((size + 15) // 16):
        scale, minimum = s[4 * group], m[group]
        for i in range(16 * group, min(16 * group + 16, size)):
            y[i] = scale * np.float32(u[i]) + minimum
