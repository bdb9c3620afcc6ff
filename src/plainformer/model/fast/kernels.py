"""Kernels for a few rows at a time - a decoding step - compiled by Numba for the processor they run on.

A decoding step streams every weight once and computes little, so what counts is to read memory with all threads and to
do nothing between two reads: torch's own steps cost more in being called than in computing (docs/decisions.md). Each
function is plain loops over NumPy views of torch's memory; nothing is copied. Importing this module compiles nothing;
the first call of each function does, in seconds, and Numba keeps the result on disk. Numbers are copied one by one: an array
assigned to a slice costs seconds of compilation, most of them for the text of an error that cannot happen.

Sums may be taken in any order, and are taken in fp32; infinities and NaN behave as they should.

Shapes: R rows (one new token each), I inputs, O outputs, D hidden size, H query heads, K key-value heads, E channels of a head,
S positions that a row keeps itself, P positions that it shares with its copies.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import int64
from numba.extending import overload

from plainformer.model.fast.jit import compiled
from plainformer.model.fast.parts import parts_of, share

Array = np.ndarray[Any, np.dtype[Any]]

ACTIVATION_CODES = {
    name: code
    for code, name in enumerate(
        ("identity", "relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid")
    )
}
NORM_CODES = {"none": 0, "layer": 1, "rms": 2}
LOWEST = np.finfo(np.float32).min
# Multiplications that are worth a part of their own: 5 µs of reading weights.
PART = 2**14

# What the kernels read of a model. Plain tuples: Numba takes 30 times as long to look at a named one.
#   Matrix       (weight, affine_2O): y = x Wᵀ * scale + bias, affine each output's scale, bias; the weight is (O, I) in fp32,
#                or whole numbers that say where blocks of few bits lie (`quantised.multiply_blocks`)
#   Norm         (kind, eps, affine_2D): one of `NORM_CODES`, and each channel's weight, bias
#   Norms        (before, after, outer): around a sub-layer f, outer(x + after(f(before(x))))
#   Attention    (qkv, out, heads, kv_heads, scale, softcap, q_norm, k_norm): a softcap of 0 is none
#   Cross        (q, out, heads, scale): the encoder's keys and values are computed elsewhere, once; 0 heads if there is none
#   FeedForward  (up, down, gated, activation): `up` of a gated network is gate and up, joined
#   Layer        (parallel, attention_norms, attention, cross_norms, cross, ffn_norms, ffn)
#   Keys         (shared_keys, shared_values, keys, values, held, bias): P positions that neighbouring rows share,
#                (N, K, P, E), and S = held of each row's own, (R, K, capacity, E); the bias, (N or 0, H or 1, P + S), is
#                added to the scores. Of N for R rows, each serves R / N of them.


@compiled()
def activate(code: int, v: Any) -> Any:
    """Return an activation of a number, by its code in `ACTIVATION_CODES`."""
    if code == 1:
        return max(v, np.float32(0))
    if code == 2:
        return max(v, np.float32(0)) ** 2
    if code == 3:
        return np.float32(0.5) * v * (np.float32(1) + math.erf(v * np.float32(math.sqrt(0.5))))
    if code == 4:
        # (1 + tanh(u)) / 2 is the sigmoid of 2u, whose exponential takes a quarter of the time of tanh.
        inner = np.float32(-2 * math.sqrt(2 / math.pi)) * (v + np.float32(0.044715) * v * v * v)
        return v / (np.float32(1) + math.exp(inner))
    if code == 5:
        return v / (np.float32(1) + math.exp(np.float32(-1.702) * v))
    if code == 6:
        return v / (np.float32(1) + math.exp(-v))
    if code == 7:
        return math.tanh(v)
    if code == 8:
        return np.float32(1) / (np.float32(1) + math.exp(-v))
    return v


@compiled(inner=False)
def multiply(weight_OI: Array, affine_2O: Array, x_RI: Array, y_RO: Array, activation: int, activated: int) -> None:
    """y = x Wᵀ * scale + b, see `Matrix`; the first `activated` outputs then through an activation."""
    rows, size = x_RI.shape
    job = weight_OI, affine_2O, x_RI, y_RO, activation, activated
    share(parts_of(_outputs, job), len(weight_OI), PART // max(size * rows, 1) + 1)


@compiled()
def _outputs(job: Any, first: int, last: int) -> None:
    """Compute some of the outputs of `multiply`.

    Each weight is read from memory once, and serves four rows in a register. What else is to be done with an output is
    done here, where it costs nothing: memory is what everything waits for.
    """
    weight_OI, affine_2O, x_RI, y_RO, activation, activated = job
    rows, size = x_RI.shape
    for o in range(first, last):
        w = weight_OI[o]
        scale, bias = affine_2O[0, o], affine_2O[1, o]
        code = activation if o < activated else 0
        r = 0
        while r + 4 <= rows:
            x0, x1, x2, x3 = x_RI[r], x_RI[r + 1], x_RI[r + 2], x_RI[r + 3]
            s0 = s1 = s2 = s3 = np.float32(0)
            for i in range(size):
                wi = np.float32(w[i])
                s0 += wi * x0[i]
                s1 += wi * x1[i]
                s2 += wi * x2[i]
                s3 += wi * x3[i]
            y_RO[r, o] = activate(code, s0 * scale + bias)
            y_RO[r + 1, o] = activate(code, s1 * scale + bias)
            y_RO[r + 2, o] = activate(code, s2 * scale + bias)
            y_RO[r + 3, o] = activate(code, s3 * scale + bias)
            r += 4
        while r < rows:
            x = x_RI[r]
            s = np.float32(0)
            for i in range(size):
                s += np.float32(w[i]) * x[i]
            y_RO[r, o] = activate(code, s * scale + bias)
            r += 1


def product(*given: Any) -> None:
    """Do as `multiply`, or for blocks as `quantised.multiply_blocks`: chosen when a kernel is compiled, by the weight's type."""


