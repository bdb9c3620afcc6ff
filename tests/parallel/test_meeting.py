"""Processes of one attempt find one another, whatever those before have left in the store."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

from plainformer.parallel.meeting import meet

LIMIT = timedelta(seconds=20)


def met(store: dist.Store, count: int, missing: int = -1, limit: timedelta = LIMIT) -> list[str]:  # type: ignore[name-defined]
    """What each rank finds at a key that the first one sets, of an attempt in which one rank may be missing."""
    found = [""] * count

    def come(rank: int) -> None:
        try:
            mine = meet(store, rank, count, limit)
            if rank == 0:
                mine.set("who", f"attempt of {count}")
            found[rank] = mine.get("who").decode()
        except TimeoutError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(count) if rank != missing]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_attempts_of_any_size_one_after_the_other() -> None:
    store = HashStore()
    for count in (4, 4, 2, 3, 4):
        assert met(store, count) == [f"attempt of {count}"] * count


@pytest.mark.parametrize("missing", [0, 1])
def test_a_process_that_does_not_come_is_not_waited_for_for_ever(missing: int) -> None:
    store = HashStore()
    found = met(store, 3, missing, timedelta(seconds=0.3))
    assert found[2] == "the other processes have not come"
    assert met(store, 3) == ["attempt of 3"] * 3  # and what is left of it disturbs nobody
