"""What handlers share: engine, names of models, configuration; and how a request waits without missing its client's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse

from plainformer.serve.api.body import read_json
from plainformer.serve.api.fields import Table
from plainformer.serve.config import ServeConfig
from plainformer.serve.errors import Refusal, gone, refusal_of
from plainformer.serve.names import Names, Served
from plainformer.serve.sse import EventStream, event, until_gone

if TYPE_CHECKING:
    from plainformer.serve.engine import Engine, Outcome
    from plainformer.serve.engine import Request as Work
    from plainformer.serve.metrics import Metrics

T = TypeVar("T")
MOST_WORKS = 128  # of one HTTP request
# What is too long where a text is.
_LONG = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/embeddings": "input", "/v1/rerank": "documents",
         "/v2/rerank": "documents", "/v1/entities": "documents", "/v1/explain": "input", "/v1/whatif": "input"}  # fmt: skip


@dataclass
class Service:
    """A running server as its handlers see it."""

    config: ServeConfig
    engine: Engine
    names: Names
    metrics: Metrics
    started: float = field(default_factory=time.time)
    cache: dict[Any, Any] = field(
        default_factory=dict
    )  # what handlers keep: bytes of tokens, tables, the page of the API

    @property
    def options(self) -> Any:
        """The server's options."""
        return self.config.options

    def works_of(self, request_id: str) -> list[str]:
        """Return the ids under which the engine knows the work of an HTTP request."""
        return [request_id, *(f"{request_id}/{number}" for number in range(2, 1 + MOST_WORKS))]


class Call:
    """One HTTP request, as a handler sees it.

    Attributes:
        service: the server. http: Starlette's request. id: of the request. client: whom it is counted for.
        options: the server's. route: its path without parameters.
    """

    def __init__(self, service: Service, http: Request, route: str) -> None:
        self.service, self.http, self.route = service, http, route
        self.engine, self.options = service.engine, service.options
        state = http.scope.get("state", {})
        self.id, self.client = str(state.get("request_id", "")), str(state.get("client", ""))
        self._works = 0

    def refusal(self, error: BaseException) -> Refusal:
        """Return how an error is told to this request's client, and count it."""
        found = refusal_of(error, self.id)
        if found.code == "context_length_exceeded":
            found.param = found.param or _LONG.get(self.route, "inputs")
        self.service.metrics.error(found)
        return found

    async def read(self, table: Table) -> dict[str, Any]:
        """Return the checked fields of the body."""
        body = await read_json(self.http, self.options.max_depth)
        return table.read(body, unknown=self.options.unknown_fields)

    def find(self, name: str | None, tasks: tuple[str, ...] = (), what: str = "") -> Served:
        """Return the model that a body names."""
        found = self.service.names.find(name, tasks, what)
        passed = self.http.scope.get("state", {}).get("passed")
        if passed is not None:
            self.http.scope["state"]["model"] = found.name
        return found

    def identity(self) -> dict[str, Any]:
        """Return what the engine is told of a request; the second one of the same HTTP request gets an id of its own."""
        self._works += 1
        number = "" if self._works == 1 else f"/{self._works}"
        return {"client": self.client, "request_id": f"{self.id}{number}"}

    async def run(self, model: Served, inputs: Any, options: Mapping[str, Any], task: Any = None) -> Outcome:
        """Return the outcome of a task."""
        return (await self.outcomes(self.engine.run(model.name, inputs, options, task=task, **self.identity())))[0]

    async def alone(self, call: Callable[[], T]) -> T:
        """Return what a call gives that runs while nothing else computes."""
        found = (await self.outcomes(self.engine.exclusive(call, **self.identity())))[0].result
        return found  # type: ignore[no-any-return]

    async def outcomes(self, *works: Work) -> list[Outcome]:
        """Return the outcomes; the work ends if the client goes."""
        return list(await self.until_gone(asyncio.gather(*(work.outcome() for work in works)), *works))

    async def until_gone(self, awaited: Awaitable[T], *works: Work) -> T:
        """Return what is awaited, or end the works if the client goes before."""
        waiting = asyncio.ensure_future(awaited)
        left = asyncio.ensure_future(until_gone(self.http.receive))
        try:
            await asyncio.wait({waiting, left}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise gone()
            return waiting.result()
        finally:
            if not waiting.done() or waiting.cancelled() or waiting.exception() is not None:
                for work in works:
                    work.cancel("disconnect")
            left.cancel()
            waiting.add_done_callback(_looked_at)
            waiting.cancel()

    async def stream(self, works: list[Work], values: AsyncIterator[Any], end: bytes = b"") -> EventStream:
        """Return a response that sends values as events, once the first work has begun: until then, errors are plain ones."""
        await self.until_gone(works[0].started(), *works)
        metrics = self.service.metrics
        metrics.stream_opened()

        def closed() -> None:
            metrics.stream_closed()
            for work in works:
                work.cancel("disconnect")

        return EventStream(self._events(values, end), closed)

    async def _events(self, values: AsyncIterator[Any], end: bytes) -> AsyncIterator[bytes]:
        try:
            async for value in values:
                yield event(value)
        except Exception as error:  # what went wrong is the last event, without the end that a whole answer has
            yield event(self.refusal(error).body())
            return
        if end:
            yield end


def _looked_at(future: asyncio.Future[Any]) -> None:
    """Take a future's error, which asyncio would else print: nobody waits for it any more."""
    if not future.cancelled():
        future.exception()


def json_response(value: Any, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return a response of JSON."""
    return JSONResponse(value, headers=dict(headers or {}))


def milliseconds(seconds: float) -> float:
    """Return seconds as milliseconds, to the microsecond."""
    return round(seconds * 1000, 3)
