"""The thread that computes, for all models: units of work of about 100 ms or less, and between them a look at the mailbox.

Answers that are being written come first: one step of a model's batch, then at most one unit of something else, so that a
long prompt delays others' tokens by one chunk. Between models, and between clients, whoever has had the least time goes next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from plainformer.errors import PlainformerError
from plainformer.serve.engine.answers import Outcome
from plainformer.serve.engine.counters import Counters
from plainformer.serve.engine.errors import (
    Draining,
    EngineDied,
    QueueTimeout,
    RequestCancelled,
    RowFailed,
)
from plainformer.serve.engine.jobs import CallJob, Job
from plainformer.serve.engine.memory import Memory
from plainformer.serve.engine.micro import Micro, Reading
from plainformer.serve.engine.options import EngineOptions
from plainformer.serve.engine.prompts import Readings
from plainformer.serve.engine.queue import Queue
from plainformer.serve.engine.request import Request, wake
from plainformer.serve.engine.rows import Batch, Batched, Row
from plainformer.serve.engine.turns import TurnThreads
from plainformer.serve.engine.writing import Writing

_LOOKS = 0.05  # seconds between two looks at what is late
DECODE = "decode"
Mail = tuple[str, Any, Any]


class Scheduler:
    """Everything that only the computing thread touches, and the mailbox that others write to.

    Attributes:
        queue: prepared requests that wait. active: those that have units of their own to run.
        batches: of models by name, the rows that are being written together.
        jobs: all requests that have not ended, by the identity of the `Request`.
    """

    def __init__(self, options: EngineOptions, memories: Mapping[str, Memory], counters: Counters) -> None:
        self.options, self.memories, self.counters = options, memories, counters
        self.queue = Queue(options, memories)
        self.active: list[Job] = []
        self.batches = {name: Batch(memory) for name, memory in memories.items() if memory.ragged is not None}
        self.jobs: dict[int, Job] = {}
        self.turns = TurnThreads()
        self.readings = Readings()
        self.micro = Micro(self.turns, alone=options.exact_batches)
        self.draining = self.stopping = False
        self.died: EngineDied | None = None
        self.on_death: list[Callable[[EngineDied], object]] = []
        self.looked = time.monotonic()
        self.sleeps = False
        self._mail: deque[Mail] = deque()
        self._posted = threading.Condition()
        self._changed: dict[int, Request] = {}  # requests whose readers are to be woken
        self._clocks: dict[tuple[str, str], float] = {}  # seconds that a client of a model has had
        self._late = 0.0

    # ---- the mailbox ----------------------------------------------------------------------------------------------

    def post(self, what: str, job: Any = None, more: Any = None) -> None:
        """Tell the computing thread something, from any thread."""
        self._mail.append((what, job, more))
        with self._posted:
            self._posted.notify()

    def _read_mail(self) -> None:
        self.looked = time.monotonic()
        if not self._mail and not self._has_work():
            self.sleeps = True
            with self._posted:
                self._posted.wait_for(lambda: bool(self._mail), self._sleep_seconds())
            self.sleeps = False
            self.looked = time.monotonic()
        noticed = False
        while self._mail:
            what, job, more = self._mail.popleft()
            if what == "new":
                self.jobs[id(job.request)] = job
            elif what == "ready":
                self._ready(job, more)
            elif what == "drain":
                self._drain()
            noticed = noticed or what in ("notice", "ready", "stop")
            self.stopping = self.stopping or what == "stop"
        if noticed:
            self._notice()

    def _has_work(self) -> bool:
        units = any(job.stalled_since is None for job in self.active)
        return units or any(batch.ready for batch in self.batches.values()) or self.stopping

    def _sleep_seconds(self) -> float | None:
        """Return how long nothing can become late; None where nothing waits."""
        return 0.25 if self.jobs else None

    # ---- the thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Compute until the engine is closed."""
        try:
            with torch.inference_mode():
                while not self.stopping:
                    self._read_mail()
                    self._expire()
                    self._admit()
                    self._decode()
                    self._other()
                    self._wake()
        except BaseException as error:
            self._die(error)
        else:
            self._end_all(lambda job: RequestCancelled.of("drain"))
            self.turns.close()

    def _die(self, error: BaseException) -> None:
        self.died = EngineDied.of(error)
        self.counters("errors", label="EngineDied")
        for job in list(self.jobs.values()):
            with suppress(Exception):
                self._leave(job)
            if not job.request.done:
                job.request.end(self.died)
            self._changed[id(job.request)] = job.request
        self.jobs.clear()
        self._wake()
        for told in self.on_death:
            told(self.died)

    def _end_all(self, error: Callable[[Job], PlainformerError]) -> None:
        for job in list(self.jobs.values()):
            self._fail(job, error(job))
        self._wake()

    def _wake(self) -> None:
        if self._changed:
            changed, self._changed = self._changed, {}
            wake(changed.values())

    # ---- arriving and ending --------------------------------------------------------------------------------------

    def _ready(self, job: Job, error: BaseException | None) -> None:
        """Queue a job that is prepared, or end it."""
        if id(job.request) not in self.jobs:
            return
        if error is None and self.draining:
            error = Draining.now()
        if error is None:
            error = self.queue.refused(job)
        if error is not None:
            self._fail(job, error)
        elif job.rows:
            job.request.state = "waiting"
            self.queue.add(job)
        else:
            self._begin(job)

    def _fail(self, job: Job, error: BaseException) -> None:
        """End a request with an error."""
        label = error.why if isinstance(error, RequestCancelled) else type(error).__name__
        self.counters("cancelled" if isinstance(error, RequestCancelled) else "errors", 1, job.request.model, label)
        if not isinstance(error, PlainformerError):
            error = RowFailed.of(error)
        self._leave(job)
        if not job.request.done:
            job.request.end(error)
        self._ended(job)

    def _ended(self, job: Job) -> None:
        """Forget a request that has ended."""
        self.jobs.pop(id(job.request), None)
        self._changed[id(job.request)] = job.request
        request, name = job.request, job.request.model
        self.counters("request_seconds", time.monotonic() - request.created, name)

    def _succeed(self, job: Job) -> None:
        """Count a request that has come to its end by itself."""
        self._leave(job)
        name, outcome = job.request.model, job.request.ended_with
        assert isinstance(outcome, Outcome)
        for answer in outcome.answers:
            self.counters("finished", 1, name, answer.stop_reason)
        if isinstance(job, Writing):
            self.counters("prompt_tokens", outcome.usage.prompt_tokens, name)
            self.counters("prompt_tokens_cached", outcome.usage.cached_tokens, name)
            self.counters("generated_tokens", outcome.usage.new_tokens, name)
        self._ended(job)

    def _leave(self, job: Job) -> None:
        """Take a job out of wherever it is, with all that it holds."""
        self.queue.remove(job)
        if job in self.active:
            self.active.remove(job)
        if isinstance(job, Batched):
            self.readings.close(job)
            self.batches[job.request.model].remove(job)
        elif job.blocks and job.admitted is not None:
            self.memories[job.request.model].reserved -= job.blocks
        if isinstance(job, Reading):
            self.micro.close(job)
        job.close()

    def _drain(self) -> None:
        self.draining = True
        for job in [job for job in self.jobs.values() if job.admitted is None]:
            self._fail(job, Draining.now())

    def _notice(self) -> None:
        """Look which requests have been cancelled, and which readers have caught up."""
        for job in list(self.jobs.values()):
            if job.request.why_cancelled is not None:
                self._fail(job, RequestCancelled.of(job.request.why_cancelled))
            elif job.stalled_since is not None and job.request.unread <= self.options.outbox // 2:
                job.stalled_since = None
                job.request.state = "running"

    def _expire(self) -> None:
        """End what is late."""
        now = time.monotonic()
        if now - self._late < _LOOKS:
            return
        self._late = now
        for job in list(self.jobs.values()):
            waited = now - job.request.created
            if job.admitted is None and waited > self.options.queue_timeout:
                self.counters("rejected", 1, job.request.model, "queue_timeout")
                self._fail(job, QueueTimeout.of(self.options.queue_timeout))
            elif job.stalled_since is not None and now - job.stalled_since > self.options.stall_timeout:
                self._fail(job, RequestCancelled.of("stalled"))
            elif now > job.deadline and not isinstance(job, Writing):
                self._fail(job, RequestCancelled.of("timeout"))
            elif now > job.deadline and job.admitted is None:
                self._fail(job, QueueTimeout.of(waited))

    # ---- admission ------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Begin waiting requests, as far as there is room for them."""
        while (job := self.queue.take(one for one in self.jobs.values() if one.admitted is not None)) is not None:
            self._begin(job)

    def _begin(self, job: Job) -> None:
        job.admitted = time.monotonic()
        job.request.state = "prefill" if isinstance(job, Batched) else "running"
        self.counters("queue_seconds", job.admitted - job.request.created, job.request.model)
        if job.blocks and not isinstance(job, Batched):
            self.memories[job.request.model].reserve(job.blocks)
        self._clock_in(job)
        self.active.append(job)
        self._guarded(job, job.open)

    def _guarded(self, job: Job, call: Callable[[], Any]) -> Any:
        """Do something for one request; its errors are its own. Returns None where it failed."""
        try:
            return call()
        except Exception as error:  # whatever it is
            self._fail(job, error)
            return None

    # ---- units ----------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """Run one step of the batch whose model has had the least time."""
        ready = [name for name, batch in self.batches.items() if batch.ready]
        if not ready:
            return
        name = min(ready, key=lambda name: self._clocks.get((name, DECODE), 0.0))
        started = time.monotonic()
        rows = self.batches[name].step()
        seconds = self._spend((name, DECODE), started, DECODE)
        self.counters("batch_rows", len(rows), name)
        for row in rows:
            self._got(row)
        for job in {id(row.job): row.job for row in rows}.values():
            job.spent["decode"] += seconds
            self._after_tokens(job)

    def _got(self, row: Row) -> None:
        """Count a token's time; a row that has ended leaves."""
        now = time.monotonic()
        if row.last is not None:
            self.counters("inter_token_seconds", now - row.last, row.job.request.model)
        row.last = now
        if row.ended:
            batch = self.batches[row.job.request.model]
            if row in batch.rows:
                batch.rows.remove(row)
            row.job.leave(row)

    def _after_tokens(self, job: Batched) -> None:
        """End a request whose rows have ended; hold up one whose reader does not keep up."""
        self._changed[id(job.request)] = job.request
        if self._guarded(job, job.end_if_done):
            self._succeed(job)
        elif not job.request.done:
            self._hold_up(job)

    def _hold_up(self, job: Job) -> None:
        if job.stalled_since is None and job.request.unread >= self.options.outbox:
            job.stalled_since = time.monotonic()
            job.request.state = "paused"
            self.post("notice")  # it may have been read meanwhile

    def _other(self) -> None:
        """Run one unit of what is not a batch's step: of the client that has had the least time."""
        ready = [job for job in self.active if job.stalled_since is None]
        if not self.readings.may_begin():
            ready = [job for job in ready if not isinstance(job, Batched) or id(job) in self.readings.of]
        if not ready:
            return
        job = min(ready, key=lambda job: (self._clocks[job.source], job.spent["inputs"], job.number))
        key, started = job.source, time.monotonic()
        if isinstance(job, Reading):
            self._read_together(job)
            job.spent["inputs"] += self._spend(key, started, job.kind)
            return
        if isinstance(job, Batched):
            self._read_prompts(job)
            self._spend(key, started, job.kind)
            return
        if isinstance(job, CallJob):  # it may change a model: nothing may be in the middle of a run
            self._have_read(self.readings.settle())
        first = job.first is None
        self._guarded(job, job.unit)
        self._spend(key, started, job.kind)
        self._changed[id(job.request)] = job.request
        if first and job.first is not None:
            self.counters("time_to_first_token_seconds", job.first - job.request.created, job.request.model)
        if job.request.done or id(job.request) not in self.jobs:
            if id(job.request) in self.jobs:
                self._succeed(job)
        else:
            self._hold_up(job)

    def _read_prompts(self, lead: Batched) -> None:
        """Read some layers of a prompt, perhaps with others that wait; let those that have been read into the batch."""
        started = time.monotonic()
        others = [job for job in self.active if isinstance(job, Batched) and job is not lead]
        done = self.readings.unit(lead, others)
        seconds = time.monotonic() - started
        for job in done or [lead]:
            job.spent["prefill"] += seconds
            job.request.begun()
            self._changed[id(job.request)] = job.request
        self._have_read(done)

    def _have_read(self, done: Sequence[Batched]) -> None:
        for job in done:
            if id(job.request) in self.jobs:
                self._guarded(job, job.begin_rows)
            if id(job.request) in self.jobs:
                self._join(job)

    def _join(self, job: Batched) -> None:
        """Let the rows of a prompt that has been read into the batch."""
        self.active.remove(job)
        job.request.state = "running"
        if job.first is not None:
            self.counters("time_to_first_token_seconds", job.first - job.request.created, job.request.model)
        self.batches[job.request.model].rows += job.written
        for row in job.written:
            self._got(row)
        self._after_tokens(job)

    def _read_together(self, lead: Reading) -> None:
        others = [job for job in self.active if isinstance(job, Reading) and job is not lead]
        for job, error in self.micro.unit(lead, others):
            self._changed[id(job.request)] = job.request
            if id(job.request) not in self.jobs:
                continue
            if error is not None:
                self._fail(job, error)
            elif not job.waiting:
                self._guarded(job, job.end)
                if id(job.request) in self.jobs:
                    self._succeed(job)
            else:
                job.request.begun()

    # ---- time -----------------------------------------------------------------------------------------------------

    def _clock_in(self, job: Job) -> None:
        """Let a client that comes anew begin where the others are: it has not saved up what it did not use."""
        others = [self._clocks[other.source] for other in self.active]
        own = self._clocks.get(job.source, 0.0)
        self._clocks[job.source] = max(own, min(others, default=own))
        if len(self._clocks) > 4 * self.options.max_queue:
            known = {other.source for other in self.jobs.values()} | {(name, DECODE) for name in self.batches}
            self._clocks = {source: spent for source, spent in self._clocks.items() if source in known}

    def _spend(self, source: tuple[str, str], started: float, kind: str) -> float:
        seconds = time.monotonic() - started
        self._clocks[source] = self._clocks.get(source, 0.0) + seconds
        self.counters("unit_seconds", seconds, source[0], kind)
        return seconds
