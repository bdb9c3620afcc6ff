"""Where a cache keeps one layer's keys or values: a preallocated buffer of positions, as it is or in eight bits.

Shapes: R rows, K key-value heads, T new positions, E channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

Shape = tuple[int, int, int]  # R, K, E
Device = torch.device | str


class Store:
    """A buffer (R, K, capacity, E), written in order and grown by doubling, so it is copied log2(length) times at most.

    Attributes:
        bounds: numbers of positions that it does not grow beyond, unless more than these are written.
        parts: the tensors (R, K, capacity, ...) that hold the positions; the first has their numbers.
    """

    def __init__(self, shape: Shape, capacity: int, dtype: torch.dtype, device: Device) -> None:
        rows, heads, size = shape
        self.bounds: tuple[int, ...] = ()
        self.parts = [torch.empty(rows, heads, capacity, size, dtype=dtype, device=device)]

    @property
    def capacity(self) -> int:
        return self.parts[0].size(2)

    def write(self, start: int, x_RKTE: Tensor) -> None:
        """Put T positions at `start`; what was there before is replaced."""
        end = start + x_RKTE.size(2)
        if end > self.capacity:
            self.grow(start, end)
        self.parts[0][:, :, start:end] = x_RKTE

    def read(self, start: int, end: int) -> Tensor:
        """Return positions, as a view where nothing has to be computed."""
        return self.parts[0][:, :, start:end]

    def reorder(self, index_R: Tensor, end: int) -> None:
        """Make row r a copy of row index_R[r], for the positions up to `end`."""
        for part in self.parts:
            part[:, :, :end] = part[:, :, :end].index_select(0, index_R)

    def grow(self, used: int, needed: int) -> None:
        """Make room for `needed` positions, of which `used` are kept."""
        capacity = self.capacity
        while capacity < needed:
            capacity *= 2
        capacity = min([capacity, *(bound for bound in self.bounds if bound >= needed)])
        for i, old in enumerate(self.parts):
            self.parts[i] = old.new_empty(old.size(0), old.size(1), capacity, old.size(3))
            self.parts[i][:, :, :used] = old[:, :, :used]

    def memory_bytes(self, positions: int | None = None) -> int:
        """Return the bytes of this many positions; None: of all that are allocated."""
        count = self.capacity if positions is None else positions
        return sum(part[:, :, :1].numel() * part.element_size() for part in self.parts) * count


class Int8Store(Store):
    """The same in a quarter of fp32's memory: integers of -127 to 127, and one scale for each row, head and position."""

    def __init__(self, shape: Shape, capacity: int, dtype: torch.dtype, device: Device) -> None:
        super().__init__(shape, capacity, torch.int8, device)
        self.dtype = dtype
        self.parts.append(torch.empty(*shape[:2], capacity, 1, dtype=torch.float32, device=device))

    def write(self, start: int, x_RKTE: Tensor) -> None:
        scales = x_RKTE.float().abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        super().write(start, (x_RKTE / scales).round().to(torch.int8))
        self.parts[1][:, :, start : start + x_RKTE.size(2)] = scales

    def read(self, start: int, end: int) -> Tensor:
        numbers, scales = (part[:, :, start:end] for part in self.parts)
        return (numbers * scales).to(self.dtype)
