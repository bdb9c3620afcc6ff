"""How the processes of an attempt find one another, where a store may still have the keys of those that have died.

torchrun restarts processes and keeps its store. Its count of restarts cannot tell attempts apart: two agents may count
differently, since a change of members is a restart that is not counted. So the first rank invents a name for the attempt,
and answers each process that says hello: with a word that only this process knows, so that no old answer is one.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store

_PAUSE = 0.02  # seconds between two looks


def meet(store: Store, rank: int, count: int, timeout: timedelta) -> Store:
    """Return the part of a store that belongs to this attempt's processes alone; all of them call it.

    Raises:
        TimeoutError: the others have not come in time.
    """
    end = time.monotonic() + timeout.total_seconds()
    name = _name_for_others(store, count, end) if rank == 0 else _name_from_first(store, rank, end)
    return PrefixStore(f"plainformer/{name}", store)


def _name_for_others(store: Store, count: int, end: float) -> str:
    name = uuid.uuid4().hex
    answered: dict[int, bytes] = {}
    while store.add(f"plainformer/there/{name}", 0) < count - 1:
        for rank in range(1, count):
            key = f"plainformer/hello/{rank}"
            if not store.check([key]):
                continue
            word = store.get(key)
            if answered.get(rank) != word:  # it may be that of a process that has died; the living one will follow
                store.set(f"plainformer/welcome/{word.decode()}", name)
                answered[rank] = word
        _wait(end)
    store.set(f"plainformer/all/{name}", "there")
    return name


def _name_from_first(store: Store, rank: int, end: float) -> str:
    word = uuid.uuid4().hex
    store.set(f"plainformer/hello/{rank}", word)
    while not store.check([f"plainformer/welcome/{word}"]):
        _wait(end)
    name = store.get(f"plainformer/welcome/{word}").decode()
    store.add(f"plainformer/there/{name}", 1)
    while not store.check([f"plainformer/all/{name}"]):
        _wait(end)
    return name


def _wait(end: float) -> None:
    if time.monotonic() > end:
        raise TimeoutError("the other processes have not come")
    time.sleep(_PAUSE)
