"""One thread that prepares the batches of the next steps while the model learns from this one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from plainformer.train.draws import generator

if TYPE_CHECKING:
    import torch

    from plainformer.train.objectives.base import Arrays, Batch, Objective
    from plainformer.train.plan import MicroBatch, Piece

T = TypeVar("T")
VALIDATION = -1  # the "epoch" of random numbers in evaluation: the same each time


class Feeder(Generic[T]):
    """Yields `prepare(step)` for steps from `first` up to and without `stop`, each prepared ahead of its time.

    A thread suffices: examples are in memory or mapped into it, and numpy and torch release Python's lock. Use it in a
    `with` statement, which ends the thread. What `prepare` raises is raised where the step is asked for.

    Attributes:
        waited: seconds that steps were waited for, in all.
    """

    def __init__(self, prepare: Callable[[int], T], first: int, stop: int, ahead: int = 2) -> None:
        self.prepare, self.steps, self.waited = prepare, range(first, stop), 0.0
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def __enter__(self) -> Feeder[T]:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        for _ in self.steps:
            begin = time.perf_counter()
            item, error = self._ready.get()
            self.waited += time.perf_counter() - begin
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # None only beside an error

    def _run(self) -> None:
        for step in self.steps:
            try:
                made: tuple[T | None, BaseException | None] = self.prepare(step), None
            except BaseException as error:  # the other thread is the one to raise it
                made = None, error
            while not self._closed.is_set():
                try:
                    self._ready.put(made, timeout=0.05)
                    break
                except queue.Full:
                    continue
            if made[1] is not None or self._closed.is_set():
                return


class Examples(Protocol):
    """All examples, by their numbers: a list, or a store on disk."""

    def __getitem__(self, number: int, /) -> Arrays: ...


def collated(
    objective: Objective, examples: Examples, rows: MicroBatch, seed: int, epoch: int, pin: bool = False
) -> Batch:
    """Return rows of a plan as a batch on the CPU. A row's random numbers are those of its first piece.

    In training, examples are augmented as `augment` says; never in evaluation. `pin` puts tensors where a GPU fetches them by
    itself.
    """
    pieces = [[objective.part(examples[p.example], p.start, p.stop) for p in row] for row in rows]
    draws = [generator(seed, epoch, *_key(row[0])) for row in rows]
    if epoch == VALIDATION:
        batch = objective.collate(pieces, draws)
    else:
        batch = objective.hidden(objective.collate(objective.augmented(pieces, draws), draws), draws)
    batch = replace(batch, examples=tuple(row[0].example for row in rows))
    return moved(batch, lambda tensor: tensor.pin_memory()) if pin else batch


def _key(piece: Piece) -> tuple[int, ...]:
    return (piece.example, piece.start) if piece.start else (piece.example,)


def moved(batch: Batch, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """Return a batch whose tensors are elsewhere."""
    parts: dict[str, Any] = {
        part: {name: move(tensor) for name, tensor in getattr(batch, part).items()} for part in ("inputs", "targets")
    }
    return replace(batch, **parts)
