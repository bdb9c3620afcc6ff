"""The processes of a run: they meet before anything is read, and one of them goes first where it must."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from plainformer.config.parallel import is_several, processes
from plainformer.config.training import TrainConfig
from plainformer.errors import UsageError, opt
from plainformer.parallel.failures import end_with_parent, failure_of_another
from plainformer.parallel.mesh import Mesh, finish, start


@contextmanager
def together(config: TrainConfig) -> Iterator[Mesh]:
    """Within, the processes that torchrun has started are a mesh; one that was started by hand is alone.

    Raises:
        UsageError: they cannot be divided as the configuration says.
        TrainingError: another process has ended, or does not answer.
    """
    count = processes()
    layout = config.parallel.layout(count)
    several = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    if several and ":" in config.device:
        what = f"{opt('device', config.device)} is one device for all processes of this machine"
        raise UsageError(what, f"give {opt('device', 'cuda')}: each process has one of its own")
    import torch.distributed as dist

    met = dist.is_available() and dist.is_initialized()
    if is_several():
        end_with_parent()
    timeout = config.parallel.timeout
    try:
        mesh = start(layout, device=config.device, timeout=timeout)
        yield mesh
        if not met:  # not after an error: the others may not come
            finish()
    except (RuntimeError, TimeoutError) as error:
        failure = failure_of_another(error, timeout)
        if failure is None:
            raise
        raise failure from error
