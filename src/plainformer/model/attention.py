"""Attention: queries look at keys and collect values (Vaswani et al. 2017).

Shapes: B batch, T queries, S keys, D width, H heads, K key-value heads (K divides H), E channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainformer.config import StackConfig
from plainformer.errors import UsageError
from plainformer.model.disentangled import DisentangledScores
from plainformer.model.linear import Linear, LinearGroup
from plainformer.model.norm import make_norm
from plainformer.model.position import Rotation, rotate


class Room(NamedTuple):
    """A layer's buffers (R, K, capacity, E), whose first `held` positions are in use, the newest to be written by the caller.

    `shared`: what neighbouring rows share and have before that, (R / copies, K, P, E).
    """

    keys: Tensor
    values: Tensor
    held: int
    shared: tuple[Tensor, Tensor] | None


@runtime_checkable
class Cache(Protocol):
    """What attention asks of a key-value cache; `generate/cache.py` has the real one."""

    length: int
    copies: int

    def update(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Append this step's keys and values, return the layer's own so far: (B, K, S, E); older ones may be gone."""

    def room(self, layer: int, rows: int, count: int) -> Room | None:
        """Room for `count` new positions, instead of `update`; None, and nothing changed, where only `update` will do."""

    def prefix(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """What every `copies` rows share and have before their own: (B / copies, K, P, E)."""

    def cross(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """The encoder's keys and values for this layer, if they were stored."""

    def store_cross(self, layer: int, k_BKSE: Tensor, v_BKSE: Tensor) -> None:
        """Keep the encoder's keys and values for the next steps."""


@dataclass
class Mask:
    """Which keys a query may see. `bias` is added to the scores (B or 1, H or 1, T or 1, S); `causal` needs no tensor."""

    bias: Tensor | None = None
    causal: bool = False

    def of(self, queries: slice) -> Mask:
        """The mask of some of the queries; of a causal one without a tensor they are the last, which see every key."""
        if self.bias is None or self.bias.size(-2) == 1:
            return Mask(self.bias)
        return Mask(self.bias[..., queries, :])


@dataclass
class Flow:
    """What passes beside the hidden states through one run of a stack; lists have one entry a layer.

    `only`: a layer, and the positions that are wanted of its output; the others it leaves out.
    """

    masks: list[Mask]
    rotations: list[Rotation | None]
    cache: Cache | None = None
    memory_BSD: Tensor | None = None
    memory_mask: Mask = field(default_factory=Mask)
    head_mask_LH: Tensor | None = None
    cross_head_mask_LH: Tensor | None = None
    relative: Tensor | None = None
    attentions: list[Tensor] | None = None
    cross_attentions: list[Tensor] | None = None
    only: tuple[int, slice] | None = None
    views: dict[tuple[int, int], Any] = field(default_factory=dict)  # what `step.py` made of masks and rotations

    def wanted(self, layer: int) -> slice | None:
        """The positions that are wanted of a layer's output; None for all."""
        return self.only[1] if self.only is not None and self.only[0] == layer else None


def split_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """(B, T, H * E) → (B, H, T, E)."""
    batch, length, size = x_BTD.shape
    if length == 1:  # nothing to reorder, and one call less in each layer of each decoding step
        return x_BTD.view(batch, heads, 1, size // heads)
    return x_BTD.view(batch, length, heads, size // heads).transpose(1, 2)


def merge_heads(x_BHTE: Tensor) -> Tensor:
    """(B, H, T, E) → (B, T, H * E)."""
    batch, heads, length, size = x_BHTE.shape
    return x_BHTE.transpose(1, 2).reshape(batch, length, heads * size)


def attend(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Mask, scale: float) -> Tensor:
    """Context vectors (B, H, T, E) through the fused kernel."""
    heads, kv_heads, queries = q_BHTE.size(1), k_BKSE.size(1), q_BHTE.size(2)
    if heads == kv_heads:
        return F.scaled_dot_product_attention(q_BHTE, k_BKSE, v_BKSE, mask.bias, is_causal=mask.causal, scale=scale)
    if queries == 1 and (mask.bias is None or mask.bias.size(1) == 1):
        # One query: the heads that share keys stand as rows of one product, so the keys are read once and not repeated.
        batch, _, _, size = q_BHTE.shape
        grouped = q_BHTE.view(batch, kv_heads, heads // kv_heads, size)
        context = F.scaled_dot_product_attention(grouped, k_BKSE, v_BKSE, mask.bias, scale=scale)
        return context.reshape(batch, heads, 1, size)
    return F.scaled_dot_product_attention(
        q_BHTE, k_BKSE, v_BKSE, mask.bias, is_causal=mask.causal, scale=scale, enable_gqa=True
    )


def attend_shared(
    q_BHTE: Tensor, prefix: tuple[Tensor, Tensor], k_BKSE: Tensor, v_BKSE: Tensor, mask: Mask, scale: float
) -> Tensor:
    """Context vectors of rows that share a prefix, (N, K, P, E) for N = B / copies: one softmax over both parts.

    The rows that share it stand as queries of one product, so that the prefix is read once for all of them.
    """
    batch, heads, queries, size = q_BHTE.shape
    shared, kv_heads = prefix[0].shape[:2]
    copies, group = batch // shared, heads // kv_heads
    q_own = q_BHTE.reshape(batch, kv_heads, group * queries, size) * scale
    q_all = q_own.view(shared, copies, kv_heads, -1, size).transpose(1, 2).reshape(shared, kv_heads, -1, size)
    scores_all = (q_all @ prefix[0].transpose(-1, -2)).view(shared, kv_heads, copies, group * queries, -1)
    scores_own = q_own @ k_BKSE.transpose(-1, -2)
    scores = torch.cat((scores_all.transpose(1, 2).reshape(batch, kv_heads, group * queries, -1), scores_own), dim=-1)
    if mask.bias is not None:
        scores = (scores.view(batch, heads, queries, -1) + mask.bias).clamp_min(torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1, dtype=torch.float32).to(q_BHTE.dtype).view(batch, kv_heads, group * queries, -1)
    p_all, p_own = probabilities.split((prefix[0].size(2), k_BKSE.size(2)), dim=-1)
    p_all = p_all.reshape(shared, copies, kv_heads, group * queries, -1).transpose(1, 2).flatten(2, 3)
    context = (p_all @ prefix[1]).view(shared, kv_heads, copies, group * queries, size).transpose(1, 2)
    return (context.reshape(batch, kv_heads, group * queries, size) + p_own @ v_BKSE).reshape(q_BHTE.shape)


def attend_eagerly(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Mask, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Context vectors and the probabilities (B, H, T, S), step by step; for `output_attentions` and soft-capped scores."""
    repeats = q_BHTE.size(1) // k_BKSE.size(1)
    if repeats > 1:
        k_BKSE, v_BKSE = k_BKSE.repeat_interleave(repeats, 1), v_BKSE.repeat_interleave(repeats, 1)
    scores_BHTS = q_BHTE @ k_BKSE.transpose(-1, -2) * scale
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    if mask.causal:
        hidden = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=scores_BHTS.device).triu(1)
        scores_BHTS = scores_BHTS.masked_fill(hidden, torch.finfo(scores_BHTS.dtype).min)
    elif mask.bias is not None:
        scores_BHTS = (scores_BHTS + mask.bias).clamp_min(torch.finfo(scores_BHTS.dtype).min)
    probabilities = scores_BHTS.softmax(-1, dtype=torch.float32).to(q_BHTE.dtype)
    return probabilities @ v_BKSE, probabilities


class SelfAttention(nn.Module):
    """Each position of a sequence looks at the positions of the same sequence."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.scale, self.softcap = config.attention_scale, config.score_softcap
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv = LinearGroup(config.hidden_size, {"q": q_size, "k": kv_size, "v": kv_size}, config.qkv_bias)
        self.out = Linear(q_size, config.hidden_size, config.out_bias)
        over_heads, over_all = config.qk_norm == "head", config.qk_norm == "all"
        self.q_norm_all = make_norm(q_size, config.norm) if over_all else None
        self.k_norm_all = make_norm(kv_size, config.norm) if over_all else None
        self.q_norm = make_norm(config.head_dim, config.norm) if over_heads else None
        self.k_norm = make_norm(config.head_dim, config.norm) if over_heads else None
        self.scores = DisentangledScores(config) if config.disentangled is not None else None

    def forward(self, x_BTD: Tensor, layer: int, flow: Flow) -> Tensor:
        q_BTD, k_BTD, v_BTD = self.qkv(x_BTD)
        if self.q_norm_all is not None and self.k_norm_all is not None:
            q_BTD, k_BTD = self.q_norm_all(q_BTD), self.k_norm_all(k_BTD)
        q_BHTE, k_BKTE = split_heads(q_BTD, self.heads), split_heads(k_BTD, self.kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTE, k_BKTE = self.q_norm(q_BHTE), self.k_norm(k_BKTE)
        v_BKTE = split_heads(v_BTD, self.kv_heads)
        rotation = flow.rotations[layer]
        if rotation is not None:
            q_BHTE, k_BKTE = rotate(q_BHTE, rotation), rotate(k_BKTE, rotation)
        if flow.cache is not None:
            k_BKTE, v_BKTE = flow.cache.update(layer, k_BKTE, v_BKTE)
        mask = flow.masks[layer]
        prefix = flow.cache.prefix(layer) if flow.cache is not None else None
        held = k_BKTE.size(2) + (prefix[0].size(2) if prefix is not None else 0)
        if mask.bias is not None and mask.bias.size(-1) > held:  # a windowed layer's cache has let go of the oldest
            mask = Mask(mask.bias[..., -held:])
        if self.scores is not None:
            mask = self._with_positions(mask, q_BHTE, k_BKTE, flow)
        wanted = flow.wanted(layer)
        if wanted is not None:
            q_BHTE, mask = q_BHTE[:, :, wanted], mask.of(wanted)
        plain = flow.attentions is None and self.softcap is None
        if prefix is not None and not plain:
            copies = len(q_BHTE) // len(prefix[0])
            k_BKTE = torch.cat((prefix[0].repeat_interleave(copies, 0), k_BKTE), dim=2)
            v_BKTE = torch.cat((prefix[1].repeat_interleave(copies, 0), v_BKTE), dim=2)
        if plain and prefix is not None:
            context_BHTE = attend_shared(q_BHTE, prefix, k_BKTE, v_BKTE, mask, self.scale)
        elif plain:
            context_BHTE = attend(q_BHTE, k_BKTE, v_BKTE, mask, self.scale)
        else:
            context_BHTE, seen = attend_eagerly(q_BHTE, k_BKTE, v_BKTE, mask, self.scale, self.softcap)
            if flow.attentions is not None:
                flow.attentions.append(seen)
        if flow.head_mask_LH is not None:
            context_BHTE = context_BHTE * flow.head_mask_LH[layer][:, None, None]
        return self.out(merge_heads(context_BHTE))

    def _with_positions(self, mask: Mask, q_BHTE: Tensor, k_BHSE: Tensor, flow: Flow) -> Mask:
        assert self.scores is not None and flow.relative is not None
        q_RD, k_RD, _ = self.qkv(flow.relative)
        bias = self.scores(q_BHTE, k_BHSE, flow.relative, q_RD, k_RD)
        if mask.bias is not None:  # -max where hidden; the sum must not fall past it to -inf
            bias = (bias + mask.bias).clamp_min(torch.finfo(bias.dtype).min)
        return Mask(bias)


class CrossAttention(nn.Module):
    """Each position of the decoder looks at all positions of the encoder's output ("memory"), whose keys are made once."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, self.scale = config.num_heads, config.attention_scale
        size = config.num_heads * config.head_dim
        self.q = Linear(config.hidden_size, size, config.qkv_bias)
        self.kv = LinearGroup(config.hidden_size, {"k": size, "v": size}, config.qkv_bias)
        self.out = Linear(size, config.hidden_size, config.out_bias)

    def forward(self, x_BTD: Tensor, layer: int, flow: Flow) -> Tensor:
        q_BHTE = split_heads(self.q(x_BTD), self.heads)
        k_BHSE, v_BHSE = self.memory(layer, flow)
        copies = flow.cache.copies if flow.cache is not None else 1
        if copies > 1:  # rows that continue one prompt look at one memory: they stand as its queries
            q_BHTE = q_BHTE.unflatten(0, (-1, copies)).transpose(1, 2).flatten(2, 3)
        if flow.cross_attentions is None:
            context_BHTE = attend(q_BHTE, k_BHSE, v_BHSE, flow.memory_mask, self.scale)
        else:
            context_BHTE, seen = attend_eagerly(q_BHTE, k_BHSE, v_BHSE, flow.memory_mask, self.scale, None)
            flow.cross_attentions.append(seen)
        if copies > 1:
            context_BHTE = context_BHTE.unflatten(2, (copies, -1)).transpose(1, 2).flatten(0, 1)
        if flow.cross_head_mask_LH is not None:
            context_BHTE = context_BHTE * flow.cross_head_mask_LH[layer][:, None, None]
        return self.out(merge_heads(context_BHTE))

    def memory(self, layer: int, flow: Flow) -> tuple[Tensor, Tensor]:
        """The memory's keys and values; what the cache holds is not made again, what a memory has grown by is added."""
        kept = flow.cache.cross(layer) if flow.cache is not None else None
        held = kept[0].size(2) if kept is not None else 0
        if kept is not None and (flow.memory_BSD is None or flow.memory_BSD.size(1) == held):
            return kept
        assert flow.memory_BSD is not None
        if flow.memory_BSD.size(1) < held:
            raise UsageError(
                f"the cache holds {held} positions of the encoder's output, and this one has {flow.memory_BSD.size(1)}",
                "an encoder's output may only grow (join_outputs); begin with a new cache",
            )
        k_BSD, v_BSD = self.kv(flow.memory_BSD[:, held:])
        k_BHSE, v_BHSE = split_heads(k_BSD, self.heads), split_heads(v_BSD, self.heads)
        if kept is not None:
            k_BHSE, v_BHSE = torch.cat((kept[0], k_BHSE), dim=2), torch.cat((kept[1], v_BHSE), dim=2)
        if flow.cache is not None:
            # Contiguous per head: every later step reads them whole.
            k_BHSE, v_BHSE = k_BHSE.contiguous(), v_BHSE.contiguous()
            flow.cache.store_cross(layer, k_BHSE, v_BHSE)
        return k_BHSE, v_BHSE
