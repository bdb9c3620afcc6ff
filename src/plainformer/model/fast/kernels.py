"""Kernels for a few rows at a time - a decoding step - compiled by Numba for the processor they run on.

A decoding step streams every weight once and computes little, so what counts is to read memory with all threads and to
do nothing between two reads: torch's own steps cost more in being called than in computing (docs/decisions.md). Each
function is plain loops over torch's memory, which records (`records.py`) tell the addresses of; nothing is copied. Importing
this module compiles nothing; the first call of each function does, in seconds, and Numba keeps the result on disk. Numbers
are copied one by one: an array assigned to a slice costs seconds of compilation, most of them for the text of an error that
cannot happen.

Sums may be taken in any order, and are taken in fp32; infinities and NaN behave as they should.

Shapes: R rows (one new token each), I inputs, O outputs, D hidden size, E channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from plainformer.model.fast.attending import attend, bytes_to, held_by
from plainformer.model.fast.basics import Array, carray, numbers_at
from plainformer.model.fast.jit import compiled
from plainformer.model.fast.lanes import pointer
from plainformer.model.fast.products import product
from plainformer.model.fast.records import ACTIVATION_CODES as ACTIVATION_CODES
from plainformer.model.fast.records import LAYER, MATRIX, STEP

LAYER_BYTES = LAYER.itemsize


@compiled(inner=False)
def multiply(matrix_at: int, rows: int, x_at: int, y_at: int, activation: int, activated: int) -> None:
    """y = x Wᵀ * scales + bias, of a `MATRIX`, (R, I) → (R, O); the first `activated` outputs then through an activation."""
    matrix = carray(pointer(matrix_at), 1, MATRIX)[0]
    x_RI = carray(pointer(x_at), (rows, matrix.inputs), np.float32)
    y_RO = carray(pointer(y_at), (rows, matrix.outputs), np.float32)
    product(matrix, x_RI, y_RO, activation, activated)


@compiled()
def normalize(norm: Any, x: Array, y: Array) -> None:
    """Normalise a vector by layer or RMS norm; `y` may be `x`. Kind "none" copies."""
    size = len(x)
    if norm.kind == 0:
        for d in range(size):
            y[d] = x[d]
        return
    mean = np.float32(0)
    if norm.kind == 1:
        for d in range(size):
            mean += x[d]
        mean /= np.float32(size)
    squares = np.float32(0)
    for d in range(size):
        squares += (x[d] - mean) * (x[d] - mean)
    scale = np.float32(1 / math.sqrt(squares / np.float32(size) + norm.eps))
    weight, offset = numbers_at(norm.weight, size), np.float32(norm.offset)
    for d in range(size):
        y[d] = (x[d] - mean) * scale * (weight[d] + offset)
    if norm.bias != 0:
        bias = numbers_at(norm.bias, size)
        for d in range(size):
            y[d] += bias[d]


@compiled()
def _normalize_rows(norm: Any, x_RD: Array, y_RD: Array) -> None:
    for r in range(len(x_RD)):
        normalize(norm, x_RD[r], y_RD[r])


@compiled()
def _normalize_heads(norm: Any, x: Array) -> None:
    """Normalise each head by itself, or all at once: as many channels at a time as the norm has weights."""
    for start in range(0, len(x), norm.size):
        normalize(norm, x[start : start + norm.size], x[start : start + norm.size])


@compiled()
def rotate(x_RO: Array, heads: int, size: int, step: Any) -> None:
    """Turn the first channels of each head in place; the heads are in the first columns.

    The step has cosines, and sines with their signs (`position.Rotation`), of each row, or one for all.
    """
    turned, half = step.turned, step.turned // 2
    for r in range(len(x_RO)):
        at = step.turn + 4 * min(r, step.turns - 1) * turned
        cos, sin = numbers_at(at, turned), numbers_at(at + 4 * step.turns * turned, turned)
        for h in range(heads):
            x = x_RO[r, h * size : (h + 1) * size]
            for e in range(half):
                low, high = x[e], x[e + half]
                x[e] = low * cos[e] + high * sin[e]
                x[e + half] = high * cos[e + half] + low * sin[e + half]


@compiled()
def _add(norms: Any, x_RD: Array, y_RD: Array) -> None:
    """x = outer(x + after(y)), in place."""
    if norms.after.kind != 0:
        _normalize_rows(norms.after, y_RD, y_RD)
    for r in range(len(x_RD)):
        for d in range(x_RD.shape[1]):
            x_RD[r, d] += y_RD[r, d]
    if norms.outer.kind != 0:
        _normalize_rows(norms.outer, x_RD, x_RD)


@compiled()
def _self_attention(attention: Any, step: Any, x_RD: Array, y_RD: Array) -> None:
    """Attend; writes this step's key and value to the last position of each row."""
    rows, heads, kv_heads, size = len(x_RD), attention.heads, attention.kv_heads, attention.size
    q_size, k_end = heads * size, (heads + kv_heads) * size
    qkv_RO = np.empty((rows, attention.qkv.outputs), np.float32)
    product(attention.qkv, x_RD, qkv_RO, 0, 0)
    if attention.q_norm.kind != 0:
        for r in range(rows):
            _normalize_heads(attention.q_norm, qkv_RO[r, :q_size])
            _normalize_heads(attention.k_norm, qkv_RO[r, q_size:k_end])
    if step.turned:
        rotate(qkv_RO, heads + kv_heads, size, step)
    own = step.own.own
    for r in range(rows):
        at = bytes_to(own, r, rows, held_by(own, r) - 1, size)
        for n in range(kv_heads):
            key = numbers_at(own.keys + at + n * own.head_bytes, size)
            value = numbers_at(own.values + at + n * own.head_bytes, size)
            for e in range(size):
                key[e] = qkv_RO[r, q_size + n * size + e]
                value[e] = qkv_RO[r, k_end + n * size + e]
    context_RO = np.empty((rows, q_size), np.float32)
    attend(attention, step.own, qkv_RO, context_RO)
    product(attention.out, context_RO, y_RD, 0, 0)


