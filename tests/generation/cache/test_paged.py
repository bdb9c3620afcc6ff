"""Blocks: who uses one, and that what is written to some comes back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.errors import UsageError
from plainformer.generation.cache.cache import KeyValueCache
from plainformer.generation.cache.paged import BLOCK, BlockPool, blocks_for
from tests.support.step import make

CONFIG = make(windows=(None, 24)).config


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "keep", "give"]), st.integers(0, 4)), max_size=60))
def test_users_are_counted(moves: list[tuple[str, int]]) -> None:
    """Against a plain list of who uses what."""
    pool, users = BlockPool(CONFIG, 9), list[int]()
    for move, count in moves:
        if move == "take" and count <= pool.free:
            taken = pool.take(count)
            assert not set(taken) & set(users) and len(set(taken)) == count
            users += taken
        elif move == "keep":
            pool.keep(users[:count])
            users += users[:count]
        elif move == "give":
            pool.give(users[:count])
            users = users[count:]
        assert pool.free == pool.total - len(set(users))
        assert all(pool.users(number) == users.count(number) for number in range(9))


def test_what_is_refused() -> None:
    pool = BlockPool(CONFIG, 2)
    with pytest.raises(UsageError, match="3 blocks of keys and values asked for, and 2 of 2 are free"):
        pool.take(3)
    taken = pool.take(1)
    pool.give(taken)
    for number in (taken[0], -1, 2):
        with pytest.raises(UsageError, match="nobody's use"):
            pool.give([number])
        with pytest.raises(UsageError, match="nobody's use"):
            pool.keep([number])
    assert pool.free == 2
    assert pool.bytes_per_block == 4 * 2 * 2 * 4 * BLOCK * 6


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_what_is_written_comes_back(length: int) -> None:
    cache, generator = KeyValueCache(CONFIG, 1), torch.Generator().manual_seed(length)
    all_2KSE = torch.randn(2, 2, 4, length, 6, generator=generator)
    for start in range(0, length, BLOCK):
        for layer in range(2):
            cache.update(layer, *(x[None, :, start : start + BLOCK] for x in all_2KSE[layer]))
        cache.advance(min(BLOCK, length - start))
    pool = BlockPool(CONFIG, 6)
    pool.take(1)
    blocks = pool.take(blocks_for(length))[::-1]
    pool.write(blocks, cache)
    back = KeyValueCache(CONFIG, 1)
    back.restore(length, BLOCK, lambda layer, start, end: pool.read(blocks, layer, start, end))
    assert back.length == length
    for layer in range(2):
        for ours, theirs in zip(back.read(layer), cache.read(layer), strict=True):
            assert torch.equal(ours, theirs)
