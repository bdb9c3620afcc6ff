"""Keys and values of many rows of different lengths, in blocks of one buffer: rows come and go, and may share a beginning.

Shapes: N blocks, L layers, K key-value heads, S positions, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plainformer.config import ModelConfig
from plainformer.config.values import check_whole
from plainformer.errors import UsageError, plural
from plainformer.generation.cache.buffers import Device
from plainformer.generation.cache.cache import KeyValueCache

BLOCK = (
    64  # positions of a block; prompts are read in chunks of as many, so that what is shared ends where a chunk does
)


def blocks_for(length: int) -> int:
    """Return how many blocks that many positions take."""
    return -(-length // BLOCK)


class BlockPool:
    """A buffer of `blocks` blocks, each with the keys and values of all layers for `BLOCK` positions of a row.

    Memory is the system's to give: a block that was never used takes none. Who takes a block gives it back once; who keeps
    one that another took does so too, and it is free when all have.

    Attributes:
        numbers: (N, L, 2, K, BLOCK, E), keys and values.
    """

    def __init__(
        self, config: ModelConfig, blocks: int, *, dtype: torch.dtype = torch.float32, device: Device = "cpu"
    ) -> None:
        stack = config.decoder
        if stack is None:
            raise UsageError(f"{config.family} has no decoder, so there is nothing to cache", "call the model directly")
        check_whole("blocks", blocks)
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        shape = stack.num_layers, 2, stack.num_kv_heads, BLOCK, stack.head_dim
        self.numbers = torch.empty(blocks, *shape, dtype=dtype, device=device)
        self._free = list(range(blocks - 1, -1, -1))
        self._users = [0] * blocks

    def __repr__(self) -> str:
        return f"BlockPool({self.free} of {plural(self.total, 'block')} free)"

    @property
    def total(self) -> int:
        """How many blocks there are."""
        return len(self.numbers)

    @property
    def free(self) -> int:
        """How many of them nobody uses."""
        return len(self._free)

    @property
    def bytes_per_block(self) -> int:
        return self.numbers[0].numel() * self.numbers.element_size()

    def take(self, count: int) -> list[int]:
        """Return the numbers of `count` blocks that are the caller's from here on. Raises: UsageError if there are fewer."""
        check_whole("count", count, 0)
        if count > self.free:
            raise UsageError(
                f"{plural(count, 'block')} of keys and values asked for, and {self.free} of {self.total} are free",
                "end other rows first, or make the pool larger",
            )
        taken = [self._free.pop() for _ in range(count)]
        for number in taken:
            self._users[number] = 1
        return taken

    def keep(self, numbers: Sequence[int]) -> None:
        """Count one more user of blocks that are in use."""
        self._check_used(numbers)
        for number in numbers:
            self._users[number] += 1

    def give(self, numbers: Sequence[int]) -> None:
        """Give blocks back; those that nobody else uses are free."""
        self._check_used(numbers)
        for number in numbers:
            self._users[number] -= 1
            if not self._users[number]:
                self._free.append(number)

    def users(self, number: int) -> int:
        """Return how many use a block."""
        return self._users[number]

    def write(self, blocks: Sequence[int], cache: KeyValueCache, filled: int = 0) -> None:
        """Copy what a cache of one row holds into blocks; the first `filled` of them have their part already.

        Of a layer with a window, what it has dropped is not written: nothing that follows can see it.
        """
        for layer in range(cache.num_layers):
            for part, x_KSE in enumerate(x[0] for x in cache.read(layer)):
                start = cache.length - x_KSE.size(1)
                for index in range(max(start // BLOCK, filled), blocks_for(cache.length)):
                    first, last = max(index * BLOCK, start), min((index + 1) * BLOCK, cache.length)
                    to = self.numbers[blocks[index], layer, part, :, first - index * BLOCK : last - index * BLOCK]
                    to.copy_(x_KSE[:, first - start : last - start])

    def read(self, blocks: Sequence[int], layer: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Return a copy of one layer's keys and values of positions, (1, K, S, E) each."""
        first, last = start // BLOCK, blocks_for(end)
        index = torch.tensor(blocks[first:last], dtype=torch.long, device=self.device)
        found_2KSE = self.numbers[:, layer].index_select(0, index).permute(1, 2, 0, 3, 4).flatten(2, 3)
        k_KSE, v_KSE = found_2KSE[:, :, start - first * BLOCK : end - first * BLOCK]
        return k_KSE[None], v_KSE[None]

    def _check_used(self, numbers: Sequence[int]) -> None:
        free = [number for number in numbers if not 0 <= number < self.total or not self._users[number]]
        if free:
            raise UsageError(f"block {free[0]} is in nobody's use", "give back only what was taken, and once")
