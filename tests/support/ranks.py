"""Several processes that work together, in one test: `run_ranks(function, world, *args)`.

`function(rank, *args)` is a module's own, and runs in a process of its own for each rank, one thread each, with torchrun's
variables and the default process group ready (gloo). It returns what is found; asserts in a rank work too.

Ranks are forked from a server that has imported torch and the library and done nothing else, so that a launch costs tenths
of a second and not the seconds of an import for each rank, and nothing of one rank is in another. What they have in common
is the order of their sets: where ranks must agree on an order, the runs by torchrun tell (tests/training/test_survival.py).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

PRELOADED = [
    "pytest",
    "torch._dynamo",  # which optimizers import when they first take a step
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "numba",  # and what its compiler imports when it first compiles; what is not there is left out
    "numba.cpython.listobj",
    "numba.cpython.randomimpl",
    "numba.cpython.setobj",
    "numba.cpython.unicode",
    "numba.experimental.function_type",
    "numba.misc.cffiimpl",
    "safetensors.torch",
    "plainformer.evaluation",
    "plainformer.generation.search",
    "plainformer.training",
    "tests.support.ranks",
    "tests.support.staged",
    "tests.support.tensor_traps",
    "tests.support.rank_of_run",
    "numpy.ma",
    "tokenizers",
    "tests.support.preloaded",  # the last, for what it does at the end
]
TIMEOUT = 300.0  # for a busy machine: what hangs has failed much later than what is slow


def run_ranks(function: Callable[..., Any], world: int, *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """Return what each rank returned, pickled on the way.

    Fails with the traceback of the rank that failed first. Processes that hang are killed after `timeout` seconds, and so are
    those that wait for one that has failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = pickle.dumps((function, args))  # here, or tensors would travel as open files
        given = (world, call, folder, timeout, dict(os.environ))
        ranks = [_server().Process(target=_rank, args=(rank, *given), daemon=True) for rank in range(world)]
        for process in ranks:
            process.start()
        try:
            _wait(ranks, Path(folder), timeout)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        return [pickle.loads(Path(folder, f"{rank}.result").read_bytes()) for rank in range(world)]


@cache
def _server() -> ForkServerContext:
    """Start what ranks are forked from: a process of one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with mock.patch.dict(os.environ, {**one, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}):
        forkserver.ensure_running()
    return context


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


def _rank(rank: int, world: int, call: bytes, folder: str, timeout: float, environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    try:
        store = dist.FileStore(str(Path(folder, "store")), world)  # type: ignore[attr-defined]
        limit = timedelta(seconds=timeout)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
        function, args = pickle.loads(call)
        result = pickle.dumps(function(rank, *args))
    except BaseException:
        Path(folder, f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)  # no farewell: the others may be waiting for this rank
    Path(folder, f"{rank}.result").write_bytes(result)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
