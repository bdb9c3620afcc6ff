"""Bytes of a key-value cache, as `generation/cache` allocates them, in every mode of generation. No torch.

One layer's keys are a buffer (R, K, capacity, E), and so are its values. Its capacity follows the rules of `Session` (room
for the prompt, and for at most `FIRST_ROOM` tokens more), of `Store` (doubled when it is full, but not beyond what can be
needed), and of the layer's window.

Shapes: B prompts, R = B * copies rows, K key-value heads, E channels of a head, S positions of the encoder's output.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from plainformer.config import StackConfig

# As in generation, whose tests compare them with these: positions that a windowed layer keeps beyond its window, and the
# most tokens that a session makes room for before they come.
SLACK, FIRST_ROOM = 64, 256
INT8_SCALE = 4  # bytes: one fp32 number for each row, head and position


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """How one generation uses its cache.

    Attributes:
        prompts: B. prompt: tokens of each, padding included.
        new: tokens that may follow: the budget.
        steps: tokens that are run after the prompt; None: `new` - 1, since the last token picked is not run (contrastive
            search runs it too).
        copies: rows of each prompt: beams, samples, or contrastive search's candidates.
        kind: "full", or "int8". number: bytes of a number of the model's dtype.
        encoder: positions of the encoder's output that a decoder attends to.
        chunk: positions of the prompt that are run at a time; None for all.
    """

    prompts: int = 1
    prompt: int = 512
    new: int = 512
    steps: int | None = None
    copies: int = 1
    kind: str = "full"
    number: int = 4
    encoder: int = 0
    chunk: int | None = None

    @property
    def run(self) -> int:
        """Return how many tokens are run after the prompt."""
        return max(self.new - 1, 0) if self.steps is None else self.steps


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of a cache.

    Attributes:
        prefilled: after the prompt. full: at the end, as `KeyValueCache.memory_bytes()` says.
        growth: of the old buffer, which is still there while a larger one is filled from it.
        prefill_read, read: of one layer's keys and values as attention reads them, where these are not the buffers
            themselves: an int8 cache's made wide again, a window's at the moment when the oldest are let go.
        reorder: of the copy by which beams change places.
    """

    prefilled: int
    full: int
    growth: int
    prefill_read: int
    read: int
    reorder: int


def cache_bytes(stack: StackConfig, use: CacheUse, layers: range | None = None) -> CacheBytes:
    """Return the bytes of a decoder's cache; `layers`: only of these, a stage's of a pipeline."""
    windows = stack.windows if layers is None else [stack.windows[index] for index in layers]
    counts = Counter(windows)
    ran = {window: _Layer(stack, use, window) for window in counts}
    layered = [(ran[window], count) for window, count in counts.items()]
    cross = 2 * use.prompts * stack.num_heads * stack.head_dim * use.encoder * use.number * len(windows)
    cross = cross if stack.cross_attention else 0
    prefilled = sum(layer.prefilled * count for layer, count in layered) + cross
    full = sum(layer.bytes * count for layer, count in layered) + cross
    return CacheBytes(
        prefilled=prefilled,
        full=full,
        growth=max((layer.growth for layer, _ in layered), default=0),
        prefill_read=max((layer.prefill_read for layer, _ in layered), default=0),
        read=max((layer.read for layer, _ in layered), default=0),
        reorder=max((layer.reorder for layer, _ in layered), default=0),
    )


