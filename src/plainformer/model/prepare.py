"""Prepare a model for inference: join what reads the same input, then measure which CPU backend is fastest and keep it.

Which kernel wins depends on the processor, the shape and whether the weights fit a cache, so it is measured on the
model's own weights, all layers in turn as a decoding step would meet them, and not guessed. The measurement takes one
token: the memory-bound case that a user waits for. `docs/decisions.md` holds the numbers that led here.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict

import torch
from torch import Tensor, nn

from plainformer.errors import UsageError, did_you_mean
from plainformer.model.linear import LAYOUTS, Linear, LinearGroup, can_pack, on_cpu_in_fp32, outermost

BACKENDS = ("auto", "plain", "fused", *LAYOUTS)
# Another layout loses the memory-mapped or shared weight, so it must win by something.
MIN_GAIN = 0.97
# A measurement streams at least so many bytes of weights where the model has them: more than a processor's caches hold.
MEASURED_BYTES = 96 * 2**20
MEASURED_SECONDS = 0.1  # for each backend and shape, but two passes at least

Module = Linear | LinearGroup


def prepare_for_inference(model: nn.Module, backend: str = "auto", rows: int = 1) -> dict[str, str]:
    """Choose each linear's backend in place, and stop gradients.

    Args:
        model: any module made of `Linear` and `LinearGroup`.
        backend: "auto" measures; "plain", "fused", "transposed" and "onednn" are taken as they are where the device and
            dtype allow (fp32 on a CPU), else "fused".
        rows: how many tokens the measurement takes at a time: 1 for a decoder, which is used a token at a time; a
            sentence or two for an encoder.
    Returns:
        the choice for each shape, as {"960x576": "onednn", ...}: outputs x inputs.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend={backend!r} is unknown", did_you_mean(str(backend), BACKENDS))
    model.eval()
    model.requires_grad_(False)
    choices: dict[str, str] = {}
    for (out_size, in_size), modules in _by_shape(model).items():
        possible = _possible(modules[0])
        if backend == "auto":
            chosen = _fastest(modules, possible, rows) if len(possible) > 1 else possible[0]
        else:
            chosen = backend if backend in ("plain", *possible) else "fused"
        for module in modules:
            _put(module, chosen)
        choices[f"{out_size}x{in_size}"] = chosen
    return choices


def _by_shape(model: nn.Module) -> dict[tuple[int, int], list[Module]]:
    shapes: dict[tuple[int, int], list[Module]] = defaultdict(list)
    for module in outermost(model):
        module.unpack()
        first = module.parts()[0] if isinstance(module, LinearGroup) else module
        out_size = sum(module.sizes) if isinstance(module, LinearGroup) else module.out_size
        shapes[out_size, first.in_size].append(module)
    return shapes


def _possible(module: Module) -> list[str]:
    first = module.parts()[0] if isinstance(module, LinearGroup) else module
    assert first.weight is not None
    if not on_cpu_in_fp32(first.weight):
        return ["fused"]
    return ["fused", "transposed", "onednn"] if can_pack(first.weight) else ["fused", "transposed"]


def _put(module: Module, backend: str) -> None:
    module.unpack()
    if backend in LAYOUTS:
        module.pack(LAYOUTS[backend])
    elif backend == "fused" and isinstance(module, LinearGroup):
        module.fuse()


def _fastest(modules: list[Module], possible: list[str], rows: int) -> str:
    """Time each backend on some of the modules; one that rearranges the weight must win."""
    first = modules[0].parts()[0] if isinstance(modules[0], LinearGroup) else modules[0]
    out_size = sum(modules[0].sizes) if isinstance(modules[0], LinearGroup) else modules[0].out_size
    most = math.ceil(MEASURED_BYTES / (4 * first.in_size * out_size)) if rows == 1 else 3  # many rows are arithmetic
    x = torch.ones(1, rows, first.in_size)
    seconds: dict[str, float] = {}
    for backend in possible:
        for module in modules[:most]:
            _put(module, backend)
        seconds[backend] = _time(modules[:most], x)
    best = min(possible, key=lambda name: seconds[name])
    return best if seconds[best] < seconds["fused"] * MIN_GAIN else "fused"


@torch.inference_mode()
def _time(modules: list[Module], x: Tensor, rounds: int = 6) -> float:
    """The fastest of several passes through all modules; the first, which touches cold pages, does not count."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for module in modules:
            module(x)
        times.append(time.perf_counter() - start)
        if len(times) > 1 and sum(times) > MEASURED_SECONDS:  # a busy machine: no use in asking again
            break
    return min(times[1:])
