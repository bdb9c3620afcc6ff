"""The memory for keys and values: each model's share of it, in blocks of 64 tokens, and who reserves how many."""

from __future__ import annotations

from typing import Any

from plainformer.generation.cache.paged import BLOCK, BlockPool, blocks_for
from plainformer.generation.ragged import Ragged, unfit
from plainformer.model.fast.packed import BlockWeight
from plainformer.model.transformer import Transformer
from plainformer.serve.engine.prefix import PrefixCache
from plainformer.tasks.base import Task


class Memory:
    """One model's blocks. Requests that run together have them in a pool; of others, what their caches take is counted.

    Attributes:
        total: blocks. reserved: by requests whose caches are their own.
        ragged: what runs rows together; None for a model that cannot.
        least_run: tokens of a prompt that must be run together, so that they are run as longer prompts are.
        has_kernels: whether prompts were read with kernels last; without, a product of one row has bits of its own.
        prefixes: blocks that are kept for later requests; None without.
    """

    def __init__(self, task: Task, share: int, prefix_cache: str) -> None:
        stack = task.config.decoder
        assert stack is not None
        model = task.model
        numbers = 2 * stack.num_layers * stack.num_kv_heads * stack.head_dim * BLOCK
        self.total = max(1, share // (numbers * model.dtype.itemsize))
        self.reserved = 0
        self.least_run, self.has_kernels = _least_run(model), False
        self.ragged: Ragged | None = None
        self.prefixes: PrefixCache | None = None
        if unfit(model) is None:
            pool = BlockPool(task.config, self.total, dtype=model.dtype, device=model.device)
            self.ragged = Ragged(model, pool)
            if prefix_cache != "off":
                self.prefixes = PrefixCache(pool, self.least_run)

    @property
    def pool(self) -> Any:
        return None if self.ragged is None else self.ragged.pool

    @property
    def prefix_blocks(self) -> int:
        """Blocks that are kept for later requests and that nobody uses now."""
        return 0 if self.prefixes is None else self.prefixes.idle

    @property
    def used(self) -> int:
        """Blocks that requests use or reserve."""
        taken = 0 if self.pool is None else self.pool.total - self.pool.free
        return taken - self.prefix_blocks + self.reserved

    @property
    def room(self) -> int:
        """Blocks that can still be had, some perhaps in the place of what is kept for later."""
        return self.total - self.used

    def take(self, count: int) -> list[int]:
        """Take blocks of the pool. The caller has asked whether they fit."""
        assert self.pool is not None
        if self.prefixes is not None and self.pool.free < count:
            self.prefixes.evict(count - self.pool.free)
        taken: list[int] = self.pool.take(count)
        return taken

    def reserve(self, blocks: int) -> None:
        """Count blocks that a request's own caches take."""
        self.reserved += blocks
        if self.prefixes is not None and self.used + self.prefix_blocks > self.total:
            self.prefixes.evict(self.used + self.prefix_blocks - self.total)


def _least_run(model: Transformer) -> int:
    in_blocks = any(isinstance(one, BlockWeight) for module in model.modules() for one in vars(module).values())
    return BlockWeight.FEW + 1 if in_blocks else 2


__all__ = ["BLOCK", "Memory", "blocks_for"]
