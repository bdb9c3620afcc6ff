"""One layer: self-attention, cross-attention in a decoder that follows an encoder, and a feed-forward network (FFN).

Each of these sub-layers is added to its input. Where its norm is, `norm_place` says:

    pre      x ──┬─ norm ─ sub-layer ─────────────── + ──→      as in GPT-2, Llama (Xiong et al. 2020)
                 └───────────────────────────────────┘

    post     x ──┬─ sub-layer ─ + ─ norm ──────────────→      as in BERT (Vaswani et al. 2017)
                 └──────────────┘

    both     x ──┬─ norm ─ sub-layer ─ after_norm ── + ──→      as in Gemma 2 (two norms for each sub-layer)
                 └───────────────────────────────────┘

    branch   x ──┬─ sub-layer ─ norm ─────────────── + ──→      as in OLMo 2
                 └───────────────────────────────────┘

The parallel block adds both sub-layers at once (GPT-J, GPT-NeoX; Wang & Komatsuzaki 2021):

    x ──┬─ attention_norm ─ attention ─┐
        ├─ ffn_norm ─────── FFN ─────── + ──→
        └──────────────────────────────┘

Shapes: B batch, T positions, D hidden size, F feed-forward size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from plainformer.config import StackConfig
from plainformer.config.values import check_whole
from plainformer.model.attention import Attentions, CrossAttention, Flow, SelfAttention
from plainformer.model.linear import Linear, LinearGroup
from plainformer.model.norm import ACTIVATION_FUNCTIONS, make_norm


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
        self.network: Callable[[Tensor], Tensor]
        if config.ffn == "gated":
            sizes = {"gate": config.ffn_size, "up": config.ffn_size}
            self.gate_up = LinearGroup(config.hidden_size, sizes, config.ffn_bias)
            self.network = self._gated
        else:
            self.up = Linear(config.hidden_size, config.ffn_size, config.ffn_bias)
            self.network = self._plain

    def forward(self, x_BTD: Tensor) -> Tensor:
        if 0 < self.chunk_size < x_BTD.size(1):
            return torch.cat([self.network(chunk) for chunk in x_BTD.split(self.chunk_size, dim=1)], dim=1)
        return self.network(x_BTD)

    def _plain(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x_BTD)))

    def _gated(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD)
        inner_BTF = self.activation(gate_BTF)
        # In place where no gradient needs the factor: for a long prompt, one large tensor less to allocate and to write.
        return self.down(inner_BTF * up_BTF if torch.is_grad_enabled() else inner_BTF.mul_(up_BTF))


Norm = Callable[[Tensor], Tensor]
# For each `norm_place`: what a sub-layer reads of x, and how its output y is added to x.
WIRINGS: dict[str, tuple[Callable[[Tensor, Norm], Tensor], Callable[[Tensor, Tensor, Norm, Norm], Tensor]]] = {
    "pre": (lambda x, norm: norm(x), lambda x, y, norm, after_norm: x + y),
    "post": (lambda x, norm: x, lambda x, y, norm, after_norm: norm(x + y)),
    "both": (lambda x, norm: norm(x), lambda x, y, norm, after_norm: x + after_norm(y)),
    "branch": (lambda x, norm: x, lambda x, y, norm, after_norm: x + norm(y)),
}


class Block(nn.Module):
    """Sub-layers one after the other: attention, cross-attention where there is an encoder, FFN."""

    def __init__(self, config: StackConfig, index: int) -> None:
        super().__init__()
        size, norm = config.hidden_size, config.norm
        self.norm_place = config.norm_place
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

    def forward(self, x_BTD: Tensor, layer: int, flow: Flow) -> tuple[Tensor, Attentions]:
        """Return the layer's output, (B, T, D), and its attentions, if they are asked for."""
        read, add = WIRINGS[self.norm_place]
        h_BTD, own = self.attention(read(x_BTD, self.attention_norm), layer, flow)
        h_BTD = add(flow.residual(x_BTD, layer), h_BTD, self.attention_norm, self.attention_after_norm)
        cross = None
        if self.cross is not None:
            y_BTD, cross = self.cross(read(h_BTD, self.cross_norm), layer, flow)
            h_BTD = add(h_BTD, y_BTD, self.cross_norm, self.cross_norm)
        y_BTD = self.ffn(read(h_BTD, self.ffn_norm))
        return add(h_BTD, y_BTD, self.ffn_norm, self.ffn_after_norm), Attentions(own, cross)


class ParallelBlock(nn.Module):
    """Attention and FFN read the same x, and both outputs are added to it."""

    def __init__(self, config: StackConfig, index: int) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = make_norm(config.hidden_size, config.norm)
        self.ffn = FeedForward(config)
        self.ffn_norm = make_norm(config.hidden_size, config.norm)

    def forward(self, x_BTD: Tensor, layer: int, flow: Flow) -> tuple[Tensor, Attentions]:
        """Return the layer's output, (B, T, D), and its attentions, if they are asked for."""
        y_BTD, own = self.attention(self.attention_norm(x_BTD), layer, flow)
        x_BTD = flow.residual(x_BTD, layer)
        return self.ffn(self.ffn_norm(x_BTD)) + y_BTD + x_BTD, Attentions(own)


def make_block(config: StackConfig, index: int) -> nn.Module:
    """Return the block that `config` describes."""
    return ParallelBlock(config, index) if config.residual == "parallel" else Block(config, index)


def set_ffn_chunk_size(model: nn.Module, chunk_size: int) -> None:
    """Let each feed-forward network run that many positions at a time, 0 for all at once."""
    check_whole("ffn_chunk_size", chunk_size, 0, fix="give 0 (all positions at once) or more")
    for module in model.modules():
        if isinstance(module, FeedForward):
            module.chunk_size = chunk_size
