"""What kernels read of a model and of a step, as records in memory: a kernel is given their address, and nothing is looked up.

Addresses are whole numbers, 0 where there is nothing. Whoever makes a record keeps what its addresses are of.
"""

from __future__ import annotations

import numpy as np

WORD, REAL = np.int64, np.float64

ACTIVATION_CODES = {
    name: code
    for code, name in enumerate(
        ("identity", "relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid")
    )
}
NORM_CODES = {"none": 0, "layer": 1, "rms": 2}
NUMBERS, INT8, BLOCKS = range(3)  # kinds of matrices

# y = x Wᵀ * scales + bias. The weight is (outputs, inputs) of fp32 numbers or of whole ones in eight bits, or segments in
# blocks of few bits (`quantised.py`): (address, rows, bytes of a row, kind) each.
MATRIX = np.dtype([(name, WORD) for name in ("kind", "inputs", "outputs", "weight", "scales", "bias")])
NORM = np.dtype([("kind", WORD), ("size", WORD), ("eps", REAL), ("offset", REAL), ("weight", WORD), ("bias", WORD)])
# Around a sub-layer f: outer(x + after(f(before(x)))).
NORMS = np.dtype([("before", NORM), ("after", NORM), ("outer", NORM)])
ATTENTION = np.dtype(
    [
        ("heads", WORD),
        ("kv_heads", WORD),
        ("size", WORD),  # channels of a head
        ("scale", REAL),
        ("softcap", REAL),  # 0 for none
        ("q_norm", NORM),
        ("k_norm", NORM),
        ("qkv", MATRIX),  # across to an encoder: of the queries alone, and no norms
        ("out", MATRIX),
    ]
)
FEED_FORWARD = np.dtype(
    [("gated", WORD), ("activation", WORD), ("up", MATRIX), ("down", MATRIX)]
)  # gate and up, joined
LAYER = np.dtype(
    [
        ("parallel", WORD),
        ("attention_norms", NORMS),
        ("attention", ATTENTION),
        ("cross_norms", NORMS),
        ("cross", ATTENTION),  # 0 heads where there is none
        ("ffn_norms", NORMS),
        ("ffn", FEED_FORWARD),
    ]
)

# Keys and values of rows, in blocks of `block` positions. Row r has `lengths[r]` of them, or `held`; its blocks are
# `table[r, :width]`, or without a table the one block r * rows // (all rows).
KEYS = np.dtype(
    [
        ("keys", WORD),
        ("values", WORD),
        ("rows", WORD),
        ("held", WORD),
        ("lengths", WORD),
        ("block", WORD),
        ("table", WORD),
        ("width", WORD),
        ("block_bytes", WORD),
        ("head_bytes", WORD),
    ]
)
# What attention sees: what neighbouring rows share, then each row's own; of both, the last `window` (0: all). The bias,
# (bias_rows, bias_heads, all positions), is added to the scores.
SEEN = np.dtype(
    [("shared", KEYS), ("own", KEYS)] + [(name, WORD) for name in ("window", "bias", "bias_rows", "bias_heads")]
)
# What a step gives one layer: which of the records of layers it is, and cosines and sines, (2, turns, turned).
STEP = np.dtype([("layer", WORD), ("own", SEEN), ("encoder", SEEN), ("turn", WORD), ("turns", WORD), ("turned", WORD)])
