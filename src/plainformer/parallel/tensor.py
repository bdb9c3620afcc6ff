"""Tensor parallelism: ranks share each layer's heads, feed-forward units and vocabulary rows (Megatron, Shoeybi et al. 2019).

A model that was built from a `Local` has a rank's share of the weights, as ordinary tensors. What the ranks have to tell each
other is installed here, by a module's role, so that `model/` knows nothing of it:

    enter     before what a rank has some rows of (q, k, v; gate, up; a word head): x → x; its gradients are added up
    leave     after what it has some columns of (attention's and the FFN's output), and after the table of tokens: added up
    gather    scores of words and attention probabilities: all ranks' parts, one after the other
    across    the mean of ranks' means, in norms that go over all heads
    draws     dropout of what only this rank has is drawn by itself; all other numbers are drawn alike

All that is whole on each rank (norms, positions, small heads) computes the same everywhere, with the same gradients. Every rank
makes the same calls in the same order: nothing here may depend on a rank's own clock or input.

Shapes: ... any leading dimensions, B batch, H heads, T positions, S keys, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plainformer.config.local import Part, chunk_rows, local
from plainformer.config.model import ModelConfig
from plainformer.model.attention import CrossAttention, SelfAttention
from plainformer.model.block import FeedForward
from plainformer.model.frontend import TokenEmbedding
from plainformer.model.linear import Linear
from plainformer.model.lora import Adapter
from plainformer.model.norm import LayerNorm, RMSNorm
from plainformer.model.stack import Stack
from plainformer.model.transformer import Transformer
from plainformer.parallel.mesh import Mesh


class _Copy(torch.autograd.Function):
    """x → x; backward: the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _summed(gradient, ctx.group), None


