"""Eight-bit weights with scales beside them, read as the numbers that they mean: weight * scale, in fp32, rounded once.

    model.layers.0.mlp.up_proj.weight             float8_e4m3fn (O, I)
    model.layers.0.mlp.up_proj.weight_scale_inv   float32 (O / 128, I / 128): DeepSeek-V3, Qwen3-FP8
    model.layers.0.mlp.up_proj.weight_scale       (O, 1), (1,) or (): compressed-tensors, FBGEMM, ModelOpt

Files may hold scales of activations too. They round what a layer reads, to save time; here it is not rounded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from plainformer.checkpoint.formats.source import StoredTensor, TensorSource
from plainformer.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_SCALES = ("_scale_inv", "_scale")
_EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2", "int8")
_COMPUTED = ("float32", "bfloat16", "float16")
_OF_ACTIVATIONS = ("input_scale", "output_scale", "activation_scale", "input_scale_ub", "q_scale", "k_scale", "v_scale")


def with_scales(source: TensorSource, block: tuple[int, int] | None = None) -> TensorSource:
    """Return the same tensors, the scaled ones multiplied when they are read and their scales left out.

    Args:
        block: rows and columns that share a scale; None takes what divides a weight as its scales do.
    """
    scale_of = {
        name: name + ending
        for name, tensor in source.tensors.items()
        for ending in _SCALES
        if tensor.stored in _EIGHT_BITS and name + ending in source.tensors
    }
    if not scale_of:
        return source
    left_out = set(scale_of.values())
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in source.tensors.items():
        if name in scale_of:
            scale = source.tensors[scale_of[name]]
            tensors[name] = replace(tensor, read=partial(_read, source.where, name, tensor, scale, block))
        elif name not in left_out and name.rpartition(".")[2] not in _OF_ACTIVATIONS:
            tensors[name] = tensor
    others = Counter(t.stored for name, t in tensors.items() if name not in scale_of and t.stored in _COMPUTED)
    dtype = others.most_common(1)[0][0] if others else "bfloat16"
    kind = f"{source.kind}, 8 bits with scales"
    return TensorSource(source.where, kind, tensors, source.maps, source.metadata, source.files, dtype)


def _read(
    where: Path, name: str, weight: StoredTensor, scale: StoredTensor, block: tuple[int, int] | None
) -> torch.Tensor:
    import torch

    values, scales = weight.read().to(torch.float32), scale.read()
    # Bytes are exponents (MXFP8): 2 ** (byte - 127).
    scales = (scales.float() - 127).exp2() if scales.dtype == torch.uint8 else scales.to(torch.float32)
    if scales.numel() == 1:
        return values.mul_(scales.reshape(()))
    if scales.dim() == 1 and values.dim() == 2:
        scales = scales[:, None]
    sizes = list(zip(values.shape, scales.shape, strict=False))
    steps = [_step(size, count, block[axis] if block else None) for axis, (size, count) in enumerate(sizes)]
    if scales.dim() != values.dim() or values.dim() != 2 or None in steps:
        raise CheckpointError(
            f"{where}: tensor {name!r} has shape {weight.shape}, and its scales {scale.shape} do not divide it",
            "check quantization_config against the model card",
        )
    for axis, step in enumerate(steps):
        if step is not None and step > 1 and scales.size(axis) > 1:
            scales = scales.repeat_interleave(step, axis).narrow(axis, 0, values.size(axis))
    return values.mul_(scales)


def _step(size: int, count: int, block: int | None) -> int | None:
    """Return how many rows or columns share one of `count` scales; None where they do not fit."""
    if count in (1, size):
        return size if count == 1 else 1
    if block is not None:
        return block if -(-size // block) == count else None
    return size // count if count and size % count == 0 else None
