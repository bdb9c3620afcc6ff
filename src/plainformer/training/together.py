"""The processes of a run: they meet before anything is read, and one of them goes first where it must."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from plainformer.config.parallel import processes
from plainformer.config.training import TrainConfig
from plainformer.errors import UsageError, opt
from plainformer.parallel.mesh import Mesh, finish, start


@contextmanager
def together(config: TrainConfig) -> Iterator[Mesh]:
    """Within, the processes that torchrun has started are a mesh; one that was started by hand is alone.

    Raises:
        UsageError: they cannot be divided as the configuration says.
    """
    count = processes()
    layout = config.parallel.layout(count)
    several = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    if several and ":" in config.device:
        what = f"{opt('device', config.device)} is one device for all processes of this machine"
        raise UsageError(what, f"give {opt('device', 'cuda')}: each process has one of its own")
    import torch.distributed as dist

    met = dist.is_available() and dist.is_initialized()
    mesh = start(layout, device=config.device, timeout=config.parallel.timeout)
    yield mesh
    if not met:  # not after an error: the others may not come
        finish()
