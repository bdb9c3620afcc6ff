"""Kernels for a few rows at a time - a decoding step - compiled by Numba for the processor they run on.

A decoding step streams every weight once and computes little, so what counts is to read memory with all threads and to
do nothing between two reads: torch's own steps cost more in being called than in computing (docs/decisions.md). Each
function is plain loops over NumPy views of torch's memory; nothing is copied. Importing this module compiles nothing;
the first call of each function does, in seconds, and Numba keeps the result on disk.

Sums may be taken in any order, and are taken in fp32; infinities and NaN behave as they should.

Shapes: R rows (one new token each), I inputs, O outputs, D hidden size, H query heads, K key-value heads, E channels of a head,
S positions that a row keeps itself, P positions that it shares with its copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

ACTIVATION_CODES = {
    name: code
    for code, name in enumerate(
        ("identity", "relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid")
    )
}
NORM_CODES = {"none": 0, "layer": 1, "rms": 2}
LOWEST = np.finfo(np.float32).min


class Matrix(NamedTuple):
    """y = x Wᵀ * scale + bias. The weight is fp32 or int8; `affine_2O` holds each output's scale, and its bias."""

    weight_OI: Array
    affine_2O: Array


class Norm(NamedTuple):
    """`kind` is one of `NORM_CODES`; `affine_2D` holds each channel's weight, and its bias."""

    kind: int
    eps: float
    affine_2D: Array


class Norms(NamedTuple):
    """The norms around a sub-layer f: outer(x + after(f(before(x)))). Those that a model lacks do nothing."""

    before: Norm
    after: Norm
    outer: Norm


class Attention(NamedTuple):
    """Self-attention's numbers; `softcap` 0 is none."""

    qkv: Matrix
    out: Matrix
    heads: int
    kv_heads: int
    scale: float
    softcap: float
    q_norm: Norm
    k_norm: Norm


class Cross(NamedTuple):
    """Cross-attention's numbers; the keys and values of the encoder's output are computed elsewhere, once. `heads` 0: none."""

    q: Matrix
    out: Matrix
    heads: int
    scale: float


class FeedForward(NamedTuple):
    """`up` of a gated network is gate and up, joined."""

    up: Matrix
    down: Matrix
    gated: bool
    activation: int


class Layer(NamedTuple):
    """A whole layer."""

    parallel: bool
    attention_norms: Norms
    attention: Attention
    cross_norms: Norms
    cross: Cross
    ffn_norms: Norms
    ffn: FeedForward


class Keys(NamedTuple):
    """What a step attends to: P positions that neighbouring rows share, and S of each row's own.

    shared_keys, shared_values (N, K, P, E); keys, values (R, K, capacity, E), of which `held` = S are in use;
    bias (N or 0, H or 1, P + S), added to the scores. Of N for R rows, each serves R / N of them.
    """

    shared_keys: Array
    shared_values: Array
    keys: Array
    values: Array
    held: int
    bias: Array


