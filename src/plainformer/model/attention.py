"""Attention: queries look at keys and collect values (Vaswani et al. 2017).

Shapes: B batch, T positions (queries), S keys, D hidden size, H heads, K key-value heads (K divides H), E channels of a
head, L layers, P positions of a shared prefix, N prompts that share one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainformer.config import StackConfig
from plainformer.errors import UsageError
from plainformer.model.blockwise import attend_by_blocks, goes_by_blocks
from plainformer.model.disentangled import DisentangledScores
from plainformer.model.documents import Documents
from plainformer.model.dropout import Draws, drop
from plainformer.model.flow import Flow, Mask
from plainformer.model.linear import Linear, LinearGroup
from plainformer.model.norm import make_norm
from plainformer.model.position import Rotation, rotate

ALIKE = nullcontext()  # numbers are drawn as they come


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


def attend(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Mask, scale: float, dropout: float = 0.0) -> Tensor:
    """Return context vectors, (B, H, T, E), by torch's fused kernel. `dropout`: of the probabilities, 0 but in training."""
    heads, kv_heads, queries = q_BHTE.size(1), k_BKSE.size(1), q_BHTE.size(2)
    if heads == kv_heads:
        return F.scaled_dot_product_attention(
            q_BHTE, k_BKSE, v_BKSE, mask.bias, dropout, is_causal=mask.causal, scale=scale
        )
    if queries == 1 and (mask.bias is None or mask.bias.size(1) == 1):
        # One query: heads that share keys become the rows of one product, so that the keys are read once and not repeated.
        batch, _, _, size = q_BHTE.shape
        grouped = q_BHTE.view(batch, kv_heads, heads // kv_heads, size)
        context = F.scaled_dot_product_attention(grouped, k_BKSE, v_BKSE, mask.bias, dropout, scale=scale)
        return context.reshape(batch, heads, 1, size)
    return F.scaled_dot_product_attention(
        q_BHTE, k_BKSE, v_BKSE, mask.bias, dropout, is_causal=mask.causal, scale=scale, enable_gqa=True
    )


def attend_eagerly(
    q_BHTE: Tensor,
    k_BKSE: Tensor,
    v_BKSE: Tensor,
    mask: Mask,
    scale: float,
    softcap: float | None = None,
    prefix: tuple[Tensor, Tensor] | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return context vectors, (B, H, T, E), and probabilities before dropout, (B, H, T, P + S), computed step by step.

    For what the fused kernel does not have: `output_attentions`, scores with a soft cap, and a prefix, (N, K, P, E), that
    neighbouring rows share, which comes before the keys. All queries that look at the same keys - those of the heads that
    share them, and of a prefix those of the rows that share it - are rows of one product, so that keys are read once.
    """
    batch, kv_heads = len(q_BHTE), k_BKSE.size(1)
    probabilities_BHTS = _probabilities(q_BHTE, k_BKSE, mask, scale, softcap, prefix)
    p_BHTS = drop(probabilities_BHTS, dropout, training=True)
    p_BKGS = p_BHTS.view(batch, kv_heads, -1, p_BHTS.size(-1))  # G: the queries of all heads that share keys
    context_BKGE = p_BKGS[..., -k_BKSE.size(2) :] @ v_BKSE
    if prefix is not None:
        p_prefix = p_BKGS[..., : prefix[1].size(2)]
        context_BKGE = context_BKGE + _beside(_stacked(p_prefix, len(prefix[1])) @ prefix[1], batch)
    return context_BKGE.reshape(q_BHTE.shape), probabilities_BHTS


def _probabilities(
    q_BHTE: Tensor,
    k_BKSE: Tensor,
    mask: Mask,
    scale: float,
    softcap: float | None,
    prefix: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Return (B, H, T, P + S). A step at a time, each in place of the one before: no more than two are ever in memory."""
    scores_BHTS = _scores(q_BHTE, k_BKSE, scale, prefix)
    if softcap is not None:
        scores_BHTS = scores_BHTS / softcap
        scores_BHTS = scores_BHTS.tanh()
        scores_BHTS = scores_BHTS * softcap
    lowest = torch.finfo(scores_BHTS.dtype).min  # under autocast not the queries'
    if mask.causal:
        hidden_TS = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=scores_BHTS.device).triu(1)
        scores_BHTS = scores_BHTS.masked_fill(hidden_TS, lowest)
    elif mask.bias is not None:
        scores_BHTS = scores_BHTS + mask.bias
        scores_BHTS = scores_BHTS.clamp_min(torch.finfo(scores_BHTS.dtype).min)
    return scores_BHTS.softmax(-1, dtype=torch.float32).to(q_BHTE.dtype)


def _scores(q_BHTE: Tensor, k_BKSE: Tensor, scale: float, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return (B, H, T, P + S), as they are without a cap or a mask."""
    batch, heads, queries, size = q_BHTE.shape
    q_BKGE = (q_BHTE * scale).reshape(batch, k_BKSE.size(1), -1, size)
    scores_BKGS = q_BKGE @ k_BKSE.transpose(-1, -2)
    if prefix is not None:
        of_prefix = _beside(_stacked(q_BKGE, len(prefix[0])) @ prefix[0].transpose(-1, -2), batch)
        scores_BKGS = torch.cat((of_prefix, scores_BKGS), dim=-1)
    return scores_BKGS.view(batch, heads, queries, -1)


def _stacked(x_BKGE: Tensor, prompts: int) -> Tensor:
    """(N * copies, K, G, E) → (N, K, copies * G, E): rows that share a prompt become the rows of one product."""
    return x_BKGE.unflatten(0, (prompts, -1)).transpose(1, 2).flatten(2, 3)


def _beside(x_NKGE: Tensor, batch: int) -> Tensor:
    """Undo `_stacked`: (N, K, copies * G, E) → (N * copies, K, G, E)."""
    return x_NKGE.unflatten(2, (batch // len(x_NKGE), -1)).transpose(1, 2).flatten(0, 1)


class Heads(nn.Module):
    """What both attentions have where ranks share their heads, installed from outside; None where all heads are here.

    Attributes:
        draws: a context in which this rank draws numbers of its own.
        gather: what this rank's heads attend to, (B, H', T, S) → what all do, (B, H, T, S).
    """

    draws: Draws | None = None
    gather: Callable[[Tensor], Tensor] | None = None

    def all_heads(self, probabilities_BHTS: Tensor | None) -> Tensor | None:
        """Return the probabilities of all ranks' heads; None for None."""
        if self.gather is None or probabilities_BHTS is None:
            return probabilities_BHTS
        return self.gather(probabilities_BHTS)


class SelfAttention(Heads):
    """Each position of a sequence attends to positions of the same sequence."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.scale, self.softcap, self.dropout = config.attention_scale, config.score_softcap, config.dropout
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv = LinearGroup(config.hidden_size, {"q": q_size, "k": kv_size, "v": kv_size}, config.qkv_bias)
        self.out = Linear(q_size, config.hidden_size, config.out_bias)
        over_heads, over_all = config.qk_norm == "head", config.qk_norm == "all"
        self.q_norm_all = make_norm(q_size, config.norm) if over_all else None
        self.k_norm_all = make_norm(kv_size, config.norm) if over_all else None
        self.q_norm = make_norm(config.head_dim, config.norm) if over_heads else None
        self.k_norm = make_norm(config.head_dim, config.norm) if over_heads else None
        self.scores = DisentangledScores(config) if config.disentangled is not None else None

    def forward(self, x_BTD: Tensor, layer: int, flow: Flow) -> tuple[Tensor, Tensor | None]:
        """Return the output, (B, T, D), and the probabilities, (B, H, T, S), if they are asked for."""
        q_BHTE, k_BKSE, v_BKSE = self._project(x_BTD, flow.rotations[layer])
        prefix = None
        if flow.cache is not None and flow.packing is not None:  # nothing was cached before: rows attend to themselves
            rows = (flow.packing.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (k_BKSE, v_BKSE))
            flow.cache.update(layer, *rows)
        elif flow.cache is not None:
            k_BKSE, v_BKSE = flow.cache.update(layer, k_BKSE, v_BKSE)
            prefix = flow.cache.prefix(layer)
        mask = flow.masks[layer]
        held = k_BKSE.size(2) + (prefix[0].size(2) if prefix is not None else 0)
        if mask.bias is not None and mask.bias.size(-1) > held:  # a windowed layer's cache has dropped the oldest
            mask = replace(mask, bias=mask.bias[..., -held:])
        if self.scores is not None:
            mask = self._with_positions(mask, q_BHTE, k_BKSE, flow)
        wanted, dropout = flow.wanted(layer), self.dropout.attention if self.training else 0.0
        if wanted is not None:
            q_BHTE = flow.taken(q_BHTE, layer, dim=2)
        if wanted is not None and flow.packing is None:
            mask = mask.of(wanted)
        with self.draws() if dropout > 0 and self.draws is not None else ALIKE:
            context_BHTE, probabilities = self._attend(q_BHTE, k_BKSE, v_BKSE, mask, prefix, dropout, flow, layer)
        if flow.head_mask_LH is not None:
            context_BHTE = context_BHTE * flow.head_mask_LH[layer][:, None, None]
        attentions = self.all_heads(probabilities) if flow.output_attentions else None
        return self.out(merge_heads(context_BHTE)), attentions

    def _attend(
        self,
        q_BHTE: Tensor,
        k_BKSE: Tensor,
        v_BKSE: Tensor,
        mask: Mask,
        prefix: tuple[Tensor, Tensor] | None,
        dropout: float,
        flow: Flow,
        layer: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Return context vectors, (B, H, T, E), and the probabilities, (B, H, T, S), where they were computed."""
        if flow.documents is not None and flow.documents.runs is not None:
            return self._by_runs(flow.documents, q_BHTE, k_BKSE, v_BKSE, mask, dropout, flow.wanted(layer)), None
        if flow.output_attentions or prefix is not None:
            return attend_eagerly(q_BHTE, k_BKSE, v_BKSE, mask, self.scale, self.softcap, prefix, dropout)
        past = flow.cache.length if flow.cache is not None else 0
        return self._context(q_BHTE, k_BKSE, v_BKSE, mask, past, dropout), None

    def _context(self, q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Mask, past: int, dropout: float) -> Tensor:
        """Return context vectors, (B, H, T, E), of queries that follow `past` positions."""

        def attend_once(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Mask) -> Tensor:
            if self.softcap is not None:
                return attend_eagerly(q_BHTE, k_BKSE, v_BKSE, mask, self.scale, self.softcap, dropout=dropout)[0]
            return attend(q_BHTE, k_BKSE, v_BKSE, mask, self.scale, dropout)

        if q_BHTE.size(2) == 1 and mask.window is not None and k_BKSE.size(2) > mask.window:
            seen = slice(-mask.window, None)  # a cache may hold more or less of what the one query does not see
            k_BKSE, v_BKSE = k_BKSE[:, :, seen], v_BKSE[:, :, seen]
            mask = Mask(None if mask.bias is None else mask.bias[..., seen])
        if dropout > 0 or not goes_by_blocks(q_BHTE, mask):
            return attend_once(q_BHTE, k_BKSE, v_BKSE, mask)
        groups = 1 if self.softcap is not None else q_BHTE.size(1) // k_BKSE.size(1)
        return attend_by_blocks(attend_once, q_BHTE, k_BKSE, v_BKSE, mask, past, groups)

    def _by_runs(
        self,
        documents: Documents,
        q_BHTE: Tensor,
        k_BKTE: Tensor,
        v_BKTE: Tensor,
        mask: Mask,
        dropout: float,
        wanted: slice | None = None,
    ) -> Tensor:
        """Return context vectors, (B, H, T, E), of queries that look at their own document: a call for each run of them.

        `wanted`: which query of each document there is, as rows of one position; None for all.
        """
        contexts = []
        queries = documents.split(q_BHTE.transpose(1, 2), each=None if wanted is None else 1)
        keys, values = (documents.split(x.transpose(1, 2)) for x in (k_BKTE, v_BKTE))
        for run in zip(queries, keys, values, strict=True):
            q, k, v = (x.transpose(1, 2) for x in run)
            seen = mask.up_to(k.size(2)) if wanted is None else mask.up_to(k.size(2)).of(wanted)
            # One query of several documents in one call may have other last bits than of each alone, as when it is generated.
            each = 1 if wanted is not None and mask.looks_back else len(q)
            parts = zip(q.split(each), k.split(each), v.split(each), strict=True)
            found = [self._context(*part, seen, 0, dropout) for part in parts]
            contexts.append((found[0] if len(found) == 1 else torch.cat(found)).transpose(1, 2))
        joined = documents.join(contexts)
        return (joined if wanted is None else joined.transpose(0, 1)).transpose(1, 2)

    def _project(self, x_BTD: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, (B, H, T, E), keys and values, (B, K, T, E), normalised and rotated where the model does so."""
        q_BTD, k_BTD, v_BTD = self.qkv(x_BTD)
        if self.q_norm_all is not None and self.k_norm_all is not None:
            q_BTD, k_BTD = self.q_norm_all(q_BTD), self.k_norm_all(k_BTD)
        q_BHTE, k_BKTE = split_heads(q_BTD, self.heads), split_heads(k_BTD, self.kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTE, k_BKTE = self.q_norm(q_BHTE), self.k_norm(k_BKTE)
        if rotation is not None:
            q_BHTE, k_BKTE = rotate(q_BHTE, rotation), rotate(k_BKTE, rotation)
        return q_BHTE, k_BKTE, split_heads(v_BTD, self.kv_heads)

    def _with_positions(self, mask: Mask, q_BHTE: Tensor, k_BHSE: Tensor, flow: Flow) -> Mask:
        assert self.scores is not None and flow.relative is not None
        table_ND = drop(flow.relative, self.dropout.positions, self.training)
        q_ND, k_ND, _ = self.qkv(table_ND)
        bias = self.scores(q_BHTE, k_BHSE, table_ND, q_ND, k_ND)
        if mask.bias is not None:  # the lowest number where masked; the sum must not overflow to -inf
            bias = (bias + mask.bias).clamp_min(torch.finfo(bias.dtype).min)
        return Mask(bias)


class CrossAttention(Heads):
    """Each position of the decoder attends to all positions of the encoder's output, whose keys are computed once."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, self.scale, self.dropout = config.num_heads, config.attention_scale, config.dropout
        size = config.num_heads * config.head_dim
        self.q = Linear(config.hidden_size, size, config.qkv_bias)
        self.kv = LinearGroup(config.hidden_size, {"k": size, "v": size}, config.qkv_bias)
        self.out = Linear(size, config.hidden_size, config.out_bias)

    def forward(self, x_BTD: Tensor, layer: int, flow: Flow) -> tuple[Tensor, Tensor | None]:
        """Return the output, (B, T, D), and the probabilities, (B, H, T, S), if they are asked for."""
        q_BHTE, probabilities = split_heads(self.q(x_BTD), self.heads), None
        k_BHSE, v_BHSE = self.keys_and_values(layer, flow)
        copies = flow.cache.copies if flow.cache is not None else 1
        if copies > 1:  # rows that continue one prompt attend to the same encoder output: they become its queries
            q_BHTE = _stacked(q_BHTE, len(x_BTD) // copies)
        mask, dropout = flow.encoder_mask, self.dropout.attention if self.training else 0.0
        with self.draws() if dropout > 0 and self.draws is not None else ALIKE:
            if flow.output_attentions:
                context_BHTE, probabilities = attend_eagerly(q_BHTE, k_BHSE, v_BHSE, mask, self.scale, dropout=dropout)
            else:
                context_BHTE = attend(q_BHTE, k_BHSE, v_BHSE, mask, self.scale, dropout)
        if copies > 1:
            context_BHTE = _beside(context_BHTE, len(x_BTD))
        if flow.cross_head_mask_LH is not None:
            context_BHTE = context_BHTE * flow.cross_head_mask_LH[layer][:, None, None]
        return self.out(merge_heads(context_BHTE)), self.all_heads(probabilities)

    def keys_and_values(self, layer: int, flow: Flow) -> tuple[Tensor, Tensor]:
        """Return those of the encoder's output, (B, H, S, E): from the cache, computed only for what it does not hold."""
        kept = flow.cache.cross(layer) if flow.cache is not None else None
        if kept is None and flow.encoder_kept is not None:
            kept = flow.encoder_kept.get(layer)
            if kept is not None and flow.cache is not None:
                flow.cache.store_cross(layer, *kept)
        held = kept[0].size(2) if kept is not None else 0
        if kept is not None and (flow.encoder_BSD is None or flow.encoder_BSD.size(1) == held):
            return kept
        assert flow.encoder_BSD is not None
        if flow.encoder_BSD.size(1) < held:
            raise UsageError(
                f"the cache holds {held} positions of the encoder's output, and this one has {flow.encoder_BSD.size(1)}",
                "an encoder's output may only grow (join_outputs); begin with a new cache",
            )
        k_BSD, v_BSD = self.kv(flow.encoder_BSD[:, held:])
        k_BHSE, v_BHSE = split_heads(k_BSD, self.heads), split_heads(v_BSD, self.heads)
        if kept is not None:
            k_BHSE, v_BHSE = torch.cat((kept[0], k_BHSE), dim=2), torch.cat((kept[1], v_BHSE), dim=2)
        if flow.cache is not None or flow.encoder_kept is not None:
            # Contiguous for each head: every later step reads them whole.
            k_BHSE, v_BHSE = k_BHSE.contiguous(), v_BHSE.contiguous()
        if flow.cache is not None:
            flow.cache.store_cross(layer, k_BHSE, v_BHSE)
        if flow.encoder_kept is not None:
            flow.encoder_kept[layer] = k_BHSE, v_BHSE
        return k_BHSE, v_BHSE
