"""Stand-in: losses of labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F


def word_losses(model: Any, states_ND: Tensor, labels_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the loss of each label, (N,)."""
    return label_losses(model.score(states_ND), labels_N, smoothing)


def label_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the loss of each label, (N,)."""
    return F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)


def binary_losses(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each decision, in the shape of the scores."""
    return F.binary_cross_entropy_with_logits(scores, targets, reduction="none")


def squared_losses(predicted: Tensor, targets: Tensor) -> Tensor:
    """Return the square of each difference."""
    return (predicted - targets).square()
