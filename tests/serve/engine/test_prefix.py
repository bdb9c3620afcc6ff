"""What is kept of earlier prompts: found by equal beginnings alone, given back when memory is short, never in use by nobody."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.generation.cache.paged import BLOCK, BlockPool
from plainformer.serve.engine.prefix import PrefixCache
from tests.support import models as make

CONFIG = make.make("llama").config


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(4, 14))
def test_kept_blocks_against_a_dictionary(chance: random.Random, blocks: int) -> None:
    pool = BlockPool(CONFIG, blocks)
    cache = PrefixCache(pool)
    held: list[list[int]] = []  # blocks of requests that run
    written: dict[int, tuple[int, ...]] = {}  # block → all tokens up to its end
    for _ in range(40):
        if held and chance.random() < 0.5:
            pool.give(held.pop(chance.randrange(len(held))))
        ids = [chance.randrange(2)] * BLOCK + [chance.randrange(2)] * BLOCK + [7] * chance.choice([1, 2, BLOCK])
        found = cache.find(ids)
        for place, block in enumerate(found):
            assert written[block] == tuple(ids[: (place + 1) * BLOCK])
        assert len(found) * BLOCK <= len(ids) - 2
        full = len(ids) // BLOCK
        missing = full - len(found)
        if pool.free < missing:
            cache.evict(missing - pool.free)
        if pool.free < missing:
            pool.give(found)
            continue
        own = [*found, *pool.take(missing)]
        held.append(own)
        cache.add(ids, own)
        for place in range(len(found), full):
            written[own[place]] = tuple(ids[: (place + 1) * BLOCK])
        used = {block for row in held for block in row} | set(cache.kept.values())
        assert pool.total - pool.free == len(used)
        assert cache.idle == len(set(cache.kept.values()) - {block for row in held for block in row})
    for row in held:
        pool.give(row)
    cache.evict(len(cache))
    assert pool.free == pool.total and not len(cache)


def test_a_beginning_outlives_what_follows_it() -> None:
    pool = BlockPool(CONFIG, 6)
    cache = PrefixCache(pool)
    long, other = list(range(3 * BLOCK)), [1] * 3 * BLOCK
    for ids in (long, other):
        blocks = pool.take(3)
        cache.add(ids, blocks)
        pool.give(blocks)
    pool.give(cache.find(long))  # used again: the other one goes first
    cache.evict(2)  # the last block of each, which nobody has used again
    assert len(cache.find([*other, 1, 1])) == 2
    cache.evict(1)
    assert len(cache.find([*long, 1, 1])) == 1, "its end goes before its beginning"
