"""Attention of one token of each row to keys and values that lie in blocks (`records.SEEN`), whatever a row's length.

A head's sums run over the positions that it sees, in their order: how they are cut into blocks changes no bit.

Shapes: R rows, H query heads, O outputs, E channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from plainformer.model.fast.basics import Array, numbers_at, words_at
from plainformer.model.fast.jit import compiled
from plainformer.model.fast.lanes import address_of
from plainformer.model.fast.parts import parts_of, share

LOWEST = np.finfo(np.float32).min
# Multiplications that are worth a part of their own.
PART = 2**14


@compiled()
def held_by(kept: Any, r: int) -> Any:
    """Return how many positions a row has."""
    return words_at(kept.lengths, r + 1)[r] if kept.lengths != 0 else kept.held


@compiled()
def bytes_to(kept: Any, r: int, rows: int, s: int, size: int) -> Any:
    """Return how many bytes of keys, or of values, come before position s of row r, of `rows`."""
    block = r * kept.rows // rows
    if kept.table != 0:
        block = words_at(kept.table + 8 * r * kept.width, kept.width)[s // kept.block]
    return block * kept.block_bytes + s % kept.block * 4 * size


@compiled()
def attend(attention: Any, seen: Any, q_RO: Array, y_RO: Array) -> None:
    """Write what each head of each row collects from the keys that it sees; q has the heads in its first H * E columns."""
    rows, total = len(q_RO), 0
    for r in range(rows):
        total = max(total, held_by(seen.shared, r) + held_by(seen.own, r))
    job = attention, seen, rows, total, address_of(q_RO), q_RO.shape[1], address_of(y_RO), y_RO.shape[1]
    share(parts_of(_heads, job), rows * attention.heads, PART // max(2 * attention.size * total, 1) + 1)


@compiled()
def _heads(job: Any, first: int, last: int) -> None:
    """Compute some of the heads."""
    attention, seen, rows, total, q_at, q_size, y_at, y_size = job
    heads, size = attention.heads, attention.size
    scores = np.empty(total, np.float32)
    for n in range(first, last):
        r, h = n // heads, n % heads
        k = h * attention.kv_heads // heads
        q, y = (
            numbers_at(q_at + 4 * (r * q_size + h * size), size),
            numbers_at(y_at + 4 * (r * y_size + h * size), size),
        )
        shared = held_by(seen.shared, r)
        held = shared + held_by(seen.own, r)
        start = max(held - seen.window, 0) if seen.window > 0 else 0
        middle = max(shared - start, 0)  # this many scores are of what is shared
        if middle > 0:
            _score(q, seen.shared, (r, rows, k), start, shared, scores)
        _score(q, seen.own, (r, rows, k), max(start - shared, 0), held - shared, scores[middle:])
        weight = _weigh(attention, seen, (r, rows, h), start, scores[: held - start])
        for e in range(size):
            y[e] = np.float32(0)
        if middle > 0:
            _collect(scores, seen.shared, (r, rows, k), start, shared, y)
        _collect(scores[middle:], seen.own, (r, rows, k), max(start - shared, 0), held - shared, y)
        for e in range(size):
            y[e] /= weight


@compiled()
def _weigh(attention: Any, seen: Any, row: Any, start: int, scores: Array) -> Any:
    """Make weights of scores, in place: what softmax has above its line. Return their sum."""
    r, rows, h = row
    count, scale, softcap = len(scores), np.float32(attention.scale), np.float32(attention.softcap)
    if softcap > 0:
        for s in range(count):
            scores[s] = softcap * math.tanh(scores[s] * scale / softcap)
    else:
        for s in range(count):
            scores[s] *= scale
    if seen.bias != 0:
        held = start + count
        place = r * seen.bias_rows // rows * seen.bias_heads + min(h, seen.bias_heads - 1)
        bias = numbers_at(seen.bias + 4 * (place * held + start), count)
        for s in range(count):
            scores[s] = max(scores[s] + bias[s], np.float32(LOWEST))
    top = np.float32(LOWEST)
    for s in range(count):
        top = max(top, scores[s])
    weight = np.float32(0)
    for s in range(count):
        scores[s] = math.exp(scores[s] - top)
        weight += scores[s]
    return weight


@compiled()
def _score(q: Array, kept: Any, row: Any, first: int, last: int, scores: Array) -> None:
    r, rows, k = row
    size, s = len(q), first
    while s < last:
        count = min(kept.block - s % kept.block, last - s)
        keys = numbers_at(kept.keys + bytes_to(kept, r, rows, s, size) + k * kept.head_bytes, count * size)
        for i in range(count):
            key = keys[i * size : (i + 1) * size]
            score = np.float32(0)
            for e in range(size):
                score += q[e] * key[e]
            scores[s - first + i] = score
        s += count


@compiled()
def _collect(weights: Array, kept: Any, row: Any, first: int, last: int, y: Array) -> None:
    r, rows, k = row
    size, s = len(y), first
    while s < last:
        count = min(kept.block - s % kept.block, last - s)
        values = numbers_at(kept.values + bytes_to(kept, r, rows, s, size) + k * kept.head_bytes, count * size)
        for i in range(count):
            value, weight = values[i * size : (i + 1) * size], weights[s - first + i]
            for e in range(size):
                y[e] += weight * value[e]
        s += count
