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
from plainformer.model.attention import CrossAttention, SelfAttention
from plainformer.model.dropout import Draws, drop
from plainformer.model.flow import Attentions, Flow
from plainformer.model.linear import Linear, LinearGroup
from plainformer.model.norm import ACTIVATION_FUNCTIONS, make_norm

# Of more rows than this, an inference on a CPU computes one part after the other: activations that stay in the processor's
# cache, in memory that is used again, not in fresh pages.
ROWS_AT_ONCE = 512


class FeedForward(nn.Module):
    """The same small network at every position: down(act(up(x))), or down(act(gate(x)) * up(x)) (Shazeer 2020).

    Where ranks share it, each has some of the units, and draws its own numbers for them (`draws`).

    `chunk_size` > 0 runs that many positions at a time, so the (B, T, F) activations never exist at once: the same
    numbers with less memory and more time (Kitaev et al. 2020, section 3).
    """

    draws: Draws | None = None

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.activation, self.dropout = ACTIVATION_FUNCTIONS[config.activation], config.dropout
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
        rows, count = self._rows_at_once(x_BTD), x_BTD.shape[:-1].numel()
        if rows < count:
            # Of rows in one piece: parts of each row would be copied, and the copies kept for the gradient.
            chunks = x_BTD.flatten(0, 1).split(rows)
            return torch.cat([self.network(chunk) for chunk in chunks]).unflatten(0, x_BTD.shape[:2])
        return self.network(x_BTD)

    def _rows_at_once(self, x_BTD: Tensor) -> int:
        if 0 < self.chunk_size < x_BTD.size(1):
            return self.chunk_size * len(x_BTD)
        usual = self.chunk_size > 0 or self.training or torch.is_grad_enabled() or x_BTD.device.type != "cpu"
        count = x_BTD.shape[:-1].numel()
        return count if usual else ROWS_AT_ONCE + (count % ROWS_AT_ONCE == 1)  # a row alone may be rounded otherwise

    def _plain(self, x_BTD: Tensor) -> Tensor:
        inner_BTF = drop(self.activation(self.up(x_BTD)), self.dropout.activation, self.training, self.draws)
        return self.down(inner_BTF)

    def _gated(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD)
        inner_BTF = self.activation(gate_BTF)
        # In place where no gradient needs the factor: for a long prompt, one large tensor less to allocate and to write.
        inner_BTF = inner_BTF * up_BTF if torch.is_grad_enabled() else inner_BTF.mul_(up_BTF)
        del gate_BTF, up_BTF  # not alive beside the product, where no gradient needs them
        return self.down(drop(inner_BTF, self.dropout.activation, self.training, self.draws))


Norm = Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


def norms_around(place: str, norm: Norm, after_norm: Norm) -> tuple[Norm, Norm, Norm]:
    """Return `before`, `after` and `outer` of a sub-layer f, which becomes outer(x + after(f(before(x))))."""
    if place == "pre":
        return norm, _same, _same
    if place == "post":
        return _same, _same, norm
    return (norm, after_norm, _same) if place == "both" else (_same, norm, _same)


class Block(nn.Module):
    """Sub-layers one after the other: attention, cross-attention where there is an encoder, FFN."""

    def __init__(self, config: StackConfig, index: int) -> None:
        super().__init__()
        size, norm = config.hidden_size, config.norm
        after = norm if config.norm_place == "both" else None
        self.norm_place, self.dropout = config.norm_place, config.dropout
        self.attention = SelfAttention(config)
        self.attention_norm = make_norm(size, norm if index > 0 or config.first_norm == "norm" else None)
        self.attention_after_norm = make_norm(size, after)
        self.cross = CrossAttention(config) if config.cross_attention else None
        self.cross_norm = make_norm(size, norm if config.cross_attention else None)
        self.ffn = FeedForward(config)
        self.ffn_norm = make_norm(size, norm)
        self.ffn_after_norm = make_norm(size, after)

    def forward(self, x_BTD: Tensor, layer: int, flow: Flow) -> tuple[Tensor, Attentions]:
        """Return the layer's output, (B, T, D), and its attentions, if they are asked for."""
        p, training = self.dropout, self.training
        before, after, outer = norms_around(self.norm_place, self.attention_norm, self.attention_after_norm)
        y_BTD, own = self.attention(before(x_BTD), layer, flow)
        x_BTD = outer(flow.residual(x_BTD, layer) + drop(after(y_BTD), p.attention_output, training))
        del y_BTD  # nor is this beside the feed-forward network's values
        cross = None
        if self.cross is not None:
            before, after, outer = norms_around(self.norm_place, self.cross_norm, self.cross_norm)
            y_BTD, cross = self.cross(before(x_BTD), layer, flow)
            x_BTD = outer(x_BTD + drop(after(y_BTD), p.attention_output, training))
            del y_BTD
        before, after, outer = norms_around(self.norm_place, self.ffn_norm, self.ffn_after_norm)
        x_BTD = outer(x_BTD + drop(after(self.ffn(before(x_BTD))), p.ffn_output, training))
        return x_BTD, Attentions(own, cross)


class ParallelBlock(nn.Module):
    """Attention and FFN read the same x, and both outputs are added to it."""

    def __init__(self, config: StackConfig, index: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention = SelfAttention(config)
        self.attention_norm = make_norm(config.hidden_size, config.norm)
        self.ffn = FeedForward(config)
        self.ffn_norm = make_norm(config.hidden_size, config.norm)

    def forward(self, x_BTD: Tensor, layer: int, flow: Flow) -> tuple[Tensor, Attentions]:
        """Return the layer's output, (B, T, D), and its attentions, if they are asked for."""
        p, training = self.dropout, self.training
        y_BTD, own = self.attention(self.attention_norm(x_BTD), layer, flow)
        y_BTD = drop(y_BTD, p.attention_output, training)
        x_BTD = flow.residual(x_BTD, layer)
        return drop(self.ffn(self.ffn_norm(x_BTD)), p.ffn_output, training) + y_BTD + x_BTD, Attentions(own)


def make_block(config: StackConfig, index: int) -> nn.Module:
    """Return the block that `config` describes."""
    return ParallelBlock(config, index) if config.residual == "parallel" else Block(config, index)


def set_ffn_chunk_size(model: nn.Module, chunk_size: int) -> None:
    """Let each feed-forward network run that many positions at a time, 0 for all at once."""
    check_whole("ffn_chunk_size", chunk_size, 0, fix="give 0 (all positions at once) or more")
    for module in model.modules():
        if isinstance(module, FeedForward):
            module.chunk_size = chunk_size
