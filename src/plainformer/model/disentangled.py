"""DeBERTa's position scores: content-to-position and position-to-content (He et al. 2021). Their sum is an attention bias.

Shapes: B batch, H heads, T positions (queries), S keys, E channels of a head, D hidden size, N relative positions in the
table (2 * span).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plainformer.config import Disentangled, StackConfig
from plainformer.model.documents import Documents, convolved_apart
from plainformer.model.dropout import drop
from plainformer.model.empty import Conv1d
from plainformer.model.linear import Linear
from plainformer.model.norm import ACTIVATION_FUNCTIONS, make_norm
from plainformer.model.position import distances


class RelativeTable(nn.Module):
    """The vectors of relative positions, (N, D), shared by all layers."""

    def __init__(self, config: Disentangled, hidden_size: int, stack: StackConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * config.span, hidden_size))
        self.norm = make_norm(hidden_size, stack.norm if config.norm else None)

    def forward(self) -> Tensor:
        return self.norm(self.weight)


def log_bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Return signed buckets: distances up to half the buckets stay exact, longer ones are spaced logarithmically."""
    middle = buckets // 2
    far = torch.where((distance < middle) & (distance > -middle), middle - 1, distance.abs())
    # In fp32, as in the pretrained models: a double here moves some distances to the next bucket.
    span = torch.log(torch.full((), (max_distance - 1) / middle, device=distance.device))
    steps = torch.ceil(torch.log(far / middle) / span * (middle - 1)) + middle
    return torch.where(far <= middle, distance.to(steps.dtype), steps * torch.sign(distance)).long()


class DisentangledScores(nn.Module):
    """The position terms of the attention scores, (B, H, T, S), already scaled."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        assert config.disentangled is not None
        self.config, self.heads, self.scale = config.disentangled, config.num_heads, config.attention_scale
        size = config.num_heads * config.head_dim
        separate = not self.config.shared_projection
        self.k = Linear(config.hidden_size, size, True) if separate and "c2p" in self.config.terms else None
        self.q = Linear(config.hidden_size, size, True) if separate and "p2c" in self.config.terms else None

    def forward(self, q_BHTE: Tensor, k_BHSE: Tensor, table_ND: Tensor, q_ND: Tensor, k_ND: Tensor) -> Tensor:
        """Return the scores; `q_ND`, `k_ND`: the table through the content's projections, for layers that share them."""
        span = self.config.span
        distance_TS = distances(q_BHTE.size(2), k_BHSE.size(2), q_BHTE.device)
        if self.config.buckets > 0:
            distance_TS = log_bucket(distance_TS, self.config.buckets, self.config.max_distance)
        scores = q_BHTE.new_zeros(1, 1, 1, 1)
        if "c2p" in self.config.terms:
            table_HEN = self._heads(self.k(table_ND) if self.k is not None else k_ND).transpose(-1, -2)
            index = (distance_TS + span).clamp(0, 2 * span - 1)
            c2p = q_BHTE @ table_HEN * self.scale
            scores = scores + c2p.gather(-1, index.expand(*c2p.shape[:3], -1))
        if "p2c" in self.config.terms:
            table_HEN = self._heads(self.q(table_ND) if self.q is not None else q_ND).transpose(-1, -2)
            p2c = k_BHSE @ table_HEN * self.scale
            index = (distance_TS.T + span).clamp(0, 2 * span - 1)
            scores = scores + p2c.gather(-1, index.expand(*p2c.shape[:3], -1)).transpose(-1, -2)
        return scores

    def _heads(self, table_ND: Tensor) -> Tensor:
        return table_ND.unflatten(-1, (self.heads, -1)).transpose(0, 1)


class LocalConvolution(nn.Module):
    """DeBERTa-v2's convolution beside the first layer: norm(y + act(conv(x))); padding and other documents add nothing."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        assert config.disentangled is not None
        size, kernel, groups = config.hidden_size, config.disentangled.conv_kernel, config.disentangled.conv_groups
        self.conv = Conv1d(size, size, kernel, padding=(kernel - 1) // 2, groups=groups)
        self.norm = make_norm(config.hidden_size, config.norm)
        self.activation, self.dropout = ACTIVATION_FUNCTIONS[config.disentangled.conv_activation], config.dropout

    def forward(
        self, before_BTD: Tensor, after_BTD: Tensor, real_BT: Tensor | None, documents: Documents | None
    ) -> Tensor:
        if documents is not None:
            local_BTD = convolved_apart(self.conv, before_BTD, documents)
        else:
            local_BTD = self.conv(before_BTD.transpose(1, 2)).transpose(1, 2)
        local_BTD = drop(local_BTD, self.dropout.positions, self.training)
        if real_BT is None:
            return self.norm(after_BTD + self.activation(local_BTD))
        real_BT1 = real_BT[..., None].to(local_BTD.dtype)
        return self.norm(after_BTD + self.activation(local_BTD * real_BT1)) * real_BT1
