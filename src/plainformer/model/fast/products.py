"""Products of a few rows with a matrix of any kind (`records.MATRIX`): each weight is read from memory once.

Shapes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plainformer.model.fast.basics import Array, carray, finished, numbers_at
from plainformer.model.fast.jit import compiled
from plainformer.model.fast.lanes import address_of, pointer
from plainformer.model.fast.parts import parts_of, share
from plainformer.model.fast.quantised import multiply_blocks
from plainformer.model.fast.records import BLOCKS, INT8

# Multiplications that are worth a part of their own: 5 µs of reading weights.
PART = 2**14


@compiled()
def product(matrix: Any, x_RI: Array, y_RO: Array, activation: int, activated: int) -> None:
    """y = x Wᵀ * scales + bias; the first `activated` outputs then through an activation."""
    if matrix.kind == BLOCKS:
        multiply_blocks(matrix, x_RI, y_RO, activation, activated)
        return
    job = matrix, address_of(x_RI), len(x_RI), address_of(y_RO), activation, activated
    share(parts_of(_outputs, job), matrix.outputs, PART // max(matrix.inputs * len(x_RI), 1) + 1)


@compiled()
def _outputs(job: Any, first: int, last: int) -> None:
    """Compute some of the outputs."""
    matrix, size = job[0], job[0].inputs
    for o in range(first, last):
        if matrix.kind == INT8:
            _output(carray(pointer(matrix.weight + o * size), size, np.int8), o, job)
        else:
            _output(numbers_at(matrix.weight + 4 * o * size, size), o, job)


@compiled()
def _output(w: Array, o: int, job: Any) -> None:
    """Compute one output of all rows: a weight serves four rows in a register.

    What else is to be done with an output is done here, where it costs nothing: memory is what everything waits for.
    """
    matrix, x_at, rows, y_at, activation, activated = job
    size, outputs = matrix.inputs, matrix.outputs
    y = numbers_at(y_at, rows * outputs)
    r = 0
    while r + 4 <= rows:
        at = x_at + 4 * r * size
        x0, x1 = numbers_at(at, size), numbers_at(at + 4 * size, size)
        x2, x3 = numbers_at(at + 8 * size, size), numbers_at(at + 12 * size, size)
        s0 = s1 = s2 = s3 = np.float32(0)
        for i in range(size):
            wi = np.float32(w[i])
            s0 += wi * x0[i]
            s1 += wi * x1[i]
            s2 += wi * x2[i]
            s3 += wi * x3[i]
        y[r * outputs + o] = finished(matrix, o, s0, activation, activated)
        y[(r + 1) * outputs + o] = finished(matrix, o, s1, activation, activated)
        y[(r + 2) * outputs + o] = finished(matrix, o, s2, activation, activated)
        y[(r + 3) * outputs + o] = finished(matrix, o, s3, activation, activated)
        r += 4
    while r < rows:
        x = numbers_at(x_at + 4 * r * size, size)
        s = np.float32(0)
        for i in range(size):
            s += np.float32(w[i]) * x[i]
        y[r * outputs + o] = finished(matrix, o, s, activation, activated)
        r += 1
