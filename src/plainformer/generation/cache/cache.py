"""The key-value cache: what attention has already computed for earlier tokens.

Preallocated and grown by doubling, but not beyond what a generation can need. Layers with a sliding window keep only what
their window can still see. The rows that continue one prompt - beams, several samples - share its keys and values.
Cross-attention's keys are computed once.

Shapes: B prompts, R = B * copies rows, K key-value heads, T new positions, S positions in all, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from plainformer.config import ModelConfig
from plainformer.config.local import Local
from plainformer.config.values import check_choice, check_whole
from plainformer.errors import UsageError, plural
from plainformer.generation.cache.buffers import Device, Int8Store, Shape, Store
from plainformer.model.flow import Room

KINDS: dict[str, type[Store]] = {"full": Store, "int8": Int8Store}
# A windowed layer keeps this many positions more than its window, so that a few may be taken back (speculative decoding).
SLACK = 64


class KeyValueCache:
    """Keys and values of one decoder's layers.

    Memory: 2 * layers * R * K * capacity * E numbers; `capacity` doubles when it is full, give it to allocate once.
    Layers with a window of W hold at most 2 * (W - 1 + SLACK) positions.

    Args:
        config: the model's; it says how many layers and heads there are, and their windows.
        batch_size: rows.
        capacity: positions to allocate at the start.
        kind: "full", or "int8": a quarter of fp32's memory, with a rounding error of up to 1/254 of a vector's largest entry.
        local: what of the model is here, where several processes share it: only its layers and heads are kept. None: all.
    Attributes:
        rows: of all prompts. held: the numbers of the layers that are here. exact: whether keys are kept as they come.
        length: positions that have gone through; the model's forward pass adds to it.
        copies: rows for each prompt, see `share`.
        tokens: the ids that it holds, where one row's generation handed it out for the next turn.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int = 64,
        *,
        kind: str = "full",
        dtype: torch.dtype = torch.float32,
        device: Device = "cpu",
        local: Local | None = None,
    ) -> None:
        stack = config.decoder
        if stack is None:
            raise UsageError(f"{config.family} has no decoder, so there is nothing to cache", "call the model directly")
        check_whole("batch_size", batch_size)
        check_whole("capacity", capacity)
        check_choice("kind", kind, KINDS)
        self.length, self.copies, self.rows, self.exact = 0, 1, batch_size, kind == "full"
        self.tokens: list[int] = []
        self.num_layers = stack.num_layers
        self.held = range(stack.num_layers) if local is None else local.layers["decoder"]
        here = stack if local is None or local.model.decoder is None else local.model.decoder
        self.encoder: list[tuple[Tensor, Tensor] | None] = [None for _ in range(stack.num_layers)]
        shape = (batch_size, here.num_kv_heads, stack.head_dim)
        make = partial(KINDS[kind], dtype=dtype, device=device)
        windows = [stack.windows[layer] for layer in self.held]
        self.layers = [_Layer(make, shape, capacity, window) for window in windows]
        # What can be taken back is the same on all ranks: windows of layers elsewhere are counted, without a key or value.
        self.elsewhere = [_Layer(make, (batch_size, 0, 1), 1, window) for window in {*stack.windows} - {*windows}]

    def __repr__(self) -> str:
        return f"KeyValueCache({plural(self.length, 'position')}, {plural(self.rows, 'row')})"

    def expect(self, most: int | None) -> None:
        """Let buffers grow to no more than this many positions of each row's own, unless more are then written."""
        for layer in self.layers:
            layer.expect(most)

    def advance(self, count: int) -> None:
        """Count new positions, which all layers that are here have got."""
        self.length += count
        for layer in self.elsewhere:
            layer.count(count)

    def update(self, layer: int, k_RKTE: Tensor, v_RKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Add T new positions; return all that the layer still holds of these rows' own: (R, K, S', E), newest last."""
        if layer == self.held.start:
            self._check_fit(k_RKTE.size(0), k_RKTE.size(1), k_RKTE.size(3))
        return self.layers[layer - self.held.start].update(k_RKTE, v_RKTE)

    def room(self, layer: int, rows: int, count: int) -> Room | None:
        """Return room for `count` new positions of each row, which the caller writes; None where only `update` will do."""
        if layer == self.held.start:
            self._check_fit(rows, self.layers[0].shape[1], self.layers[0].shape[2])
        return self.layers[layer - self.held.start].room(count)

    def prefix(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return what all rows of a prompt share, (B, K, P, E), which comes before their own; None before `share`."""
        return self.layers[layer - self.held.start].shared

    def share(self, copies: int, room: int | None = None, most: int | None = None) -> None:
        """Let each row be continued by `copies` rows from here on, which share what it holds now.

        `room`: positions to allocate for each row's own; None: as many as were for the prompt. `most`: see `expect`.
        """
        if self.copies != 1:
            raise UsageError("this cache's rows share a prompt already", "make a new cache")
        self.copies = copies
        self.rows *= copies
        for layer in (*self.layers, *self.elsewhere):
            layer.share(copies, room)
        self.expect(most)

    def reorder(self, index_R: Tensor) -> None:
        """Make row r a copy of row index_R[r], which continues the same prompt. What is shared stays where it is."""
        for layer in self.layers:
            layer.reorder(index_R)

    def cross(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the encoder's keys and values for a layer, if they are kept: (B, K, S, E), one row for each prompt."""
        return self.encoder[layer]

    def store_cross(self, layer: int, k_BKSE: Tensor, v_BKSE: Tensor) -> None:
        """Keep the encoder's keys and values: they are the same at every step."""
        self.encoder[layer] = (k_BKSE, v_BKSE)

    def crop(self, length: int) -> None:
        """Forget all positions from `length` on."""
        check_whole("length", length, 0, self.length, fix="give no more positions than it holds")
        if not self.can_crop(length):
            raise UsageError(
                f"cannot crop a cache of {self.length} positions to {length}: what its windows or its rows' shared prompt "
                "need there is no longer kept apart",
                "begin with a new cache",
            )
        for layer in (*self.layers, *self.elsewhere):
            layer.held -= self.length - length
        self.length = length
        del self.tokens[length:]

    def reset(self) -> None:
        """Forget everything, and keep the buffers."""
        self.length, self.copies = 0, 1
        self.tokens.clear()
        self.encoder = [None for _ in self.encoder]
        for layer in (*self.layers, *self.elsewhere):
            layer.held, layer.shared, layer.prefix = 0, None, 0

    def can_crop(self, length: int) -> bool:
        """Whether the positions before `length` can still be attended to as they should be."""
        dropped = self.length - length
        return all(layer.can_drop(dropped, self.length) for layer in (*self.layers, *self.elsewhere))

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return what a layer holds of these rows' own: (R, K, S', E), newest last."""
        held = self.layers[layer - self.held.start]
        return held.keys.read(0, held.held), held.values.read(0, held.held)

    def restore(self, length: int, chunk: int, kept: Callable[[int, int, int], tuple[Tensor, Tensor]]) -> None:
        """Hold `length` positions, as if they had come `chunk` at a time: of windowed layers, what is then still there.

        `kept`: a layer, and two positions → the keys and values from the one up to the other, (R, K, S, E).
        """
        self.reset()
        for number, layer in zip(self.held, self.layers, strict=True):
            for first in range(0, length, chunk):
                layer.count(min(chunk, length - first))
            keys, values = kept(number, length - layer.held, length)
            layer.keys.write(0, keys)
            layer.values.write(0, values)
        self.length = length

    def memory_bytes(self) -> int:
        """Return how many bytes are allocated, cross-attention included."""
        return self._bytes(used=False)

    def used_bytes(self) -> int:
        """Return how many of them hold a key or a value."""
        return self._bytes(used=True)

    def _bytes(self, *, used: bool) -> int:
        kept = sum(t.numel() * t.element_size() for pair in self.encoder if pair is not None for t in pair)
        for shared in (t for layer in self.layers if layer.shared is not None for t in layer.shared):
            # It may be the beginning of a buffer that is all kept.
            kept += shared.numel() * shared.element_size() if used else shared.untyped_storage().nbytes()
        stores = sum(
            store.memory_bytes(layer.held if used else None)
            for layer in self.layers
            for store in (layer.keys, layer.values)
        )
        return stores + kept

    def _check_fit(self, *wanted: int) -> None:
        if wanted != self.layers[0].shape:
            rows, heads, size = self.layers[0].shape
            raise UsageError(
                f"a cache of {rows} rows with {heads} heads of {size} channels does not fit {wanted[0]} rows with "
                f"{wanted[1]} heads of {wanted[2]}",
                "make one with this model's config and the number of rows of its input",
            )


class _Layer:
    """One layer's keys and values: `held` own positions of each row, after what is shared.

    Attributes:
        limit: positions beyond which a window lets the oldest go; None: never.
    """

    def __init__(self, make: partial[Store], shape: Shape, capacity: int, window: int | None) -> None:
        self.make, self.window = make, window
        self.kept = None if window is None else window - 1 + SLACK
        self.limit = None if self.kept is None else 2 * self.kept
        self.capacity = capacity if self.limit is None else min(capacity, self.limit)
        self.shared: tuple[Tensor, Tensor] | None = None
        self.prefix = 0  # positions that are shared
        self._allocate(shape)

    def _allocate(self, shape: Shape) -> None:
        self.shape, self.held = shape, 0
        self.keys, self.values = (self.make(shape, self.capacity) for _ in range(2))
        self.expect(None)

    def expect(self, most: int | None) -> None:
        self.keys.bounds = self.values.bounds = tuple(bound for bound in (self.limit, most) if bound is not None)

    def update(self, k_RKTE: Tensor, v_RKTE: Tensor) -> tuple[Tensor, Tensor]:
        end = self.held + k_RKTE.size(2)
        if self.kept is not None and end > 2 * self.kept:
            return self._slide(k_RKTE, v_RKTE, self.kept)
        self.keys.write(self.held, k_RKTE)
        self.values.write(self.held, v_RKTE)
        self.held = end
        return self.keys.read(0, end), self.values.read(0, end)

    def room(self, count: int) -> Room | None:
        if type(self.keys) is not Store:
            return None
        if self.kept is not None and self.held + count > 2 * self.kept:
            self._let_go(self.kept - count)
        end = self.held + count
        for store in (self.keys, self.values):
            if end > store.capacity:
                store.grow(self.held, end)
        self.held = end
        return Room(self.keys.parts[0], self.values.parts[0], end, self.shared)

    def _slide(self, k_RKTE: Tensor, v_RKTE: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Move what the window may still see to the front: once in `kept` positions, not at each."""
        first = max(self.held - kept, 0)
        seen = []
        for store, new in ((self.keys, k_RKTE), (self.values, v_RKTE)):
            joined = torch.cat((store.read(first, self.held), new), dim=2)
            store.write(0, joined[:, :, -kept:])
            seen.append(joined)
        self.held = min(seen[0].size(2), kept)
        return seen[0], seen[1]

    def _let_go(self, kept: int) -> None:
        """Forget all but the newest positions; what `_slide` does before new ones have come."""
        for store in (self.keys, self.values):
            store.write(0, store.read(self.held - kept, self.held).clone())
        self.held = kept

    def count(self, new: int) -> None:
        """Count new positions as `update` does, of a layer that is elsewhere or whose positions come otherwise."""
        end = self.held + new
        slides = self.kept is not None and end > 2 * self.kept
        self.held = min(min(self.held, self.kept) + new, self.kept) if slides and self.kept is not None else end

    def share(self, copies: int, room: int | None) -> None:
        self.shared = self.keys.read(0, self.held), self.values.read(0, self.held)
        self.prefix = self.held
        rows, heads, size = self.shape
        if room is not None:
            self.capacity = room if self.limit is None else min(room, self.limit)
        self._allocate((rows * copies, heads, size))

    def reorder(self, index_R: Tensor) -> None:
        if self.held:
            self.keys.reorder(index_R, self.held)
            self.values.reorder(index_R, self.held)

    def can_drop(self, count: int, length: int) -> bool:
        left = self.held - count
        if left < 0 or self.window is None:
            return left >= 0
        return left + self.prefix >= min(self.window - 1, length - count)
