"""Server-sent events: what a streamed answer looks like on the wire, and how it ends when its reader goes.

The format is that of the HTML standard (html.spec.whatwg.org, 9.2): lines "data: ...", an empty line after each event, and
lines that begin with a colon, which readers skip.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

KEEP_ALIVE = 15.0  # seconds of silence after which proxies may take a connection for dead
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),  # a proxy that compresses would hold events back
    (b"x-accel-buffering", b"no"),
]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def event(value: Any) -> bytes:
    """Return a value as one event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def until_gone(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """A streamed response.

    Args:
        events: what is sent, as `event` makes it. closed: called at the end, however it comes about: there what still runs for
            this response is ended.
        keep_alive: seconds of silence after which a comment is sent.
    """

    status_code = 200

    def __init__(
        self, events: AsyncIterator[bytes], closed: Callable[[], object], keep_alive: float = KEEP_ALIVE
    ) -> None:
        self.events, self.closed, self.keep_alive = events, closed, keep_alive

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(until_gone(receive))
        following: asyncio.Future[bytes] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            while True:
                following = following or asyncio.ensure_future(anext(self.events))  # type: ignore[arg-type]
                waited: set[asyncio.Future[Any]] = {following, gone}
                await asyncio.wait(waited, timeout=self.keep_alive, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if not following.done():
                    await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
                    continue
                try:
                    body = following.result()
                except StopAsyncIteration:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                following = None
                await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            gone.cancel()
            if following is not None:
                following.cancel()
            self.closed()
