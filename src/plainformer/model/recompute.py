"""Activation checkpointing (Chen et al. 2016): a layer keeps its input alone and runs once more for its gradient.

That takes the memory of one layer's inner values instead of all layers', and about a third more time in a step. Dropout
is the same both times, because the state of the random generators is restored. Source: torch.utils.checkpoint, in the
form that is not re-entrant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plainformer.config.values import is_whole
from plainformer.errors import UsageError, opt
from plainformer.model.flow import Attentions, Flow

if TYPE_CHECKING:
    from plainformer.model.transformer import Transformer


def set_checkpointing(model: Transformer, layers: Literal["none", "all"] | int) -> None:
    """Let these layers of each stack run again for their gradient: "none", "all", or every n-th, the first included.

    It has an effect in training alone: in `train` mode and with gradients.

    Raises:
        UsageError: `layers` is none of these.
    """
    words = {"none": 0, "all": 1}
    if not is_whole(layers, 1) and layers not in words:
        raise UsageError(f"{opt('checkpointing', layers)} is unknown", "give none, all, or n for every n-th layer")
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            stack.recompute_every = words[layers] if isinstance(layers, str) else int(layers)


def recompute(block: nn.Module, x_BTD: Tensor, layer: int, flow: Flow) -> tuple[Tensor, Attentions]:
    """Run a layer and keep its input alone for the gradient; the same results."""
    if flow.cache is not None:
        raise UsageError(
            "a cache with activation checkpointing: a layer that runs twice would add its keys to the cache twice",
            "leave out cache=..., or call model.eval() before generating",
        )
    output: tuple[Tensor, Attentions] = checkpoint(block, x_BTD, layer, flow, use_reentrant=False)
    return output
