"""Products of a few rows with a matrix of any kind (`records.MATRIX`): each weight is read from memory once.

Shapes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plainformer.model.fast.basics import Array, finished
from plainformer.model.fast.jit import compiled
from plainformer.model.fast.lanes import address_of, fused, number_at, put_number
from plainformer.model.fast.parts import parts_of, share
from plainformer.model.fast.quantised import multiply_blocks
from plainformer.model.fast.records import BLOCKS, INT8
from plainformer.model.fast.wide import add_wide, in_wide, nothing, one_at, wide_at

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
            _output(matrix.weight + o * size, 1, np.int8(0), o, job)
        else:
            _output(matrix.weight + 4 * o * size, 4, np.float32(0), o, job)


@compiled()
def _output(w: int, width: int, like: Any, o: int, job: Any) -> None:
    """Compute one output of all rows: a weight, at address w, serves four rows in a register.

    What else is to be done with an output is done here, where it costs nothing: memory is what everything waits for.
    """
    matrix, x, rows, y_at, activation, activated = job
    size, outputs, y = matrix.inputs, matrix.outputs, y_at + 4 * o
    whole, step = size - size % 32, 4 * size
    while rows >= 4:
        s0 = s1 = s2 = s3 = nothing()
        for i in range(0, whole, 32):
            weights, at = wide_at(w + width * i, like), x + 4 * i
            s0 = add_wide(s0, weights, at)
            s1 = add_wide(s1, weights, at + step)
            s2 = add_wide(s2, weights, at + 2 * step)
            s3 = add_wide(s3, weights, at + 3 * step)
        for row, total in enumerate((in_wide(s0), in_wide(s1), in_wide(s2), in_wide(s3))):
            total = _with_rest(total, w, width, like, x + row * step, whole, size)
            put_number(y + 4 * row * outputs, finished(matrix, o, total, activation, activated))
        rows, x, y = rows - 4, x + 4 * step, y + 16 * outputs
    for row in range(rows):
        s = nothing()
        for i in range(0, whole, 32):
            s = add_wide(s, wide_at(w + width * i, like), x + row * step + 4 * i)
        total = _with_rest(in_wide(s), w, width, like, x + row * step, whole, size)
        put_number(y + 4 * row * outputs, finished(matrix, o, total, activation, activated))


@compiled()
def _with_rest(total: Any, w: int, width: int, like: Any, x: int, whole: int, size: int) -> Any:
    """Add the products that are left where a size is not a multiple of 32."""
    for i in range(whole, size):
        total = fused(one_at(w + width * i, like), number_at(x + 4 * i), total)
    return total
