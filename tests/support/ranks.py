"""Several processes that work together, in one test: `run_ranks(function, world, *args)`.

`function(rank, *args)` is a module's own, and runs in a fresh process for each rank, one thread each, with torchrun's
variables and the default process group ready (gloo). Launching costs seconds: let one launch walk many cases, and return
what is found; asserts in a rank work too.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

TIMEOUT = 300.0  # for a busy machine: what hangs has failed much later than what is slow


def run_ranks(function: Callable[..., Any], world: int, *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """Return what each rank returned, pickled on the way.

    Fails with the traceback of the rank that failed first. Processes that hang are killed after `timeout` seconds, and so are
    those that wait for one that has failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        given = (function, world, args, folder, timeout)
        ranks = [context.Process(target=_rank, args=(rank, *given), daemon=True) for rank in range(world)]
        for process in ranks:
            process.start()
        try:
            _wait(ranks, Path(folder), timeout)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        return [pickle.loads(Path(folder, f"{rank}.result").read_bytes()) for rank in range(world)]


def _wait(ranks: list[Any], folder: Path, timeout: float) -> None:
    end = time.monotonic() + timeout
    while any(process.exitcode is None for process in ranks):
        if any(process.exitcode for process in ranks):
            break
        if time.monotonic() > end:
            hung = [rank for rank, process in enumerate(ranks) if process.exitcode is None]
            raise AssertionError(f"after {timeout:g} s ranks {hung} of {len(ranks)} still run{_first_error(folder)}")
        time.sleep(0.02)
    failed = {rank: process.exitcode for rank, process in enumerate(ranks) if process.exitcode}
    if failed:
        raise AssertionError(f"ranks failed, with exit codes {failed}{_first_error(folder)}")


def _first_error(folder: Path) -> str:
    found = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    return f"; the first, rank {found[0].stem}:\n{found[0].read_text()}" if found else ""


def _rank(
    rank: int, function: Callable[..., Any], world: int, args: tuple[Any, ...], folder: str, timeout: float
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    try:
        store = dist.FileStore(str(Path(folder, "store")), world)  # type: ignore[attr-defined]
        limit = timedelta(seconds=timeout)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
        result = pickle.dumps(function(rank, *args))
    except BaseException:
        Path(folder, f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)  # no farewell: the others may be waiting for this rank
    Path(folder, f"{rank}.result").write_bytes(result)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
