"""A request as the thread that computes sees it: prepared elsewhere, admitted, then run a unit of work at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from plainformer.errors import placed
from plainformer.serve.engine.answers import Outcome, Seconds, Usage
from plainformer.serve.engine.request import Request
from plainformer.serve.engine.turns import TurnThreads


class Job:
    """One request's work.

    Attributes:
        request: what its caller holds. number: which of all requests it is, in the order they came.
        rows, blocks: answers that it writes at once, and blocks of keys and values that it reserves while it runs.
        overtaken: how many later requests were admitted before it.
        deadline: when its time is up.
        kind: what its units are called where they are counted.
        spent: seconds on its prompt, its answers and, of a reading task, its inputs: a long list of one client's takes turns with
            what else it asks.
    """

    kind = "call"
    rows = 0
    blocks = 0

    def __init__(self, request: Request, number: int, deadline: float) -> None:
        self.request, self.number, self.deadline = request, number, deadline
        self.overtaken = 0
        self.admitted: float | None = None
        self.first: float | None = None  # when its first token, or its answer, was there
        self.stalled_since: float | None = None
        self.spent = {"prefill": 0.0, "decode": 0.0, "inputs": 0.0}

    def prepare(self) -> None:
        """Do what needs no model, in a worker thread. Raises: what is wrong with the request."""

    def open(self) -> None:
        """Begin, in the thread that computes."""

    def unit(self) -> bool:
        """Do a piece of work; return whether that was the last."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the job holds, at its end or before it."""

    def timed_out(self) -> bool:
        """Come to an end because the time is up; return whether the job does so by itself."""
        return False

    @property
    def source(self) -> tuple[str, str]:
        """Whose work it is: of which model for which client."""
        return self.request.model, f"client {self.request.client}"

    @property
    def waits_for_reader(self) -> bool:
        return self.stalled_since is not None

    def seconds(self) -> Seconds:
        now = time.monotonic()
        waited = (self.admitted or now) - self.request.created
        return Seconds(waited, self.spent["prefill"], self.spent["decode"], now - self.request.created)


class CallJob(Job):
    """A call that nothing else computes beside: it may change the model for its time."""

    kind = "exclusive"

    def __init__(
        self, request: Request, number: int, deadline: float, call: Callable[[], Any], threads: TurnThreads
    ) -> None:
        super().__init__(request, number, deadline)
        self.call, self.threads = call, threads

    def unit(self) -> bool:
        self.threads.settle()
        # Its own mode: a caller's function may want gradients, and gets them as it does elsewhere.
        with torch.inference_mode(False), placed(None):
            result = self.call()
        self.request.end(Outcome(result, usage=Usage(), seconds=self.seconds()))
        return True
