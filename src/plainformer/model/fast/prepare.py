"""Prepare a model for inference: join what reads the same input, then measure which CPU backend is fastest and keep it.

A decoder, which is used a token at a time, gets custom kernels wherever they can run: they won every measurement, and only
with them a whole layer is one call (`step.py`). For many rows, which kernel wins depends on the processor and the shape, so
it is measured and not guessed: on several weights in turn, once for each shape in a process. `docs/decisions.md` holds the numbers.
"""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainformer.config import ModelConfig
from plainformer.config.values import check_choice
from plainformer.errors import UsageError, opt
from plainformer.model.empty import Embedding
from plainformer.model.fast import step
from plainformer.model.fast.compiled import expected
from plainformer.model.fast.packed import LAYOUTS, ROUNDED, BlockWeight, Int4HeadWeight, OneDnnWeight
from plainformer.model.linear import Layout, Linear, LinearGroup, Product, is_shared, outermost
from plainformer.model.lora import merge_adapters

BACKENDS = ("auto", "plain", "fused", *LAYOUTS)
# A layout later in the list must win by something: it loses the memory-mapped or shared weight, and noise should not decide.
MIN_GAIN = 0.95
# A measurement streams this many bytes of weights: more than a processor's caches hold.
MEASURED_BYTES = 64 * 2**20
MOST_WEIGHTS = 32
MEASURED_SECONDS = 0.1  # for each backend and shape, but two passes at least


def prepare_for_inference(
    model: nn.Module, backend: str = "auto", rows: int = 1, release: Callable[[], None] | None = None
) -> dict[str, str]:
    """Choose each linear's backend in place, and stop gradients. Adapters are merged into their weights.

    Args:
        model: any module made of `Linear` and `LinearGroup`.
        backend: "auto" takes custom kernels for a decoder, and measures otherwise. "plain", "fused", "onednn" and
            "compiled" are taken as they are where they can run (fp32 on a CPU), else "fused". "int8" and "int4" round the
            weights. What lies in a file's own blocks stays there with "auto", and is made plain first for any other.
        rows: how many tokens the measurement takes at a time: 1 for a decoder, which is used a token at a time; a
            sentence or two for an encoder.
        release: called after each rearranged weight, to give back the memory that its old form was read from.
    Returns:
        the choice for each shape, as {"960x576": "onednn", ...}: outputs x inputs.
    """
    check_choice("backend", backend, BACKENDS)
    unprepare(model, keep_blocks=backend == "auto")
    merge_adapters(model)
    model.eval()
    model.requires_grad_(False)
    scores = getattr(getattr(model, "head", None), "out", None)
    choices = _blocks_of(model)
    blocks = bool(choices)
    if backend == "int4" and any(map(is_shared, outermost(model))):
        raise UsageError(
            f"{opt('quantize', 'int4')} is for one process, and {opt('tp', ...)} divides the columns that share a scale",
            f"give {opt('quantize', 'int8')}, or leave {opt('tp', ...)} out",
        )
    for (out_size, in_size), modules in _by_shape(model).items():
        possible = _possible(modules[0].parts()[0].weight, backend)
        if backend != "auto":
            chosen = backend if backend in ("plain", *possible) else "fused"
        elif rows == 1 and "compiled" in possible:
            chosen = "compiled"
        else:
            measured = tuple(name for name in possible if name != "compiled")
            chosen = fastest_backend(out_size, in_size, rows, measured, torch.get_num_threads())
        for module in modules:
            if chosen in LAYOUTS:
                module.pack(Int4HeadWeight if chosen == "int4" and module is scores else _layout(chosen, rows))
            elif chosen == "fused" and isinstance(module, LinearGroup):
                module.fuse()
            if release is not None:
                release()
        choices[f"{out_size}x{in_size}"] = chosen
    if blocks or {"compiled", *ROUNDED} & set(choices.values()):
        step.install(model)
    return choices


