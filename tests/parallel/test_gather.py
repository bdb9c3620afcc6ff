"""Who has what of a tensor, and who writes which file: arithmetic, without processes."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plainformer.config.local import chunk_rows
from plainformer.parallel.gather import Block, covering, files_of, rounds, slices


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 6),
    tp=st.integers(1, 4),
    dp=st.integers(1, 4),
    dim=st.integers(0, 1),
    copies=st.integers(1, 2),
)
def test_blocks_of_all_ranks_are_the_whole(rows: int, columns: int, tp: int, dp: int, dim: int, copies: int) -> None:
    blocks: dict[int, Block] = {}
    for copy in range(copies):
        for d in range(dp):
            for t in range(tp):
                ranges = [(0, rows), (0, columns)]
                ranges[dim] = chunk_rows((rows, columns)[dim], tp, t)
                first, last = ranges[0]
                start, stop = chunk_rows(last - first, dp, d)
                ranges[0] = (first + start, first + stop)
                blocks[(copy * dp + d) * tp + t] = tuple(ranges)
    for to in blocks:
        sources = covering((rows, columns), blocks, to)
        seen = [0] * (rows * columns)
        for block in sources.values():
            r, c = slices(block)
            for row in range(rows)[r]:
                for column in range(columns)[c]:
                    seen[row * columns + column] += 1
        assert set(seen) == {1}
        if prod(stop - start for start, stop in blocks[to]):
            assert sources[to] == blocks[to]  # what is here is not sent


def test_a_hole_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="4 numbers of 6"):
        covering((3, 2), {0: ((0, 1), (0, 2)), 1: ((2, 3), (0, 2))}, 0)


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=40), count=st.integers(1, 9), most=st.integers(1, 200))
def test_files_have_all_tensors_in_order_and_every_rank_writes_about_as_much(
    sizes: list[int], count: int, most: int
) -> None:
    named = {f"{number:02d}": size for number, size in enumerate(sizes)}
    files = files_of(named, count, most)
    assert [name for file in files for name in file.names] == list(named)
    assert [file.number for file in files] == list(range(1, len(files) + 1))
    assert all(file.names for file in files) and {file.writer for file in files} <= set(range(count))
    target = max(1, -(-sum(sizes) // max(count, -(-sum(sizes) // most))))
    for file in files:  # the middle of each tensor is in its file's range
        assert sum(named[name] for name in file.names) <= target + max(sizes)
    made = [file for together in rounds(files) for file in together]
    assert sorted(made, key=lambda file: file.number) == files
    assert all(len({file.writer for file in together}) == len(together) for together in rounds(files))


def test_one_rank_writes_one_file() -> None:
    assert [file.names for file in files_of({"a": 3, "b": 5}, 1, 100)] == [("a", "b")]
    assert [file.writer for file in files_of({"a": 5, "b": 5, "c": 5, "d": 5}, 2, 5)] == [0, 0, 1, 1]