@overload(product)
def _of_numbers(*given):  # type: ignore[no-untyped-def]  # Numba compares the names and annotations of both
    return None if given[0].dtype == int64 else lambda *given: multiply(*given)


@compiled()
def normalize(norm: Any, x: Array, y: Array) -> None:
    """Normalise a vector by layer or RMS norm; `y` may be `x`. Kind "none" copies."""
    kind, eps, affine_2D = norm
    size = len(x)
    if kind == 0:
        for d in range(size):
            y[d] = x[d]
        return
    mean = np.float32(0)
    if kind == 1:
        for d in range(size):
            mean += x[d]
        mean /= np.float32(size)
    squares = np.float32(0)
    for d in range(size):
        squares += (x[d] - mean) * (x[d] - mean)
    scale = np.float32(1 / math.sqrt(squares / np.float32(size) + eps))
    for d in range(size):
        y[d] = (x[d] - mean) * scale * affine_2D[0, d] + affine_2D[1, d]


@compiled()
def _normalize_rows(norm: Any, x_RD: Array, y_RD: Array) -> None:
    for r in range(len(x_RD)):
        normalize(norm, x_RD[r], y_RD[r])


@compiled()
def rotate(x_RO: Array, first: int, heads: int, size: int, turn_2RE: Array) -> None:
    """Turn the first channels of each head in place; the heads are in the columns of `x_RO` from `first` on.

    `turn_2RE`: cosines, and sines with their signs (`position.Rotation`), of each row, or one for all; empty for none.
    """
    _, angles, size_turned = turn_2RE.shape
    half = size_turned // 2
    for r in range(len(x_RO)):
        cos, sin = turn_2RE[0, min(r, angles - 1)], turn_2RE[1, min(r, angles - 1)]
        for h in range(heads):
            x = x_RO[r, first + h * size : first + (h + 1) * size]
            for e in range(half):
                low, high = x[e], x[e + half]
                x[e] = low * cos[e] + high * sin[e]
                x[e + half] = high * cos[e + half] + low * sin[e + half]


