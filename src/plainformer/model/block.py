"""One layer: attention, perhaps cross-attention, and a position-wise feed-forward network, each with its norm and residual.

Shapes: B batch, T positions, D width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from plainformer.config import StackConfig
from plainformer.errors import UsageError
from plainformer.model.attention import CrossAttention, Flow, SelfAttention
from plainformer.model.fast.step import LayerStep
from plainformer.model.linear import Linear, LinearGroup
from plainformer.model.norm import ACTIVATION_FUNCTIONS, make_norm

Step = Callable[[Tensor], Tensor]


def _pre(x: Tensor, kept: Tensor, step: Step, norm: nn.Module, _: nn.Module) -> Tensor:
    return kept + step(norm(x))


def _post(x: Tensor, kept: Tensor, step: Step, norm: nn.Module, _: nn.Module) -> Tensor:
    return norm(kept + step(x))


def _both(x: Tensor, kept: Tensor, step: Step, norm: nn.Module, after: nn.Module) -> Tensor:
    return kept + after(step(norm(x)))


def _branch(x: Tensor, kept: Tensor, step: Step, norm: nn.Module, _: nn.Module) -> Tensor:
    return kept + norm(step(x))


# `kept` is x, or those positions of it that the step answers for.
WIRINGS: dict[str, Callable[[Tensor, Tensor, Step, nn.Module, nn.Module], Tensor]] = {
    "pre": _pre,
    "post": _post,
    "both": _both,
    "branch": _branch,
}


class FeedForward(nn.Module):
    """The same small network at every position: down(act(up(x))), or down(act(gate(x)) * up(x)) (Shazeer 2020).

    `chunk_size` > 0 runs that many positions at a time, so the (B, T, F) activations never exist at once: the same
    numbers with less memory and more time (Kitaev et al. 2020, section 3).
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.activation = ACTIVATION_FUNCTIONS[config.activation]
        self.down = Linear(config.ffn_size, config.hidden_size, config.ffn_bias)
        self.chunk_size = 0
        self.step: Step
        if config.ffn == "gated":
            sizes = {"gate": config.ffn_size, "up": config.ffn_size}
            self.gate_up = LinearGroup(config.hidden_size, sizes, config.ffn_bias)
            self.step = self._gated
        else:
            self.up = Linear(config.hidden_size, config.ffn_size, config.ffn_bias)
            self.step = self._plain

    def forward(self, x_BTD: Tensor) -> Tensor:
        if 0 < self.chunk_size < x_BTD.size(1):
            return torch.cat([self.step(piece) for piece in x_BTD.split(self.chunk_size, dim=1)], dim=1)
        return self.step(x_BTD)

    def _plain(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x_BTD)))

    def _gated(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD)
        inner_BTF = self.activation(gate_BTF)
        # In place where no gradient needs the factor: for a long prompt, one large tensor less to allocate and to write.
        return self.down(inner_BTF * up_BTF if torch.is_grad_enabled() else inner_BTF.mul_(up_BTF))


class Block(nn.Module):
    """Sub-layers one after the other: attention, cross-attention where there is an encoder to look at, feed-forward."""

    def __init__(self, config: StackConfig, index: int) -> None:
        super().__init__()
        size, norm = config.hidden_size, config.norm
        self.wire = WIRINGS[config.norm_place]
        self.step = LayerStep(config)
        self.attention = SelfAttention(config)
        has_norm = index > 0 or config.first_norm == "norm"
        self.attention_norm = make_norm(size, norm) if has_norm else nn.Identity()
        self.ffn = FeedForward(config)
        self.ffn_norm = make_norm(size, norm)
        twice = config.norm_place == "both"
        self.attention_after_norm = make_norm(size, norm) if twice else nn.Identity()
        self.ffn_after_norm = make_norm(size, norm) if twice else nn.Identity()
        self.cross = CrossAttention(config) if config.cross_attention else None
        self.cross_norm = make_norm(size, norm) if config.cross_attention else nn.Identity()

    def forward(self, x_BTD: Tensor, layer: int, flow: Flow) -> Tensor:
        stepped = self.step(self, x_BTD, layer, flow)
        if stepped is not None:
            return stepped
        wanted = flow.wanted(layer)
        kept = x_BTD if wanted is None else x_BTD[:, wanted]
        x_BTD = self.wire(
            x_BTD, kept, lambda h: self.attention(h, layer, flow), self.attention_norm, self.attention_after_norm
        )
        if self.cross is not None:
            cross = self.cross
            x_BTD = self.wire(x_BTD, x_BTD, lambda h: cross(h, layer, flow), self.cross_norm, self.cross_norm)
        return self.wire(x_BTD, x_BTD, self.ffn, self.ffn_norm, self.ffn_after_norm)


class ParallelBlock(nn.Module):
    """Attention and feed-forward read the same x, their outputs are added (GPT-NeoX; Wang & Komatsuzaki 2021)."""

    def __init__(self, config: StackConfig, index: int) -> None:
        super().__init__()
        self.step = LayerStep(config)
        self.attention = SelfAttention(config)
        self.attention_norm = make_norm(config.hidden_size, config.norm)
        self.ffn = FeedForward(config)
        self.ffn_norm = make_norm(config.hidden_size, config.norm)

    def forward(self, x_BTD: Tensor, layer: int, flow: Flow) -> Tensor:
        stepped = self.step(self, x_BTD, layer, flow)
        if stepped is not None:
            return stepped
        attended = self.attention(self.attention_norm(x_BTD), layer, flow)
        wanted = flow.wanted(layer)
        x_BTD = x_BTD if wanted is None else x_BTD[:, wanted]
        return self.ffn(self.ffn_norm(x_BTD)) + attended + x_BTD


def make_block(config: StackConfig, index: int) -> nn.Module:
    """The block that `config` describes."""
    return ParallelBlock(config, index) if config.residual == "parallel" else Block(config, index)


def set_ffn_chunk_size(model: nn.Module, chunk_size: int) -> None:
    """Positions that each feed-forward network runs at a time, 0 for all at once."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 0:
        raise UsageError(f"ffn_chunk_size={chunk_size!r} is not a count of positions", "give 0 (all at once) or more")
    for module in model.modules():
        if isinstance(module, FeedForward):
            module.chunk_size = chunk_size
