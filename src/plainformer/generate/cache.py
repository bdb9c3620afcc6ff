"""The key-value cache: what attention has already computed for earlier tokens, preallocated and grown by doubling.

Shapes: B batch, K key-value heads, T new positions, S positions in all, E channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plainformer.config import ModelConfig
from plainformer.errors import UsageError


class KeyValueCache:
    """Keys and values of one decoder's layers.

    Memory: 2 * layers * B * K * capacity * E numbers. `capacity` doubles when it is full, so the cache is copied only
    log2(length) times; give `capacity` to allocate once.

    Args:
        config: the model's; it says how many layers and heads there are.
        batch_size: rows.
        capacity: positions to allocate at the start.
    Attributes:
        length: positions that hold something; the model's forward pass adds to it.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int = 64,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        stack = config.decoder
        if stack is None:
            raise UsageError(f"{config.family} has no decoder, so there is nothing to cache", "call the model directly")
        if batch_size < 1 or capacity < 1:
            raise UsageError(f"batch_size={batch_size}, capacity={capacity}: both are at least 1")
        self.length = 0
        self.capacity = capacity
        shape = (batch_size, stack.num_kv_heads, capacity, stack.head_dim)
        layers = range(stack.num_layers)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        self.memory: list[tuple[Tensor, Tensor] | None] = [None for _ in layers]

    def update(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions behind the `length` that are there; return all, as views: (B, K, S, E)."""
        if layer == 0:
            self._check_fit(k_BKTE)
        end = self.length + k_BKTE.size(2)
        if end > self.keys[layer].size(2):
            self._grow(layer, end)
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.length : end] = k_BKTE
        values[:, :, self.length : end] = v_BKTE
        return keys[:, :, :end], values[:, :, :end]

    def cross(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """The encoder's keys and values for a layer, if they are kept."""
        return self.memory[layer]

    def store_cross(self, layer: int, k_BKSE: Tensor, v_BKSE: Tensor) -> None:
        """Keep the encoder's keys and values: they are the same at every step."""
        self.memory[layer] = (k_BKSE, v_BKSE)

    def crop(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not 0 <= length <= self.length:
            raise UsageError(f"cannot crop a cache of {self.length} positions to {length}")
        self.length = length

    def memory_bytes(self) -> int:
        """Bytes that are allocated, cross-attention included."""
        kept = [t for pair in self.memory if pair is not None for t in pair]
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values, *kept))

    def _check_fit(self, k_BKTE: Tensor) -> None:
        batch, heads, _, size = self.keys[0].shape
        rows, needed, _, width = k_BKTE.shape
        if (rows, needed, width) != (batch, heads, size):
            raise UsageError(
                f"a cache of {batch} rows with {heads} heads of {size} channels does not fit {rows} rows with {needed} "
                f"heads of {width}",
                "make one with this model's config and the number of rows of its input",
            )

    def _grow(self, layer: int, needed: int) -> None:
        while self.capacity < needed:
            self.capacity *= 2
        for store in (self.keys, self.values):
            old = store[layer]
            new = old.new_empty(old.size(0), old.size(1), self.capacity, old.size(3))
            new[:, :, : self.length] = old[:, :, : self.length]
            store[layer] = new
