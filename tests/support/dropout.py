"""The placement oracle of dropout: what both libraries drop in a training forward, with which probability, in which order.

`placements(run)` replaces torch's dropout by a recorder that drops nothing. Both libraries call that, the reference by
modules and by functions; a fused attention's dropout counts as one of its probabilities, (B, H, T, S). A whole layer that
may be left out is drawn with `torch.rand`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

Placement = tuple[float, tuple[int, ...]]


class _Draw:
    """A draw that is compared with the probability of leaving a layer out, and never leaves it out."""

    def __init__(self, found: list[Placement]) -> None:
        self.found = found

    def __lt__(self, p: float) -> bool:
        self.found.append((p, ()))
        return False


def placements(run: Callable[[], Any]) -> list[Placement]:
    """Return (p, shape) of everything that is dropped while `run` runs; shape () for a layer."""
    found: list[Placement] = []
    with _recorder(found):
        run()
    return found


@contextmanager
def _recorder(found: list[Placement]) -> Iterator[None]:
    attention, rand = F.scaled_dot_product_attention, torch.rand

    def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if training and p > 0:
            found.append((p, tuple(x.shape)))
        return x

    def attend(q: Any, k: Any, v: Any, mask: Any = None, dropout_p: float = 0.0, **options: Any) -> torch.Tensor:
        if dropout_p > 0:
            found.append((dropout_p, (*q.shape[:3], k.size(2))))
        return attention(q, k, v, mask, 0.0, **options)

    def draw(*size: Any, **options: Any) -> Any:
        return _Draw(found) if size in (([],), ((),)) else rand(*size, **options)

    with (
        mock.patch.object(F, "dropout", dropout),
        mock.patch.object(F, "scaled_dot_product_attention", attend),
        mock.patch.object(torch, "rand", draw),
    ):
        yield