def usual_rows(config: ModelConfig) -> int:
    """Return the `rows` of `prepare_for_inference` for a model: a decoder is used a token at a time."""
    return 1 if config.main_stack.direction == "causal" else 512


def unprepare(model: nn.Module, keep_blocks: bool = False) -> None:
    """Give every linear its plain weight back, and every stack its plain layers; `keep_blocks`: but for a file's own blocks."""
    step.uninstall(model)
    kept = set(_in_blocks(model)) if keep_blocks else set()
    for module in outermost(model):
        if module not in kept:
            module.unpack()
    for table in () if keep_blocks else model.modules():
        if isinstance(table, Embedding):
            table.unpack()


def _in_blocks(model: nn.Module) -> list[Linear | LinearGroup]:
    """Return the linears whose weights lie in a file's own blocks."""
    return [each for each in outermost(model) if type(each.packed) is BlockWeight]


def _blocks_of(model: nn.Module) -> dict[str, str]:
    """Return the kinds of a file's own blocks, by shape."""
    found = [each.packed for each in _in_blocks(model) if isinstance(each.packed, BlockWeight)]
    return {f"{weight.out_size}x{weight.in_size}": weight.parts[0].kind for weight in found}


def _by_shape(model: nn.Module) -> dict[tuple[int, int], list[Linear | LinearGroup]]:
    shapes: dict[tuple[int, int], list[Linear | LinearGroup]] = defaultdict(list)
    for module in outermost(model):
        if module.packed is None:
            shapes[sum(module.sizes), module.in_size].append(module)
    return shapes


def _possible(weight: Tensor, backend: str) -> tuple[str, ...]:
    """Return the backends that can run here; those that round only if they are asked for."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        if backend not in ROUNDED:
            return ("fused",)
        raise UsageError(
            f"{backend} is for fp32 on a CPU, and the weights are {weight.dtype} on {weight.device}",
            f"load with {opt('device', 'cpu')} and {opt('dtype', 'fp32')}, or without {opt('quantize')}",
        )
    can_run = {
        "onednn": torch.backends.mkldnn.is_available(),
        "compiled": expected(),
        **{name: backend == name for name in ROUNDED},
    }
    return ("fused", *(name for name, can in can_run.items() if can))


@functools.cache
def fastest_backend(out_size: int, in_size: int, rows: int, possible: tuple[str, ...], threads: int) -> str:
    """Return the fastest backend for weights of one shape; remembered, so that a second load of a process chooses the same."""
    if len(possible) == 1:
        return possible[0]
    size = out_size * in_size
    count = min(math.ceil(MEASURED_BYTES / (4 * size)), MOST_WEIGHTS) if rows == 1 else 3  # many rows are arithmetic
    flat = torch.ones(count, size)  # ones: untouched zeros would all be one page of memory
    x = torch.ones(1, rows, in_size)
    chosen, fastest = "fused", math.inf
    for backend in possible:
        seconds = _time([_product(backend, weight, out_size, in_size, rows) for weight in flat], x)
        if seconds < fastest * MIN_GAIN:
            chosen, fastest = backend, seconds
    return chosen


def _layout(backend: str, rows: int) -> Layout:
    return functools.partial(OneDnnWeight, rows=rows) if backend == "onednn" else LAYOUTS[backend]


def _product(backend: str, flat: Tensor, out_size: int, in_size: int, rows: int) -> Product:
    weight_OI = flat.view(out_size, in_size)
    return (
        _layout(backend, rows)([weight_OI], None, None)
        if backend in LAYOUTS
        else functools.partial(F.linear, weight=weight_OI)
    )


@torch.inference_mode()
def _time(products: list[Product], x: Tensor, rounds: int = 6) -> float:
    """Return the fastest of several passes through all products; the first, which touches cold pages, does not count."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for product in products:
            product(x)
        times.append(time.perf_counter() - start)
        if len(times) > 1 and sum(times) > MEASURED_SECONDS:  # a busy machine: no use in asking again
            break
    return min(times[1:])
