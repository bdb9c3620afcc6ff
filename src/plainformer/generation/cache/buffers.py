"""Where a cache keeps one layer's keys or values: a preallocated buffer of positions, as it is or in eight bits.

Shapes: R rows, K key-value heads, T new positions, E channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Store:
    """A buffer (R, K, capacity, E), written in order and grown by doubling, so it is copied log2(length) times at most.

    Attributes:
        most: positions that will ever be needed; None where nobody knows.
    """

    most: int | None = None

    def __init__(
        self, rows: int, heads: int, capacity: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.data = torch.empty(rows, heads, capacity, size, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        return self.data.size(2)

    def write(self, start: int, x_RKTE: Tensor) -> None:
        """Put T positions at `start`; what stood there before is replaced."""
        end = start + x_RKTE.size(2)
        if end > self.capacity:
            self.grow(start, end)
        self.data[:, :, start:end] = x_RKTE

    def read(self, start: int, end: int) -> Tensor:
        """Positions, as a view where nothing has to be computed."""
        return self.data[:, :, start:end]

    def reorder(self, index_R: Tensor, end: int) -> None:
        """Row r becomes a copy of row index_R[r], for the positions up to `end`."""
        self.data[:, :, :end] = self.data[:, :, :end].index_select(0, index_R)

    def grow(self, used: int, needed: int) -> None:
        self.data = _grown(self.data, used, needed, self.most)

    def memory_bytes(self) -> int:
        return self.data.numel() * self.data.element_size()


class Int8Store(Store):
    """The same in a quarter of fp32's memory: integers of -127 to 127, and one scale for each row, head and position."""

    def __init__(
        self, rows: int, heads: int, capacity: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(rows, heads, capacity, size, torch.int8, device)
        self.dtype = dtype
        self.scales = torch.empty(rows, heads, capacity, 1, dtype=torch.float32, device=device)

    def write(self, start: int, x_RKTE: Tensor) -> None:
        scales = x_RKTE.float().abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        super().write(start, (x_RKTE / scales).round().to(torch.int8))
        self.scales[:, :, start : start + x_RKTE.size(2)] = scales

    def read(self, start: int, end: int) -> Tensor:
        return (self.data[:, :, start:end] * self.scales[:, :, start:end]).to(self.dtype)

    def reorder(self, index_R: Tensor, end: int) -> None:
        super().reorder(index_R, end)
        self.scales[:, :, :end] = self.scales[:, :, :end].index_select(0, index_R)

    def grow(self, used: int, needed: int) -> None:
        super().grow(used, needed)
        self.scales = _grown(self.scales, used, needed, self.most)

    def memory_bytes(self) -> int:
        return super().memory_bytes() + self.scales.numel() * self.scales.element_size()


def _grown(old: Tensor, used: int, needed: int, most: int | None) -> Tensor:
    capacity = old.size(2)
    while capacity < needed:
        capacity *= 2
    capacity = max(needed, min(capacity, most or capacity))
    new = old.new_empty(old.size(0), old.size(1), capacity, old.size(3))
    new[:, :, :used] = old[:, :, :used]
    return new
