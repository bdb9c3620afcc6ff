"""What a run needs of memory and disk: counted where it can be, measured by one forward pass where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from plainformer.config.training import TrainConfig


@dataclass(frozen=True)
class Needs:
    """Bytes, and the parameters that they are for.

    Attributes:
        parameters, trained: numbers, tied ones counted once.
        weights, gradients, optimizer, average: bytes of tensors that are as large as parameters.
        activations: bytes that one micro-batch keeps for its backward pass; None where it was not measured.
        checkpoint: bytes of one checkpoint. checkpoints: how many are on the disk at a time, at most.
        losses: bytes of the losses of each example, which evaluations leave.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int | None
    checkpoint: int
    checkpoints: int
    losses: int = 0

    @property
    def memory(self) -> int:
        """Return the bytes in all: an estimate, without what PyTorch itself takes."""
        return self.weights + self.gradients + self.optimizer + self.average + (self.activations or 0)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {**asdict(self), "memory": self.memory}


def needs(
    config: TrainConfig,
    parameters: Iterable[Tensor],
    activations: int | None = None,
    *,
    losses: int = 0,
    examples: int = 0,
) -> Needs:
    """Return what a run of these parameters needs; those that do not require gradients are frozen.

    AdamW keeps two numbers for each trained parameter. A checkpoint holds the weights and what the optimizer keeps, and
    `examples`, bytes of what is known of each example. `losses`: bytes that all evaluations leave.
    """
    unique = list({id(one): one for one in parameters}.values())
    trained = [one for one in unique if one.requires_grad]
    weights, gradients = (sum(one.numel() * one.element_size() for one in ones) for ones in (unique, trained))
    average = gradients if config.optimizer.ema is not None else 0
    return Needs(
        parameters=sum(one.numel() for one in unique),
        trained=sum(one.numel() for one in trained),
        weights=weights,
        gradients=gradients,
        optimizer=2 * gradients,
        average=average,
        activations=activations,
        checkpoint=weights + 2 * gradients + average + examples,
        checkpoints=config.checkpoints.keep + 3,  # the best, the last, and one that is being written
        losses=losses,
    )


def activation_bytes(forward: Callable[[], Any], parameters: Iterable[Tensor]) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, without those of parameters.

    It is run as training runs it, and takes as much memory meanwhile.
    """
    known = {one.untyped_storage().data_ptr() for one in parameters}
    sizes: dict[int, int] = {}  # of storages, by address: one is kept once, however many operations need it

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        result = forward()
    del result
    return sum(sizes.values())
