"""What a run changes of the process, and gives back: threads, deterministic kernels, random numbers, Ctrl-C."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from plainformer.config.parallel import is_several
from plainformer.config.training import TrainConfig
from plainformer.errors import UsageError, opt, plural
from plainformer.model.fast.threads import settle

_NOT_REPEATABLE = ("ctc",)  # on a GPU: the gradient of the CTC loss has no kernel that gives the same bits each time


@contextmanager
def machine(config: TrainConfig) -> Iterator[None]:
    """Within, use the threads that were asked for, and kernels that give the same bits each time."""
    check_device(config.device)
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic  # a module whose attribute is a property, which mypy does not see
    filled = deterministic.fill_uninitialized_memory
    on_gpu = [torch.device(config.device)] if config.device != "cpu" else []
    try:
        settle(config.threads)
        if on_gpu:  # stays: without it, cuBLAS's sums may differ
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        deterministic.fill_uninitialized_memory = False  # nobody reads it
        # Attention on a GPU is repeatable only where what is not would be refused.
        refuse = bool(on_gpu) and config.objective not in _NOT_REPEATABLE
        torch.use_deterministic_algorithms(True, warn_only=not refuse)
        with torch.random.fork_rng(on_gpu, enabled=True):
            yield
    finally:
        gc.unfreeze()  # which the loop freezes
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        deterministic.fill_uninitialized_memory = filled


def check_device(device: str) -> None:
    """Refuse a GPU that is not there."""
    if device == "cpu":
        return
    count = torch.cuda.device_count()
    if int(device.partition(":")[2] or 0) >= count:
        what = f"{opt('device', device)}: torch sees {plural(count, 'GPU')} here"
        fix = f"give one from cuda:0 to cuda:{count - 1}" if count else f"give {opt('device', 'cpu')}"
        raise UsageError(what, f"{fix}, or see that torch is built for the GPU" if not count else fix)


@contextmanager
def until_interrupted() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed. A second one does what it did before.

    Of several processes, SIGTERM too: so do schedulers, and torchrun, ask for an end; several times, perhaps.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there signals can be caught
        yield pressed.is_set
        return
    numbers = (signal.SIGINT, signal.SIGTERM) if is_several() else (signal.SIGINT,)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}

    def interrupted(number: int, frame: Any) -> None:
        pressed.set()
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    for each in numbers:
        signal.signal(each, interrupted)
    try:
        yield pressed.is_set
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
