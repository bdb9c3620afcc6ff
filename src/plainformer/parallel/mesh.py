"""Processes that work together, and the groups in which they talk: one for each axis of a layout.

torchrun starts them, and says by its environment variables (RANK, WORLD_SIZE, LOCAL_RANK, TORCHELASTIC_...) who is who. One
process that was started by hand is a mesh of itself, without any group.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from plainformer.config.layout import Layout, Place
from plainformer.config.parallel import processes
from plainformer.errors import UsageError, opt, plural
from plainformer.parallel.meeting import meet

TIMEOUT = 300.0  # seconds: a peer that does not answer for longer has failed, and a restart helps


@dataclass(frozen=True)
class Mesh:
    """Where this process is among the others.

    Attributes:
        layout: of all processes. rank: of this one. place: that along each axis.
        device: what this process computes on.
        world, tp, dp, pp: process groups: all ranks, and those that differ from this one along one axis alone; None where
            that is this one only.
    """

    layout: Layout
    rank: int
    device: torch.device
    world: dist.ProcessGroup | None = None
    tp: dist.ProcessGroup | None = None
    dp: dist.ProcessGroup | None = None
    pp: dist.ProcessGroup | None = None

    @property
    def place(self) -> Place:
        """Return where this rank is along each axis."""
        return self.layout.place(self.rank)

    @property
    def is_first(self) -> bool:
        """Return whether this rank speaks, and writes, for all."""
        return self.rank == 0


def start(
    layout: Layout | None = None,
    *,
    device: torch.device | str = "cpu",
    backend: str | None = None,
    timeout: float = TIMEOUT,
) -> Mesh:
    """Join the other processes; a process group that exists already is used.

    Args:
        layout: None: data parallel over all processes.
        device: "cpu", or "cuda": the GPU of this process's number on its machine.
        backend: torch.distributed's; None: gloo, and nccl for what is on a GPU.
        timeout: seconds that an answer of another process may take.
    Raises:
        UsageError: the layout is for another number of processes.
    """
    count = dist.get_world_size() if dist.is_initialized() else (processes() or 1)
    layout = layout if layout is not None else Layout(dp=count)
    if layout.world != count:
        what = f"{opt('tp', layout.tp)} x {opt('pp', layout.pp)} x {layout.dp} data-parallel ranks are {layout.world}"
        fix = f"torchrun --nproc-per-node {layout.world}, or a layout for {count}"
        raise UsageError(f"{what}, and {plural(count, 'process', 'processes')} run", fix)
    device = _own_device(torch.device(device))
    if count == 1:
        return Mesh(layout, 0, device)
    if not dist.is_initialized():
        _join(backend or ("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"), timedelta(seconds=timeout))
    rank = dist.get_rank()
    groups = {
        name: _group_along(layout, rank, without, timedelta(seconds=timeout))
        for name, without in (
            ("tp", lambda place: (place.pp, place.dp)),
            ("dp", lambda place: (place.pp, place.tp)),
            ("pp", lambda place: (place.dp, place.tp)),
        )
    }
    return Mesh(layout, rank, device, dist.group.WORLD, **groups)


def finish() -> None:
    """Leave the other processes; does nothing where there are none."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _own_device(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    if device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _join(backend: str, timeout: timedelta) -> None:
    """Make the default process group, over the store that torchrun has named.

    Each attempt has keys of its own: the last one's processes may be gone, and their addresses with them.
    """
    store, rank, count = next(rendezvous("env://", timeout=timeout))
    store = meet(store, rank, count, timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
    atexit.register(_at_exit)


def _at_exit() -> None:
    """Leave the others while Python still lives: threads of a group that outlives it may end the process with an abort.

    After an error that nobody has caught, the others may be gone: nobody waits for them.
    """
    if getattr(sys, "last_value", None) is None:
        finish()


def _group_along(
    layout: Layout, rank: int, without: Callable[[Place], Hashable], timeout: timedelta
) -> dist.ProcessGroup | None:
    """Return the group of the ranks that are equal in all but one axis; every rank makes all groups, in the same order."""
    members: dict[Hashable, list[int]] = {}
    for other in range(layout.world):
        members.setdefault(without(layout.place(other)), []).append(other)
    own = None
    for ranks in members.values() if len(members) < layout.world else ():
        group = dist.new_group(ranks, timeout=timeout)
        own = group if rank in ranks else own
    return own
