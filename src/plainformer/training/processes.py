"""The processes of a run: how they come together, and how each ends when another has failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from plainformer.config.layout import Layout
from plainformer.config.training import TrainConfig
from plainformer.model.recompute import set_checkpointing
from plainformer.model.transformer import Transformer
from plainformer.parallel.apply import parallelize
from plainformer.parallel.data import Gradients, Replicas
from plainformer.parallel.failures import end_with_parent, failure_of_another
from plainformer.parallel.gather import Team
from plainformer.parallel.mesh import Mesh, finish, start
from plainformer.training.models import compile_layers

T = TypeVar("T")


@contextmanager
def together(config: TrainConfig, layout: Layout) -> Iterator[Mesh | None]:
    """Within, the processes that torchrun has started can talk; None for one alone.

    Raises:
        TrainingError: another process has ended, or does not answer.
    """
    if layout.world == 1:
        yield None
        return
    end_with_parent()
    timeout = config.parallel.timeout
    try:
        mesh = start(layout, device=config.device, timeout=timeout)
        yield mesh
        finish()
    except (RuntimeError, TimeoutError) as error:
        failure = failure_of_another(error, timeout)
        if failure is None:
            raise
        raise failure from error


def team_of(mesh: Mesh | None) -> Team | None:
    """Return the processes as they share files; None for one alone."""
    return None if mesh is None else Team.of(mesh)


def first(team: Team | None, act: Callable[[], T]) -> T:
    """Return what `act` gives in the first process, which alone does it. What it raises, all raise."""
    found: T = act() if team is None else team.first(act)
    return found


def divided(model: Transformer, config: TrainConfig, mesh: Mesh | None) -> Gradients:
    """Divide a run's model among processes or devices, in place; return how their gradients come together."""
    asked = config.model
    if mesh is not None:
        compiled = compile_layers if config.compile else None
        return parallelize(model, mesh, checkpointing=asked.checkpointing, compiled=compiled)
    set_checkpointing(model, asked.checkpointing)  # type: ignore[arg-type]  # checked by the configuration
    if config.compile:
        compile_layers(model)
    devices = config.parallel.on(config.device)
    return Replicas(model, devices) if len(devices) > 1 else Gradients()
