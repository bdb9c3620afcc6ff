"""Dropout (Srivastava et al. 2014): in training, numbers are set to zero at random and the others scaled up to make up for it.

A module that drops something has `dropout`, the probabilities that its configuration names, and calls `drop` where it
happens. There is no module for it: outside training nothing is called, and a layer consists of the same parts, so that
compiled decoding steps take it as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from plainformer.config import Dropout
from plainformer.config.values import check_number

if TYPE_CHECKING:
    from plainformer.model.transformer import Transformer


# A context in which a rank draws other numbers than the others, where it has other units or heads than they.
Draws = Callable[[], AbstractContextManager[None]]


def drop(x: Tensor, p: float, training: bool, draws: Draws | None = None) -> Tensor:
    """Return x; in training, with each number zero with probability `p`, and the others divided by 1 - p."""
    if not training or p == 0:
        return x
    if draws is None:
        return F.dropout(x, p)
    with draws():
        return F.dropout(x, p)


def skips(p: float, training: bool) -> bool:
    """Draw whether a layer is left out. On the CPU: a draw on a GPU would have to be waited for."""
    return training and p > 0 and bool(torch.rand(()) < p)


def set_dropout(model: Transformer, p: float | None) -> None:
    """Drop with probability `p` instead of what the checkpoint says, in place; None returns to the latter.

    It holds for the embeddings, attention probabilities, and outputs of attention and FFN, and for other places where the
    model has a dropout of its own, the head's included. Layers are left out as often as before. 0 turns everything off.

    Raises:
        UsageError: `p` is not in [0, 1).
    """
    if p is not None:
        check_number("dropout", p, "[0, 1)")
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            rates = stack.config.dropout if p is None else stack.config.dropout.everywhere(p)
            for module in stack.modules():
                if isinstance(vars(module).get("dropout"), Dropout):
                    vars(module)["dropout"] = rates
    head = model.head
    head.dropout = head.config.dropout if p is None or head.config.dropout == 0 else p
    head.dense_dropout = head.config.dense_dropout if p is None or head.config.dense_dropout == 0 else p


def never_drop(model: Transformer) -> Transformer:
    """Drop nothing and leave no layer out, in training mode too; return the model, which is in it.

    So a teacher computes what it would outside training, and no values are looked at on the way: see `may_look`.
    """
    for module in model.modules():
        if isinstance(vars(module).get("dropout"), Dropout):
            vars(module)["dropout"] = Dropout()
    model.head.dropout = model.head.dense_dropout = 0.0
    return model.train()
