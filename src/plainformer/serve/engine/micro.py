"""Requests of tasks that do not write: the inputs of several run together, as many as take a unit's time.

What an input runs with changes no more than the last bits of its answer. Where one of a group has an error, the group runs
again, each request alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from plainformer.errors import InputError, a_type, placed
from plainformer.inputs.listed import as_list
from plainformer.serve.engine.answers import Outcome
from plainformer.serve.engine.jobs import Job
from plainformer.serve.engine.request import Request
from plainformer.serve.engine.turns import UNIT_SECONDS, Turn, TurnThreads
from plainformer.tasks.base import Task

_FIRST_SIZE = 2000  # characters, before it is known how fast a model is
_KNOWN = 0.3  # weight of the last unit in what is known of a model's speed


class Reading(Job):
    """A request of a task that reads one input or a list of them.

    Attributes:
        items: the inputs. waiting: places of those that have not run, in the order they will. found: answers so far.
    """

    kind = "batch"

    def __init__(self, request: Request, number: int, deadline: float, task: Task, inputs: Any, options: Any) -> None:
        super().__init__(request, number, deadline)
        self.task, self.inputs, self.options = task, inputs, options
        self.items: list[Any] = []
        self.waiting: list[int] = []
        self.found: list[Any] = []
        self.is_one = False

    def prepare(self) -> None:
        inputs = self.task.checked(as_list(self.inputs), self.options)
        self.is_one = self.task.is_one(inputs)
        if not self.is_one and not isinstance(inputs, list | tuple):
            what = f"{a_type(inputs)} is not an input for {self.task.name}"
            raise InputError(what, f"give {self.task.reads()}, or a list of them")
        self.items = [inputs] if self.is_one else list(inputs)
        self.waiting = self.task.in_order(self.items, self.options)
        self.found = [None] * len(self.items)

    def joins(self, other: Reading) -> bool:
        """Whether inputs of both may run together."""
        return self.task is other.task and _same(self.options, other.options)

    def take(self, size: float) -> tuple[list[int], float]:
        """Return the places of inputs that come next, up to a size (at least one), and what is left of it."""
        most, places = self.options.batch_size, list[int]()
        while self.waiting and len(places) < most:
            own = self.task.size(self.items[self.waiting[0]])
            if places and own > size:
                break
            places.append(self.waiting.pop(0))
            size -= own
        return places, size

    def alone(self, places: Sequence[int]) -> list[Any]:
        """Answer some of the inputs."""
        items = [self.items[place] for place in places]
        return [self.task.one(items[0], self.options)] if self.is_one else self.task.batch(items, places, self.options)

    def end(self) -> None:
        """Give the answers."""
        result = self.found[0] if self.is_one else self.task.gathered(self.found, self.options)
        self.request.end(Outcome(result, seconds=self.seconds()))


@dataclass
class Part:
    """A request's inputs in a group, and what came of them."""

    job: Reading
    places: list[int]
    error: BaseException | None = None


class Micro:
    """Groups of inputs, one at a time for each task; each is a call in turns.

    Args:
        threads: that calls run in. alone: whether each request runs by itself.
    """

    def __init__(self, threads: TurnThreads, *, alone: bool) -> None:
        self.threads, self.alone = threads, alone
        self.speed: dict[int, float] = {}  # of a task by its identity: sizes a second
        self.groups: dict[int, Group] = {}

    def unit(self, lead: Reading, others: Sequence[Reading]) -> list[tuple[Reading, BaseException | None]]:
        """Go on with the group that a task is at, or begin one with `lead`; at its end return its requests, with their errors.

        Args:
            others: further requests, of which some may join.
        """
        key = id(lead.task)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = self._begin(lead, others)
        started = time.monotonic()
        ended = group.go()
        group.seconds += time.monotonic() - started
        if not ended:
            return []
        del self.groups[key]
        if group.turn.error is not None:
            raise group.turn.error  # what belongs to a request is kept apart: this is the engine's own
        rate = group.size / max(group.seconds, 1e-6)
        self.speed[key] = rate if key not in self.speed else _KNOWN * rate + (1 - _KNOWN) * self.speed[key]
        return [(part.job, part.error) for part in group.parts]

    def _begin(self, lead: Reading, others: Sequence[Reading]) -> Group:
        whole = self.speed.get(id(lead.task), _FIRST_SIZE / UNIT_SECONDS) * UNIT_SECONDS
        places, size = lead.take(whole)
        parts = [Part(lead, places)]
        most = lead.options.batch_size - len(places)
        for other in others:
            if self.alone or size <= 0 or most <= 0 or not lead.joins(other):
                continue
            places, size = other.take(size)
            parts.append(Part(other, places[:most]))
            other.waiting[:0] = places[most:]
            most -= len(parts[-1].places)
        return Group(parts, whole - size, self.threads, fits=size >= 0)

    def close(self, job: Reading) -> None:
        """Forget a request; a group that is at it alone is ended."""
        group = self.groups.get(id(job.task))
        if group is not None and all(part.job is job or part.job.request.done for part in group.parts):
            group.turn.close()
            del self.groups[id(job.task)]


class Group:
    """Inputs that run together.

    Args:
        fits: whether they take about a unit's time, and can run at once; else they run in turns, which costs a little.
    """

    def __init__(self, parts: list[Part], size: float, threads: TurnThreads, *, fits: bool) -> None:
        self.parts, self.size, self.seconds, self.fits = parts, max(size, 1.0), 0.0, fits
        self.turn = Turn(self._run, threads)

    def go(self) -> bool:
        """Run for a unit's time; return whether all have run."""
        if not self.fits:
            return self.turn.go()
        self._run()
        return True

    def _run(self) -> None:
        if len(self.parts) > 1:
            with suppress(Exception):  # one of them is at fault then: which, each tells by itself
                self._together()
                return
        for part in self.parts:
            if part.places:
                _run_alone(part)

    def _together(self) -> None:
        lead = self.parts[0].job
        items = [part.job.items[place] for part in self.parts for place in part.places]
        with placed(None):
            answers = iter(lead.task.run(items, lead.options))
        for part in self.parts:
            for place in part.places:
                part.job.found[place] = next(answers)


def _run_alone(part: Part) -> None:
    try:
        with torch.inference_mode():
            for place, answer in zip(part.places, part.job.alone(part.places), strict=True):
                part.job.found[place] = answer
    except Exception as error:  # whatever it is: it is this request's
        part.error = error


class Called(Job):
    """A request that runs by one call of the library, in turns: speech, and tasks that write, where not streamed."""

    kind = "step"

    def __init__(
        self, request: Request, number: int, deadline: float, call: Callable[[], Any], threads: TurnThreads
    ) -> None:
        super().__init__(request, number, deadline)
        self.turn = Turn(call, threads)

    def unit(self) -> bool:
        if not self.turn.go():
            return False
        if self.turn.error is not None:
            raise self.turn.error
        self.request.end(Outcome(self.turn.result, seconds=self.seconds()))
        return True

    def close(self) -> None:
        self.turn.close()


def _same(first: Any, second: Any) -> bool:
    """Return whether two sets of options are alike; False where that cannot be said (tensors among them)."""
    try:
        return type(first) is type(second) and bool(first == second)
    except (RuntimeError, ValueError):
        return False
