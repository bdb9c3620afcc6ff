"""Prepare a model for inference: join what reads the same input, then measure which CPU backend is fastest and keep it.

Which kernel wins depends on the processor, the shape and whether the weights fit a cache, so it is measured on the
model's own weights, all layers in turn as a decoding step would meet them, and not guessed. The measurement takes one
token: the memory-bound case that a user waits for. `docs/decisions.md` holds the numbers that led here.
"""

from __future__ import annotations

import time
from collections import defaultdict

import torch
from torch import Tensor, nn

from plainformer.errors import UsageError, did_you_mean
from plainformer.model.linear import Linear, LinearGroup, _outermost, can_pack

BACKENDS = ("auto", "plain", "fused", "onednn")
# Packing loses the memory-mapped or shared weight, so it must win by more than the noise of the measurement.
MIN_GAIN = 0.95


def prepare_for_inference(model: nn.Module, backend: str = "auto") -> dict[str, str]:
    """Choose each linear's backend in place, and stop gradients.

    Args:
        model: any module made of `Linear` and `LinearGroup`.
        backend: "auto" measures; "plain", "fused" and "onednn" are taken as they are.
    Returns:
        the choice for each shape, as {"960x576": "onednn", ...}: outputs x inputs.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend={backend!r} is unknown", did_you_mean(backend, BACKENDS))
    model.eval()
    model.requires_grad_(False)
    choices: dict[str, str] = {}
    for (out_size, in_size), modules in _by_shape(model).items():
        choices[f"{out_size}x{in_size}"] = _prepare_shape(modules, in_size, backend)
    return choices


def _by_shape(model: nn.Module) -> dict[tuple[int, int], list[Linear | LinearGroup]]:
    shapes: dict[tuple[int, int], list[Linear | LinearGroup]] = defaultdict(list)
    for module in _outermost(model):
        first = module.parts()[0] if isinstance(module, LinearGroup) else module
        out_size = sum(module.sizes) if isinstance(module, LinearGroup) else module.out_size
        shapes[out_size, first.in_size].append(module)
    return shapes


def _prepare_shape(modules: list[Linear | LinearGroup], in_size: int, backend: str) -> str:
    for module in modules:
        module.unpack()
        if isinstance(module, LinearGroup) and backend in ("auto", "fused"):
            module.fuse()
    weight = modules[0].joined()[0]
    if backend in ("plain", "fused") or not can_pack(weight):
        return backend if backend != "auto" else "fused"
    plain = _seconds(modules, weight.new_ones(1, 1, in_size)) if backend == "auto" else float("inf")
    for module in modules:
        module.pack()
    if backend == "auto" and _seconds(modules, torch.ones(1, 1, in_size)) > plain * MIN_GAIN:
        for module in modules:
            module.unpack()
            if isinstance(module, LinearGroup):
                module.fuse()
        return "fused"
    return "onednn"


@torch.inference_mode()
def _seconds(modules: list[Linear | LinearGroup], x: Tensor, rounds: int = 4) -> float:
    """The fastest of several passes through all modules; the first, which touches cold pages, does not count."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for module in modules:
            module(x)
        times.append(time.perf_counter() - start)
    return min(times[1:])