class _Sum(torch.autograd.Function):
    """x → the sum of all ranks' x; backward: the gradient as it is, which is the same on all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class _Gather(torch.autograd.Function):
    """A part → all parts along `dim`, `size` in all; backward: the gradient of the own part, which is whole on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, dim: int, size: int) -> Tensor:
        count, index = dist.get_world_size(group), dist.get_rank(group)
        rows = [chunk_rows(size, count, rank) for rank in range(count)]
        ctx.dim, ctx.own = dim, rows[index]
        lengths = [stop - start for start, stop in rows]
        missing = [*x.shape[:dim], lengths[0] - lengths[index], *x.shape[dim + 1 :]]
        part = torch.cat((x, x.new_zeros(missing)), dim) if lengths[index] < lengths[0] else x.contiguous()
        parts = [torch.empty_like(part) for _ in range(count)]
        dist.all_gather(parts, part, group=group)
        return torch.cat([each.narrow(dim, 0, length) for each, length in zip(parts, lengths, strict=True)], dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        start, stop = ctx.own
        return gradient.narrow(ctx.dim, start, stop - start), None, None, None


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class Ranks:
    """The ranks that share a layer, and what they tell each other. A copy of a model talks in the same group."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group, self.count, self.index = group, dist.get_world_size(group), dist.get_rank(group)
        self.devices = [device] if device.type == "cuda" else []

    def __deepcopy__(self, memo: object) -> Ranks:
        return self

    def enter(self, x: Tensor) -> Tensor:
        """Return x; the ranks' gradients of it are added up."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return x
        entered: Tensor = _Copy.apply(x, self.group)
        return entered

    def __call__(self, y: Tensor) -> Tensor:
        """Return the sum of all ranks' y."""
        total: Tensor = _Sum.apply(y, self.group)
        return total

    def largest(self, x: Tensor) -> Tensor:
        """Return the largest of all ranks' numbers, entry by entry."""
        most = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
        return most

    def across(self, mean: Tensor) -> Tensor:
        """Return the mean of the ranks' means, and of their gradients: each rank uses it for its own channels alone."""
        return self(self.enter(mean)) / self.count

    def gather_heads(self, probabilities_BHTS: Tensor) -> Tensor:
        """Return the probabilities of all ranks' heads."""
        all_heads: Tensor = _Gather.apply(probabilities_BHTS, self.group, 1, probabilities_BHTS.size(1) * self.count)
        return all_heads

    @contextmanager
    def draws(self) -> Iterator[None]:
        """Draw by this rank's own numbers; afterwards, go on with those that all ranks have in common."""
        seed = int(torch.randint(2**62, (), device="cpu"))  # of the common ones: not the same next time
        with torch.random.fork_rng(self.devices):
            torch.manual_seed(seed + self.index)
            yield


class _Words:
    """The scores of this rank's words → those of all `size` words."""

    def __init__(self, ranks: Ranks, size: int) -> None:
        self.ranks, self.size = ranks, size

    def __call__(self, scores: Tensor) -> Tensor:
        gathered: Tensor = _Gather.apply(scores, self.ranks.group, scores.dim() - 1, self.size)
        return gathered


def part_of(mesh: Mesh) -> Callable[[ModelConfig], Transformer]:
    """Return what makes the empty part of a model that this rank has: for `load_model(..., make=part_of(mesh))`.

    With ZeRO-2 and 3, what fills it fills the rows alone that `make_sharded` will leave here.
    Raises UsageError, when it is called, for a model that cannot be divided so.
    """

    def make(config: ModelConfig) -> Transformer:
        mesh.layout.check(config)
        layout = mesh.layout
        shares = layout.tp * layout.pp > 1 or (layout.zero >= 2 and layout.dp > 1)
        here = local(config, layout, mesh.rank) if shares else None
        return make_tensor_parallel(Transformer(config, here), mesh)

    return make


def make_tensor_parallel(model: Transformer, mesh: Mesh) -> Transformer:
    """Install what the ranks of `mesh.tp` tell each other, in place, in a model that was built from this rank's `Local`.

    Call it before `prepare_for_inference` and before adapters are added. Does nothing where there is one rank.
    """
    if mesh.tp is None:
        return model
    here = model.local
    assert here is not None and here.place == mesh.place
    ranks = Ranks(mesh.tp, mesh.device)
    for name, module in model.named_modules():
        if isinstance(module, SelfAttention | CrossAttention):
            _share_heads(module, ranks)
        elif isinstance(module, FeedForward):
            (module.gate_up if hasattr(module, "gate_up") else module.up).enter = ranks.enter
            module.down.leave, module.draws = ranks, ranks.draws
        elif isinstance(module, TokenEmbedding):
            module.tokens.leave, module.tokens.start = ranks, here.part(f"{name}.tokens.weight").start
        elif isinstance(module, Stack):
            heads = module.config.num_heads // ranks.count
            module.own_heads = slice(ranks.index * heads, (ranks.index + 1) * heads)
        elif isinstance(module, Linear):
            part = here.part(f"{name}.weight")
            module.cut = None if part.dim is None else (part.dim, part.start, part.stop)
            if isinstance(module.adapter, Adapter):
                module.adapter.cut = module.cut
                module.adapter.draws = ranks.draws if module.leave is not None else None
    if isinstance(model.head.out, Linear) and model.head.out.cut is not None:
        model.head.out.enter = ranks.enter
        model.head.gather = _Words(ranks, model.config.head.out_size)
    return model


def _share_heads(module: SelfAttention | CrossAttention, ranks: Ranks) -> None:
    module.out.leave, module.draws, module.gather = ranks, ranks.draws, ranks.gather_heads
    if isinstance(module, CrossAttention):
        module.q.enter = module.kv.enter = ranks.enter
        return
    module.qkv.enter = ranks.enter
    for norm in (module.q_norm_all, module.k_norm_all):
        if isinstance(norm, LayerNorm | RMSNorm):
            norm.across = ranks.across
    if module.scores is not None:
        for linear in (module.scores.q, module.scores.k):
            if linear is not None:
                linear.enter = ranks.enter


@torch.no_grad()
def add_up_gradients(model: Transformer, mesh: Mesh) -> None:
    """Complete the gradients of which each rank has a part, in place: call it after the last backward pass of a step.

    These are of parameters that several ranks have, and use for their own heads: norms of single heads, key-value heads that
    are fewer than the ranks, and adapters. Everything goes in one message. A gradient that FSDP has sharded is added up
    shard by shard.
    """
    if mesh.tp is None or model.local is None:
        return
    own, messages = [], []
    for name, parameter in model.named_parameters():
        part = model.local.part(name, tuple(parameter.shape))
        if part.gradient == "sum" and parameter.grad is not None:
            gradient = parameter.grad.to_local() if hasattr(parameter.grad, "to_local") else parameter.grad
            # Ranks with other rows fill other slots with theirs: one group serves all.
            slots, slot = (1, 0) if part.dim is None else _slot(part)
            message = gradient.new_zeros(slots, gradient.numel())
            message[slot] = gradient.flatten()
            own.append((gradient, slot))
            messages.append(message)
    if not messages:
        return
    total = torch.cat([message.flatten() for message in messages])
    dist.all_reduce(total, group=mesh.tp)
    pieces = total.split([message.numel() for message in messages])
    for (gradient, slot), message, piece in zip(own, messages, pieces, strict=True):
        gradient.copy_(piece.view_as(message)[slot].view_as(gradient))


def _slot(part: Part) -> tuple[int, int]:
    assert part.dim is not None
    rows = part.stop - part.start
    return part.shape[part.dim] // rows, part.start // rows
