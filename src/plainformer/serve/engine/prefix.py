"""What earlier requests have read, kept for later ones that begin alike: blocks of 64 tokens by all tokens up to their end.

Those used longest ago go first. A block is never used without those before it, which therefore always stay longer.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from plainformer.generation.cache.paged import BLOCK, BlockPool


class PrefixCache:
    """Blocks of a pool by the tokens up to their end; the cache is one user of each.

    Args:
        left: tokens of a prompt that are always run. Its last one must be, and fewer than these would be run in another way than
            with those before them, which has other last bits.
    Attributes:
        kept: key → block, those used longest ago first.
    """

    def __init__(self, pool: BlockPool, left: int = 2) -> None:
        self.pool, self.left = pool, left
        self.kept: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def idle(self) -> int:
        """How many of the blocks no request uses."""
        return sum(self.pool.users(block) == 1 for block in self.kept.values())

    def find(self, ids: Sequence[int]) -> list[int]:
        """Return the blocks that hold the beginning of a prompt, of which the caller becomes one more user."""
        keys = _keys(ids, max(0, len(ids) - self.left) // BLOCK)
        known = next((count for count, key in enumerate(keys) if key not in self.kept), len(keys))
        self._used(keys[:known])
        found = [self.kept[key] for key in keys[:known]]
        self.pool.keep(found)
        return found

    def add(self, ids: Sequence[int], blocks: Sequence[int]) -> None:
        """Keep the full blocks of a row, given its tokens, that are not kept yet."""
        keys = _keys(ids, len(ids) // BLOCK)
        for key, block in zip(keys, blocks, strict=False):
            if key not in self.kept:
                self.pool.keep([block])
                self.kept[key] = block
        self._used(keys)

    def evict(self, count: int) -> None:
        """Let go of `count` blocks that no request uses, or of as many as there are."""
        idle = [key for key, block in self.kept.items() if self.pool.users(block) == 1]
        for key in idle[:count]:
            self.pool.give([self.kept.pop(key)])

    def _used(self, keys: Sequence[bytes]) -> None:
        for key in reversed(keys):
            self.kept.move_to_end(key)


def _keys(ids: Sequence[int], count: int) -> list[bytes]:
    """Return the keys of the first `count` blocks: 128 bits of a hash of all tokens up to each block's end."""
    keys, before = [], hashlib.blake2b(digest_size=16)
    for index in range(count):
        before.update(array("q", ids[index * BLOCK : (index + 1) * BLOCK]).tobytes())
        keys.append(before.copy().digest())
    return keys
