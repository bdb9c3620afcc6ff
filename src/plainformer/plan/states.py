"""What training keeps for each parameter beside its weight: gradients, the optimizer's states, an average. No torch.

Numbers and bytes are those of one rank: give the shapes that it holds after tensor and pipeline parallelism, and say how
data-parallel ranks share them out (ZeRO, Rajbhandari et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from plainformer.config import ModelConfig
from plainformer.config.local import chunk_rows, zero1_owners
from plainformer.config.shapes import Shape, parameters
from plainformer.plan.operations import Adapters

FP32, HALF = 4, 2
COUNTER = 4  # bytes: the number of steps, an fp32 number for each parameter


@dataclass(frozen=True)
class States:
    """Bytes of what one rank keeps for the parameters that are trained.

    Attributes:
        gradients: as backward leaves them. optimizer: its states, from the first step on. average: of the weights.
        temporary: what a step of the optimizer allocates beside them.
        largest: of one gradient: what a step that cannot work in place needs again.
    """

    gradients: int
    optimizer: int
    average: int
    temporary: int
    largest: int

    @property
    def kept(self) -> int:
        """Return what is there between two steps, if gradients are kept."""
        return self.gradients + self.optimizer + self.average


def trained_shapes(
    config: ModelConfig, trainable: str = "all", adapters: Mapping[str, Shape] | None = None
) -> dict[str, Shape]:
    """Return the shapes of the parameters that are trained, by name.

    Args:
        trainable: "all", but for those that `config.fixed` names; "head", the backbone is frozen; "lora", the adapters and
            the heads that a base model lacks.
        adapters: the shapes of the factors of low-rank adapters, see `adapter_shapes`; only for "lora".
    """
    free = {
        name: parameter.shape
        for name, parameter in parameters(config).items()
        if not any(fnmatchcase(name, pattern) for pattern in config.fixed)
    }
    heads = {name: shape for name, shape in free.items() if name.startswith("head.")}
    if trainable == "all":
        return free
    if trainable == "head":
        return heads
    return {**(heads if config.head.kind in OWN_HEADS else {}), **(adapters or {})}


# Heads that a base model may lack: adapters leave them trainable (`checkpoint/low_rank.py`).
OWN_HEADS = ("sequence", "token", "span", "choice", "image", "audio", "ctc")


def adapter_shapes(
    config: ModelConfig, rank: int, targets: tuple[str, ...] = ("attention", "cross")
) -> dict[str, Shape]:
    """Return the factors of adapters beside the linears of layers, by name: A (M, I) and B (O, M).

    Args:
        targets: parts of names; a linear with one of them has an adapter. By default attention's.

    A checkpoint that stores several linears as one matrix (GPT-2's q, k and v) gives them one A: it has fewer numbers.
    """
    found: dict[str, Shape] = {}
    adapters = Adapters(targets, rank)
    for name, parameter in parameters(config).items():
        base = name.removesuffix(".weight")
        if parameter.kind == "linear" and adapters.has(base):
            outputs, inputs = parameter.shape
            found[f"{base}.adapter.low.a"] = (rank, inputs)
            found[f"{base}.adapter.low.b"] = (outputs, rank)
    return found


def states(
    shapes: Mapping[str, Shape],
    *,
    optimizer: str = "adamw",
    number: int = FP32,
    average: bool = False,
    zero: int = 0,
    dp: int = 1,
    index: int = 0,
) -> States:
    """Return the bytes that one data-parallel rank keeps for trained parameters.

    Args:
        shapes: those of the parameters that are trained here.
        optimizer: "adamw", "sgd", "sgd-momentum" or "adafactor". number: bytes of a weight, which gradients and states have
            too: weights that are computed with in bf16 are still fp32, unless they are all bf16.
        zero, dp, index: what `dp` ranks share out, 0 to 3, and which of them this is.
    """
    gradients = {name: shard_bytes(shape, number, zero, dp) for name, shape in shapes.items()}
    own = own_states(shapes, zero, dp, index)
    numbers = sum(math.prod(shape) for shape in own.values())
    largest = max((math.prod(shape) for shape in own.values()), default=0) * number
    return States(
        gradients=sum(gradients.values()),
        optimizer=sum(_optimizer_bytes(optimizer, shape, number) for shape in own.values()),
        average=FP32 * numbers if average else 0,
        temporary=_TEMPORARY[optimizer] * largest,
        largest=max(gradients.values(), default=0),
    )


# Fused AdamW and plain SGD work in place; Adafactor makes one update at a time.
_TEMPORARY = {"adamw": 0, "sgd": 0, "sgd-momentum": 0, "adafactor": 1}


def own_states(shapes: Mapping[str, Shape], zero: int = 0, dp: int = 1, index: int = 0) -> dict[str, Shape]:
    """Return the parts of the parameters whose optimizer states a rank keeps: all of them, whole ones, or rows of each."""
    if zero == 0 or dp == 1:
        return dict(shapes)
    if zero == 1:
        owners = zero1_owners({name: math.prod(shape) for name, shape in shapes.items()}, dp)
        return {name: shape for name, shape in shapes.items() if owners[name] == index}
    found = {}
    for name, shape in shapes.items():
        start, stop = chunk_rows(shape[0], dp, index)
        found[name] = (stop - start, *shape[1:])
    return found


def shard_bytes(shape: Shape, number: int, zero: int = 0, dp: int = 1) -> int:
    """Return the bytes of a weight, or of its gradient, on one rank. With ZeRO-2 and 3 all have as many rows: the most."""
    if zero < 2 or dp == 1:
        return math.prod(shape) * number
    return -(-shape[0] // dp) * math.prod(shape[1:]) * number


def _optimizer_bytes(optimizer: str, shape: Shape, number: int) -> int:
    size = math.prod(shape)
    if optimizer == "sgd":
        return 0
    if optimizer == "sgd-momentum":
        return size * number
    if optimizer == "adamw":  # two moments (Kingma & Ba 2015)
        return 2 * size * number + COUNTER
    if len(shape) < 2:
        return size * number + COUNTER
    rows, columns = size // shape[-1], size // shape[-2]  # a mean for each row and each column (Shazeer & Stern 2018)
    return (rows + columns) * number + COUNTER