@compiled()
def _cross_attention(attention: Any, step: Any, x_RD: Array, y_RD: Array) -> None:
    """Attend to the encoder's output, whose keys and values were computed elsewhere, once."""
    q_RO = np.empty((len(x_RD), attention.qkv.outputs), np.float32)
    product(attention.qkv, x_RD, q_RO, 0, 0)
    context_RO = np.empty_like(q_RO)
    attend(attention, step.encoder, q_RO, context_RO)
    product(attention.out, context_RO, y_RD, 0, 0)


@compiled()
def _feed_forward(ffn: Any, x_RD: Array, y_RD: Array) -> None:
    outputs = ffn.up.outputs
    size = outputs // 2 if ffn.gated else outputs
    inner_RO = np.empty((len(x_RD), outputs), np.float32)
    product(ffn.up, x_RD, inner_RO, ffn.activation, size)
    if ffn.gated:
        gate_RO, inner_RO = inner_RO, np.empty((len(x_RD), size), np.float32)
        for r in range(len(x_RD)):
            for o in range(size):
                inner_RO[r, o] = gate_RO[r, o] * gate_RO[r, size + o]
    product(ffn.down, inner_RO, y_RD, 0, 0)


@compiled()
def _run_layer(layer: Any, step: Any, x_RD: Array, h_RD: Array, y_RD: Array) -> None:
    """One token of each row through a layer, in place; `h_RD` and `y_RD` are for what is in between."""
    _normalize_rows(layer.attention_norms.before, x_RD, h_RD)
    _self_attention(layer.attention, step, h_RD, y_RD)
    if layer.parallel:
        _normalize_rows(layer.ffn_norms.before, x_RD, h_RD)
    _add(layer.attention_norms, x_RD, y_RD)
    if layer.cross.heads:
        _normalize_rows(layer.cross_norms.before, x_RD, h_RD)
        _cross_attention(layer.cross, step, h_RD, y_RD)
        _add(layer.cross_norms, x_RD, y_RD)
    if not layer.parallel:
        _normalize_rows(layer.ffn_norms.before, x_RD, h_RD)
    _feed_forward(layer.ffn, h_RD, y_RD)
    _add(layer.ffn_norms, x_RD, y_RD)


@compiled(inner=False)
def run_layers(layers_at: int, steps_at: int, count: int, rows: int, size: int, x_at: int) -> None:
    """One token of each row through `count` layers, in place: a `STEP` for each, which says which `LAYER` it is."""
    x_RD = carray(pointer(x_at), (rows, size), np.float32)
    h_RD, y_RD = np.empty_like(x_RD), np.empty_like(x_RD)
    steps = carray(pointer(steps_at), count, STEP)
    for number in range(count):
        layer = carray(pointer(layers_at + LAYER_BYTES * steps[number].layer), 1, LAYER)[0]
        _run_layer(layer, steps[number], x_RD, h_RD, y_RD)
