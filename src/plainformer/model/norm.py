"""Normalisation and activations.

Shapes: ... any leading dimensions, D hidden size (or another that is normalised over): (..., D) → (..., D).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainformer.config import NormConfig


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016).

    `across`: ranks' means → their mean, where each rank has a part of the channels.
    """

    across: Callable[[Tensor], Tensor] | None = None

    def __init__(self, size: int, config: NormConfig) -> None:
        super().__init__()
        self.shape, self.eps = (size,), config.eps
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.across is not None:
            return self._across(x, self.across)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)

    def _across(self, x: Tensor, across: Callable[[Tensor], Tensor]) -> Tensor:
        wide = x.float()
        wide = wide - across(wide.mean(-1, keepdim=True))
        wide = wide * torch.rsqrt(across(wide.square().mean(-1, keepdim=True)) + self.eps) * self.weight.float()
        return (wide if self.bias is None else wide + self.bias.float()).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * (offset + weight), the mean in fp32 (Zhang & Sennrich 2019).

    `across`: ranks' means → their mean, where each rank has a part of the channels.
    """

    across: Callable[[Tensor], Tensor] | None = None

    def __init__(self, size: int, config: NormConfig) -> None:
        super().__init__()
        self.per_channel, self.offset = 1 / size, config.weight_offset
        self.eps = torch.full((), config.eps, device="cpu")  # a tensor, so that one fused step can add it
        self.cast_last = config.cast == "last"
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float32 else x.float()
        if self.eps.device != x.device:
            self.eps = self.eps.to(x.device)
        # Through the vector's length: torch composes rms_norm from more and smaller steps on a CPU.
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        if self.across is None:
            wide = wide * torch.rsqrt(torch.addcmul(self.eps, length, length, value=self.per_channel))
        else:
            wide = wide * torch.rsqrt(self.across(length.square() * self.per_channel) + self.eps)
        if x.dtype == torch.float32 and not self.offset:
            return wide * self.weight
        if self.cast_last:
            return (wide * (self.weight.float() + self.offset)).to(x.dtype)
        return wide.to(x.dtype) * (self.weight + self.offset)


def make_norm(size: int, config: NormConfig | None) -> nn.Module:
    """Return the norm that `config` names; an identity for None."""
    if config is None:
        return nn.Identity()
    return LayerNorm(size, config) if config.kind == "layer" else RMSNorm(size, config)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": _relu2,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": _identity,
}
