"""Losses that trust a label less the less likely the model finds it, or that look away from what it knows already.

Both are functions of a label's cross entropy, c = -log p, so that they are made of what is there, and are finite wherever c
is: p itself is 0 in fp32 from c = 104 on.

    focal (Lin et al. 2017)                             (1 - p)^γ · c          γ = 0: cross entropy
    generalised cross entropy (Zhang & Sabuncu 2018)    (1 - p^q) / q          q → 0: cross entropy; q = 1: 1 - p
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plainformer.config.training import LossConfig


@dataclass(frozen=True)
class Robust:
    """A loss of cross entropies: `kind` is "focal" or "gce", `strength` its γ or q."""

    kind: str
    strength: float

    def __call__(self, entropies: Tensor) -> Tensor:
        """Return the losses of labels with these cross entropies, of any shape."""
        losses: Tensor = _Shaped.apply(entropies, self)
        return losses

    def values(self, entropies: Tensor) -> Tensor:
        """Return the losses, without what a gradient needs."""
        if self.kind == "gce":
            return -torch.expm1(-self.strength * entropies) / self.strength
        return _wrong(entropies) ** self.strength * entropies

    def slopes(self, entropies: Tensor) -> Tensor:
        """Return the derivative of each loss in its cross entropy.

        gce: p^q. focal: (1 - p)^γ (1 + γ c p / (1 - p)), of which the fraction is c / (e^c - 1): 1 at c = 0.
        """
        if self.kind == "gce":
            return torch.exp(-self.strength * entropies)
        share = torch.where(entropies > 0, entropies / torch.expm1(entropies), 1.0)
        return _wrong(entropies) ** self.strength * (1 + self.strength * share)


def robust_of(config: LossConfig) -> Robust | None:
    """Return what `loss.kind` makes of cross entropies; None where they stay what they are."""
    if config.kind not in ("focal", "gce"):
        return None
    return Robust(config.kind, config.gamma if config.kind == "focal" else config.q)


def _wrong(entropies: Tensor) -> Tensor:
    """Return 1 - p, with all its digits where p is near 1; never below 0, of which there is no power."""
    return -torch.expm1(-entropies).clamp_max(0)


class _Shaped(torch.autograd.Function):
    """`values`, with `slopes` as their derivative: differentiating the formula gives 0 times infinity where p is 1 and γ < 1."""

    @staticmethod
    def forward(ctx: Any, entropies: Tensor, robust: Robust) -> Tensor:
        ctx.save_for_backward(entropies)
        ctx.robust = robust
        return robust.values(entropies)

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (entropies,) = ctx.saved_tensors
        return weights * ctx.robust.slopes(entropies), None