@compiled()
def attend(q_RO: Array, heads: int, scale: float, softcap: float, seen: Any, y_RO: Array) -> None:
    """Write what each head of each row collects from its keys; q and y hold the heads in their first H * E columns."""
    shared_keys, _, keys, _, held, _ = seen
    rows, size = len(q_RO), keys.shape[3]
    total = shared_keys.shape[2] + held
    scores_NS = np.empty((rows * heads, total), np.float32)
    job = q_RO, heads, scale, softcap, seen, y_RO, scores_NS
    share(parts_of(_heads, job), rows * heads, PART // max(2 * size * total, 1) + 1)


@compiled()
def _heads(job: Any, first: int, last: int) -> None:
    """Compute some of the heads of `attend`."""
    q_RO, heads, scale, softcap, seen, y_RO, scores_NS = job
    shared_keys, shared_values, keys, values, held, bias = seen
    rows, size = len(q_RO), keys.shape[3]
    group = heads // keys.shape[1]
    shared = shared_keys.shape[2]
    total = shared + held
    for n in range(first, last):
        r, h = n // heads, n % heads
        k = h // group
        q = q_RO[r, h * size : (h + 1) * size]
        y = y_RO[r, h * size : (h + 1) * size]
        scores = scores_NS[n]
        n_shared = r * len(shared_keys) // rows
        if shared > 0:
            _score(q, shared_keys[n_shared, k], shared, scores)
        _score(q, keys[r, k], held, scores[shared:])
        top = np.float32(LOWEST)
        n_bias, h_bias = r * len(bias) // rows, min(h, bias.shape[1] - 1)
        for s in range(total):
            score = scores[s] * np.float32(scale)
            if softcap > 0:
                score = np.float32(softcap) * math.tanh(score / np.float32(softcap))
            if len(bias):
                score = max(score + bias[n_bias, h_bias, s], np.float32(LOWEST))
            scores[s] = score
            top = max(top, score)
        weight = np.float32(0)
        for s in range(total):
            scores[s] = math.exp(scores[s] - top)
            weight += scores[s]
        for e in range(size):
            y[e] = np.float32(0)
        if shared > 0:
            _collect(scores, shared_values[n_shared, k], shared, y)
        _collect(scores[shared:], values[r, k], held, y)
        for e in range(size):
            y[e] /= weight


@compiled()
def _score(q: Array, keys_SE: Array, count: int, scores: Array) -> None:
    for s in range(count):
        key = keys_SE[s]
        score = np.float32(0)
        for e in range(len(q)):
            score += q[e] * key[e]
        scores[s] = score


@compiled()
def _collect(weights: Array, values_SE: Array, count: int, y: Array) -> None:
    for s in range(count):
        value = values_SE[s]
        weight = weights[s]
        for e in range(len(y)):
            y[e] += weight * value[e]


@compiled()
def _add(norms: Any, x_RD: Array, y_RD: Array) -> None:
    """x = outer(x + after(y)), in place."""
    _, after, outer = norms
    if after[0] != 0:
        _normalize_rows(after, y_RD, y_RD)
    for r in range(len(x_RD)):
        for d in range(x_RD.shape[1]):
            x_RD[r, d] += y_RD[r, d]
    if outer[0] != 0:
        _normalize_rows(outer, x_RD, x_RD)


@compiled()
def _self_attention(attention: Any, turn_2RE: Array, seen: Any, x_RD: Array, y_RD: Array) -> None:
    """Attend; writes this step's key and value at position held - 1."""
    qkv, out, heads, kv_heads, scale, softcap, q_norm, k_norm = attention
    _, _, keys, values, held, _ = seen
    rows, size = len(x_RD), keys.shape[3]
    q_size, k_end = heads * size, (heads + kv_heads) * size
    qkv_RO = np.empty((rows, k_end + kv_heads * size), np.float32)
    product(qkv[0], qkv[1], x_RD, qkv_RO, 0, 0)
    if q_norm[0] != 0:
        for r in range(rows):
            _normalize_heads(q_norm, qkv_RO[r, :q_size])
            _normalize_heads(k_norm, qkv_RO[r, q_size:k_end])
    if turn_2RE.size:
        rotate(qkv_RO, 0, heads + kv_heads, size, turn_2RE)
    for r in range(rows):
        for n in range(kv_heads):
            for e in range(size):
                keys[r, n, held - 1, e] = qkv_RO[r, q_size + n * size + e]
                values[r, n, held - 1, e] = qkv_RO[r, k_end + n * size + e]
    context_RO = np.empty((rows, q_size), np.float32)
    attend(qkv_RO, heads, scale, softcap, seen, context_RO)
    product(out[0], out[1], context_RO, y_RD, 0, 0)


@compiled()
def _normalize_heads(norm: Any, x: Array) -> None:
    """Normalise each head by itself, or all at once: as many channels at a time as the norm has weights."""
    size = norm[2].shape[1]
    for start in range(0, len(x), size):
        normalize(norm, x[start : start + size], x[start : start + size])


@compiled()
def _cross_attention(cross: Any, encoder: Any, x_RD: Array, y_RD: Array) -> None:
    q, out, heads, scale = cross
    q_RO = np.empty((len(x_RD), q[1].shape[1]), np.float32)
    product(q[0], q[1], x_RD, q_RO, 0, 0)
    context_RO = np.empty_like(q_RO)
    attend(q_RO, heads, scale, 0.0, encoder, context_RO)
    product(out[0], out[1], context_RO, y_RD, 0, 0)


@compiled()
def _feed_forward(ffn: Any, x_RD: Array, y_RD: Array) -> None:
    up, down, gated, activation = ffn
    outputs = up[1].shape[1]
    size = outputs // 2 if gated else outputs
    inner_RO = np.empty((len(x_RD), outputs), np.float32)
    product(up[0], up[1], x_RD, inner_RO, activation, size)
    if gated:
        gate_RO, inner_RO = inner_RO, np.empty((len(x_RD), size), np.float32)
        for r in range(len(x_RD)):
            for o in range(size):
                inner_RO[r, o] = gate_RO[r, o] * gate_RO[r, size + o]
    product(down[0], down[1], inner_RO, y_RD, 0, 0)


@compiled(inner=False)
def run_layer(layer: Any, turn_2RE: Array, seen: Any, encoder: Any, in_RD: Array, x_RD: Array) -> None:
    """One token of each row through a layer, `in_RD` → `x_RD`; its keys and values go to the last of the `held` places."""
    parallel, attention_norms, attention, cross_norms, cross, ffn_norms, ffn = layer
    h_RD, y_RD = np.empty_like(x_RD), np.empty_like(x_RD)
    for r in range(len(x_RD)):
        for d in range(x_RD.shape[1]):
            x_RD[r, d] = in_RD[r, d]
    _normalize_rows(attention_norms[0], x_RD, h_RD)
    _self_attention(attention, turn_2RE, seen, h_RD, y_RD)
    if parallel:
        _normalize_rows(ffn_norms[0], x_RD, h_RD)
    _add(attention_norms, x_RD, y_RD)
    if cross[2]:
        _normalize_rows(cross_norms[0], x_RD, h_RD)
        _cross_attention(cross, encoder, h_RD, y_RD)
        _add(cross_norms, x_RD, y_RD)
    if not parallel:
        _normalize_rows(ffn_norms[0], x_RD, h_RD)
    _feed_forward(ffn, h_RD, y_RD)
    _add(ffn_norms, x_RD, y_RD)
