"""Ranks know their places and groups; a failing or hanging rank fails its test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from plainformer.config.layout import Layout
from plainformer.errors import UsageError
from plainformer.parallel.mesh import Mesh, finish, start
from tests.support.ranks import TIMEOUT, run_ranks

LAYOUTS = [Layout(dp=4), Layout(tp=4), Layout(pp=4), Layout(dp=2, tp=2), Layout(pp=2, tp=2), Layout(pp=2, dp=2)]


def _peers(rank: int) -> list[dict[str, list[int]]]:
    """Return the ranks in each group of each layout, found by talking."""
    found = []
    for layout in LAYOUTS:
        mesh = start(layout)
        assert (mesh.rank, mesh.is_first, mesh.world) == (rank, rank == 0, dist.group.WORLD)
        groups = {"tp": mesh.tp, "dp": mesh.dp, "pp": mesh.pp}
        found.append({name: _told(rank, group) for name, group in groups.items() if group is not None})
    with pytest.raises(UsageError, match="are 3, and 4 processes run"):
        start(Layout(tp=3))
    finish()
    finish()  # nothing is left to do
    return found


def _told(rank: int, group: dist.ProcessGroup) -> list[int]:
    told = [torch.zeros((), dtype=torch.long) for _ in range(dist.get_world_size(group))]
    dist.all_gather(told, torch.tensor(rank), group=group)
    return [int(other) for other in told]


def test_groups_differ_along_one_axis() -> None:
    for rank, found in enumerate(run_ranks(_peers, 4)):
        for layout, groups in zip(LAYOUTS, found, strict=True):
            place = layout.place(rank)
            for axis in ("tp", "dp", "pp"):
                along = [place._replace(**{axis: index}) for index in range(getattr(layout, axis))]
                assert groups.get(axis, [rank]) == [layout.rank(other) for other in along], (layout, axis)


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert start() == Mesh(Layout(), 0, torch.device("cpu"))
    assert not dist.is_initialized()


PROGRAM = """
import atexit
import torch.distributed as dist
atexit.register(lambda: print(rank, "is still in" if dist.is_initialized() else "has left", flush=True))
from plainformer.parallel.mesh import start
from plainformer.parallel.sync import Ranks
rank = start().rank
assert Ranks(start()).everywhere(rank) == [0, 1]
"""


def test_a_program_that_says_no_goodbye_leaves_before_python_ends() -> None:
    """Threads of a group that outlives the interpreter end the process with an abort, now and then."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    known = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env={**known, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        assert process.communicate(timeout=TIMEOUT)[0] == f"{rank} has left\n"
        assert process.returncode == 0


def _fails(rank: int) -> None:
    if rank == 1:
        raise ValueError("rank 1 has had enough")
    dist.barrier()


def _hangs(rank: int) -> None:
    if rank == 1:
        time.sleep(60)


def test_a_failing_rank_fails_the_test() -> None:
    with pytest.raises(AssertionError, match=r"the first, rank 1:[\s\S]*ValueError: rank 1 has had enough"):
        run_ranks(_fails, 2)


def test_a_hanging_rank_is_killed() -> None:
    with pytest.raises(AssertionError, match=r"after 6 s ranks .*1\] of 2 still run"):
        run_ranks(_hangs, 2, timeout=6)