class _Layer:
    """One layer, run through a generation; mirrors `generation/cache`: its `_Layer` and `Store`, in numbers alone.

    Attributes:
        held: positions of each row's own. capacity: of its buffers. shared: bytes of what the rows of a prompt share.
        limit: positions beyond which a window lets the oldest go. needed: the most positions of its own; it grows to no more.
    """

    def __init__(self, stack: StackConfig, use: CacheUse, window: int | None) -> None:
        self.use, self.heads, self.size = use, stack.num_kv_heads, stack.head_dim
        self.kept = None if window is None else window - 1 + SLACK
        self.limit = None if self.kept is None else 2 * self.kept
        room = min(use.new, FIRST_ROOM)
        self.rows, self.held, self.shared, self.growth, self.read = use.prompts, 0, 0, 0, 0
        self.needed = use.prompt + use.new
        self.capacity = self._bounded(use.prompt + (room if use.copies == 1 else 0))
        self._prefill()
        self.prefilled, self.prefill_read = self.bytes, self.read
        if use.copies > 1:
            self._share(use.copies, room)
        self.read = 0
        self._decode(use.run)
        copied = self._store(self.held, number=1 if use.kind == "int8" else use.number)
        self.reorder = copied if use.copies > 1 else 0

    @property
    def bytes(self) -> int:
        return 2 * self._both_parts(self.capacity) + self.shared

    def _bounded(self, capacity: int) -> int:
        return capacity if self.limit is None else min(capacity, self.limit)

    def _store(self, positions: int, number: int) -> int:
        return self.rows * self.heads * positions * self.size * number

    def _scales(self, positions: int) -> int:
        return self.rows * self.heads * positions * INT8_SCALE if self.use.kind == "int8" else 0

    def _both_parts(self, positions: int) -> int:
        """Return the bytes of one buffer: numbers, and an int8 one's scales."""
        return self._store(positions, 1 if self.use.kind == "int8" else self.use.number) + self._scales(positions)

    def _prefill(self) -> None:
        chunk = self.use.chunk or self.use.prompt
        for begin in range(0, self.use.prompt, chunk):
            self._fill(min(chunk, self.use.prompt - begin))

    def _fill(self, count: int) -> None:
        """Add positions in one call; `_Layer.update`."""
        end = self.held + count
        if self.kept is not None and end > 2 * self.kept:
            joined = min(self.held, self.kept) + count
            self._reads(joined, always=True)
            self.held = min(joined, self.kept)
            self._grow(self.held)
        else:
            self._grow(end)
            self.held = end
            self._reads(end)

    def _decode(self, steps: int) -> None:
        """Add positions one at a time, in one step of arithmetic."""
        if self.kept is None or self.held + steps <= 2 * self.kept:
            self._grow_by_ones(self.held + steps)
            self.held += steps
            self._reads(self.held)
            return
        self._grow_by_ones(2 * self.kept)
        after = steps - (2 * self.kept - self.held)  # each `kept` + 1 steps, one lets the oldest go
        self.held = self.kept + (after - 1) % (self.kept + 1)
        self._reads(2 * self.kept)
        self._reads(self.kept + 1, always=True)

    def _grow_by_ones(self, needed: int) -> None:
        while self.capacity < needed:
            self._grow(self.capacity + 1)

    def _grow(self, needed: int) -> None:
        """Make room as `Store.grow` does, and remember what was alive at once: one part of a buffer, old and new."""
        if needed <= self.capacity:
            return
        old, capacity = self.capacity, self.capacity
        while capacity < needed:
            capacity *= 2
        self.capacity = self._bounded(min(capacity, self.needed))
        numbers = self._both_parts(old) - self._scales(old)
        added = self._scales(self.capacity) - self._scales(old)
        self.growth = max(numbers - added, self._scales(old))

    def _reads(self, positions: int, always: bool = False) -> None:
        """Count what attention reads of keys and values, where it is a copy; of eight bits, also what the copy is made of."""
        if always or self.use.kind == "int8":
            copies = 3 if self.use.kind == "int8" else 2
            self.read = max(self.read, copies * self._store(positions, self.use.number))

    def _share(self, copies: int, room: int) -> None:
        """Let rows share what is held; an int8 cache makes it wide, since all steps read it."""
        wide = self.use.kind == "int8"
        self.shared = 2 * (self._store(self.held, self.use.number) if wide else self._both_parts(self.capacity))
        self.rows, self.held, self.needed = self.rows * copies, 0, self.use.new
        self.capacity = self._bounded(max(room, 1))
