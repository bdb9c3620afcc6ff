"""What all kernels use: memory by its address, and activations."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from plainformer.model.fast.jit import compiled
from plainformer.model.fast.lanes import fused, number_at, pointer

Array = np.ndarray[Any, np.dtype[Any]]
carray: Any = numba.carray  # type: ignore[attr-defined]


@compiled()
def numbers_at(at: int, count: int) -> Any:
    """Return fp32 numbers."""
    return carray(pointer(at), count, np.float32)


@compiled()
def words_at(at: int, count: int) -> Any:
    """Return whole numbers of 64 bits."""
    return carray(pointer(at), count, np.int64)


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


@compiled()
def finished(matrix: Any, o: int, total: Any, activation: int, activated: int) -> Any:
    """Return an output, of a sum of products: scaled, with its bias, and the first `activated` through an activation."""
    scale = number_at(matrix.scales + 4 * o) if matrix.scales != 0 else np.float32(1)
    bias = number_at(matrix.bias + 4 * o) if matrix.bias != 0 else np.float32(0)
    return activate(activation if o < activated else 0, fused(total, scale, bias))
