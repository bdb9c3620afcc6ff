"""A request as its caller sees it: events to iterate over, an outcome, a way to end it. From coroutines and from threads.

The thread that computes only appends to a request; it wakes readers once for all requests of a step (`wake`). A caller reads
in the event loop that it asked from, or in any thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from plainformer.errors import UsageError
from plainformer.serve.engine.answers import Event, Outcome

Loop = asyncio.AbstractEventLoop


class Request:
    """Something asked of an engine. Its events go to one reader.

    Whoever waits for it must not be the thread that computes: within `exclusive`, or in a processor, it would never come.

    Attributes:
        id: of its own, or as the caller named it. model, client: as given. kind: "generate", "run" or "exclusive".
        state: "preparing", "waiting", "prefill", "running", "paused" or "done".
    """

    def __init__(self, id: str, model: str, client: str, kind: str, notify: Callable[[], None]) -> None:
        self.id, self.model, self.client, self.kind = id, model, client, kind
        self.state = "preparing"
        self.created = time.monotonic()
        self.why_cancelled: str | None = None
        self._notify = notify  # tells the engine that something about a request has changed
        self._events: deque[Event] = deque()
        self._put_tokens = self._taken_tokens = 0  # each written by one side alone
        self._is_read = True
        self._began = False
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._loop = _running_loop()
        self._futures: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"Request({self.id!r}, {self.kind} of {self.model!r}, {self.state})"

    @property
    def done(self) -> bool:
        return self._outcome is not None or self._error is not None

    def cancel(self, why: str = "cancelled") -> None:
        """End the request, whatever it is at; its readers get `RequestCancelled`. Without effect on one that has ended."""
        if not self.done and self.why_cancelled is None:
            self.why_cancelled = why
            self._notify()

    # ---- readers --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Event]:
        while True:
            self._wait(lambda: bool(self._events) or self.done)
            if (event := self._take()) is None:
                return
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            await self._until(lambda: bool(self._events) or self.done)
            if (event := self._take()) is None:
                return
            yield event

    async def started(self) -> None:
        """Return once the request's first work is done. Raises: what kept it from that."""
        await self._until(lambda: self._began or self.done)
        if self._error is not None and not self._events:
            raise self._error

    async def outcome(self) -> Outcome:
        """Return the outcome at the end; events that nobody has read are dropped."""
        self.drop()
        await self._until(lambda: self.done)
        return self._ended()

    def result(self, timeout: float | None = None) -> Outcome:
        """Return the outcome at the end, which it waits for; events that nobody has read are dropped.

        Raises:
            UsageError: it has not ended, and waiting would stop the event loop. TimeoutError.
        """
        if not self.done:
            if _running_loop() is not None:
                raise UsageError("waiting for a result would stop this event loop", "await request.outcome() instead")
            self.drop()
            self._wait(lambda: self.done, timeout)
        return self._ended()

    def _ended(self) -> Outcome:
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    def _take(self) -> Event | None:
        """Return the next event; None at the end. Raises: the error that the request ended with."""
        if not self._events:
            self._ended()
            return None
        event = self._events.popleft()
        before = self.unread
        self._taken_tokens += len(event.token_ids)
        if self.state == "paused" and self.unread < before:
            self._notify()
        return event

    def drop(self) -> None:
        """Read no events: those that have come are dropped, and nothing waits for their being read."""
        self._is_read = False
        self._events.clear()
        if self.state == "paused":
            self._notify()

    def _wait(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        with self._changed:
            if not self._changed.wait_for(ready, timeout):
                raise TimeoutError(f"request {self.id} has not ended after {timeout} s")

    async def _until(self, ready: Callable[[], bool]) -> None:
        # Who appends reads the loop afterwards: from here on, nothing that is not seen below goes unnoticed.
        self._loop = loop = asyncio.get_running_loop()
        while not ready():
            future = loop.create_future()
            self._futures.append(future)
            await future

    # ---- the engine's side ----------------------------------------------------------------------------------------

    @property
    def unread(self) -> int:
        """Tokens that wait for a reader."""
        return self._put_tokens - self._taken_tokens if self._is_read else 0

    def put(self, event: Event) -> None:
        """Add an event; `wake` tells readers."""
        self._began = True
        if self._is_read:
            self._put_tokens += len(event.token_ids)
            self._events.append(event)
            if not self._is_read:  # the reader has turned away meanwhile
                self._events.clear()

    @property
    def ended_with(self) -> Outcome | BaseException | None:
        return self._outcome if self._error is None else self._error

    def begun(self) -> None:
        """Say that the request's first work is done."""
        self._began = True

    def end(self, outcome: Outcome | BaseException) -> None:
        """End the request."""
        self.state = "done"
        if isinstance(outcome, Outcome):
            self._outcome = outcome
        else:
            self._error = outcome


def wake(requests: Iterable[Request]) -> None:
    """Wake the readers of requests that have something new: each event loop once."""
    by_loop: dict[Loop, list[Request]] = defaultdict(list)
    for request in requests:
        with request._changed:
            request._changed.notify_all()
        if request._loop is not None:
            by_loop[request._loop].append(request)
    for loop, several in by_loop.items():
        try:
            loop.call_soon_threadsafe(_wake_in_loop, several)
        except RuntimeError:  # the loop is closed: nobody reads there any more
            for request in several:
                request.cancel("disconnect")


def _wake_in_loop(requests: list[Request]) -> None:
    for request in requests:
        futures, request._futures = request._futures, []
        for future in futures:
            if not future.done():
                future.set_result(None)


def _running_loop() -> Loop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