def _compiled(parallel: bool = False, inner: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit`, keeping what it compiled on disk wherever it finds a place for that."""
    # Of what Numba may do in parallel, only `prange`: looking for the rest takes seconds at each compilation.
    others = ("reduction", "inplace_binop", "stencil", "comprehension", "setitem", "numpy", "fusion")
    options: dict[str, Any] = {
        "parallel": {"prange": True, **dict.fromkeys(others, False)} if parallel else False,
        "fastmath": {"reassoc", "contract", "arcp", "nsz"},
        "error_model": "numpy",
        "nogil": True,
        # What is called by kernels alone needs no wrapper that Python could call it through.
        "no_cpython_wrapper": inner,
        "no_cfunc_wrapper": True,
    }

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written to
            return numba.njit(**options)(function)

    return decorate


@_compiled()
def activate(code: int, v: Any) -> Any:
    """One of `ACTIVATION_CODES`."""
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


@_compiled(parallel=True, inner=False)
def multiply(weight_OI: Array, affine_2O: Array, x_RI: Array, y_RO: Array, activation: int, activated: int) -> None:
    """y = x Wᵀ * scale + b, see `Matrix`; the first `activated` outputs then through an activation.

    Each weight is read from memory once, and serves four rows in a register. What else is to be done with an output is
    done here, where it costs nothing: memory is what everything waits for.
    """
    rows, size = x_RI.shape
    for o in numba.prange(len(weight_OI)):
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


@_compiled()
def normalize(norm: Norm, x: Array, y: Array) -> None:
    """Layer or RMS norm of a vector; `y` may be `x`. Kind "none" copies."""
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
    for d in range(size):
        y[d] = (x[d] - mean) * scale * norm.affine_2D[0, d] + norm.affine_2D[1, d]


@_compiled()
def _normalize_rows(norm: Norm, x_RD: Array, y_RD: Array) -> None:
    for r in range(len(x_RD)):
        normalize(norm, x_RD[r], y_RD[r])


@_compiled()
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


@_compiled(parallel=True)
def attend(q_RO: Array, heads: int, scale: float, softcap: float, seen: Keys, y_RO: Array) -> None:
    """Each head of each row looks at its keys; q and y hold the heads in their first H * E columns."""
    rows, size = len(q_RO), seen.keys.shape[3]
    group = heads // seen.keys.shape[1]
    shared = seen.shared_keys.shape[2]
    total = shared + seen.held
    scores_NS = np.empty((rows * heads, total), np.float32)
    for n in numba.prange(rows * heads):
        r, h = n // heads, n % heads
        k = h // group
        q = q_RO[r, h * size : (h + 1) * size]
        y = y_RO[r, h * size : (h + 1) * size]
        scores = scores_NS[n]
        n_shared = r * len(seen.shared_keys) // rows
        if shared > 0:
            _score(q, seen.shared_keys[n_shared, k], shared, scores)
        _score(q, seen.keys[r, k], seen.held, scores[shared:])
        top = np.float32(LOWEST)
        n_bias, h_bias = r * len(seen.bias) // rows, min(h, seen.bias.shape[1] - 1)
        for s in range(total):
            score = scores[s] * np.float32(scale)
            if softcap > 0:
                score = np.float32(softcap) * math.tanh(score / np.float32(softcap))
            if len(seen.bias):
                score = max(score + seen.bias[n_bias, h_bias, s], np.float32(LOWEST))
            scores[s] = score
            top = max(top, score)
        weight = np.float32(0)
        for s in range(total):
            scores[s] = math.exp(scores[s] - top)
            weight += scores[s]
        for e in range(size):
            y[e] = np.float32(0)
        if shared > 0:
            _collect(scores, seen.shared_values[n_shared, k], shared, y)
        _collect(scores[shared:], seen.values[r, k], seen.held, y)
        for e in range(size):
            y[e] /= weight


@_compiled()
def _score(q: Array, keys_SE: Array, count: int, scores: Array) -> None:
    for s in range(count):
        key = keys_SE[s]
        score = np.float32(0)
        for e in range(len(q)):
            score += q[e] * key[e]
        scores[s] = score


@_compiled()
def _collect(weights: Array, values_SE: Array, count: int, y: Array) -> None:
    for s in range(count):
        value = values_SE[s]
        weight = weights[s]
        for e in range(len(y)):
            y[e] += weight * value[e]


@_compiled()
def _wrapped(norms: Norms, x_RD: Array, y_RD: Array) -> None:
    """x = outer(x + after(y)), in place."""
    if norms.after.kind != 0:
        _normalize_rows(norms.after, y_RD, y_RD)
    for r in range(len(x_RD)):
        for d in range(x_RD.shape[1]):
            x_RD[r, d] += y_RD[r, d]
    if norms.outer.kind != 0:
        _normalize_rows(norms.outer, x_RD, x_RD)


@_compiled()
def _self_attention(a: Attention, turn_2RE: Array, seen: Keys, x_RD: Array, y_RD: Array) -> None:
    """Attend; writes this step's key and value at position held - 1."""
    rows, size = len(x_RD), seen.keys.shape[3]
    heads, kv_heads = a.heads, a.kv_heads
    q_size, kv_size = heads * size, kv_heads * size
    qkv_RO = np.empty((rows, q_size + 2 * kv_size), np.float32)
    multiply(a.qkv.weight_OI, a.qkv.affine_2O, x_RD, qkv_RO, 0, 0)
    if a.q_norm.kind != 0:
        for r in range(rows):
            for start in range(0, q_size, a.q_norm.affine_2D.shape[1]):
                q = qkv_RO[r, start : start + a.q_norm.affine_2D.shape[1]]
                normalize(a.q_norm, q, q)
            for start in range(q_size, q_size + kv_size, a.k_norm.affine_2D.shape[1]):
                k = qkv_RO[r, start : start + a.k_norm.affine_2D.shape[1]]
                normalize(a.k_norm, k, k)
    if turn_2RE.size:
        rotate(qkv_RO, 0, heads + kv_heads, size, turn_2RE)
    for r in range(rows):
        for n in range(kv_heads):
            key, value = seen.keys[r, n, seen.held - 1], seen.values[r, n, seen.held - 1]
            for e in range(size):
                key[e] = qkv_RO[r, q_size + n * size + e]
                value[e] = qkv_RO[r, q_size + kv_size + n * size + e]
    context_RO = np.empty((rows, q_size), np.float32)
    attend(qkv_RO, heads, a.scale, a.softcap, seen, context_RO)
    multiply(a.out.weight_OI, a.out.affine_2O, context_RO, y_RD, 0, 0)


@_compiled()
def _cross_attention(c: Cross, encoder: Keys, x_RD: Array, y_RD: Array) -> None:
    q_RO = np.empty((len(x_RD), len(c.q.weight_OI)), np.float32)
    multiply(c.q.weight_OI, c.q.affine_2O, x_RD, q_RO, 0, 0)
    context_RO = np.empty_like(q_RO)
    attend(q_RO, c.heads, c.scale, 0.0, encoder, context_RO)
    multiply(c.out.weight_OI, c.out.affine_2O, context_RO, y_RD, 0, 0)


@_compiled()
def _feed_forward(f: FeedForward, x_RD: Array, y_RD: Array) -> None:
    rows, size = len(x_RD), f.down.weight_OI.shape[1]
    wide_RO = np.empty((rows, len(f.up.weight_OI)), np.float32)
    multiply(f.up.weight_OI, f.up.affine_2O, x_RD, wide_RO, f.activation, size)
    inner_RF = wide_RO
    if f.gated:
        inner_RF = np.empty((rows, size), np.float32)
        for r in range(rows):
            for i in range(size):
                inner_RF[r, i] = wide_RO[r, i] * wide_RO[r, size + i]
    multiply(f.down.weight_OI, f.down.affine_2O, inner_RF, y_RD, 0, 0)


def plain(value: Any) -> Any:
    """Named tuples as plain ones, all the way down: Numba takes 30 times as long to look at a named one."""
    return tuple(plain(each) for each in value) if isinstance(value, tuple) else value


@_compiled()
def _norms(n: Any) -> Norms:
    before, after, outer = n
    return Norms(
        Norm(before[0], before[1], before[2]), Norm(after[0], after[1], after[2]), Norm(outer[0], outer[1], outer[2])
    )


@_compiled()
def _matrix(m: Any) -> Matrix:
    return Matrix(m[0], m[1])


@_compiled()
def _named(layer: Any) -> Layer:
    """The inverse of `plain`."""
    a, c, f = layer[2], layer[4], layer[6]
    q_norm, k_norm = Norm(a[6][0], a[6][1], a[6][2]), Norm(a[7][0], a[7][1], a[7][2])
    return Layer(
        layer[0],
        _norms(layer[1]),
        Attention(_matrix(a[0]), _matrix(a[1]), a[2], a[3], a[4], a[5], q_norm, k_norm),
        _norms(layer[3]),
        Cross(_matrix(c[0]), _matrix(c[1]), c[2], c[3]),
        _norms(layer[5]),
        FeedForward(_matrix(f[0]), _matrix(f[1]), f[2], f[3]),
    )


@_compiled()
def _keys(k: Any) -> Keys:
    return Keys(k[0], k[1], k[2], k[3], k[4], k[5])


@_compiled(inner=False)
def run_layer(
    plain_layer: Any, turn_2RE: Array, plain_seen: Any, plain_encoder: Any, in_RD: Array, x_RD: Array
) -> None:
    """One token of each row through a layer, `in_RD` → `x_RD`; its keys and values go to the last of the `held` places.

    The layer is a `Layer`, and what is seen `Keys`, as plain tuples.
    """
    layer, seen, encoder = _named(plain_layer), _keys(plain_seen), _keys(plain_encoder)
    h_RD, y_RD = np.empty_like(x_RD), np.empty_like(x_RD)
    for r in range(len(x_RD)):
        for d in range(x_RD.shape[1]):
            x_RD[r, d] = in_RD[r, d]
    _normalize_rows(layer.attention_norms.before, x_RD, h_RD)
    _self_attention(layer.attention, turn_2RE, seen, h_RD, y_RD)
    if layer.parallel:
        _normalize_rows(layer.ffn_norms.before, x_RD, h_RD)
        _wrapped(layer.attention_norms, x_RD, y_RD)
        _feed_forward(layer.ffn, h_RD, y_RD)
        _wrapped(layer.ffn_norms, x_RD, y_RD)
        return
    _wrapped(layer.attention_norms, x_RD, y_RD)
    if layer.cross.heads:
        _normalize_rows(layer.cross_norms.before, x_RD, h_RD)
        _cross_attention(layer.cross, encoder, h_RD, y_RD)
        _wrapped(layer.cross_norms, x_RD, y_RD)
    _normalize_rows(layer.ffn_norms.before, x_RD, h_RD)
    _feed_forward(layer.ffn, h_RD, y_RD)
    _wrapped(layer.ffn_norms, x_RD, y_RD)
