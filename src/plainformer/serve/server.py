"""The process that serves: a socket, uvicorn, signals, and an end that leaves no request without an answer.

SIGTERM or SIGINT: /ready says 503, no connection is taken any more, requests that wait are told so, those that run may go on for
`drain_timeout` seconds; then each stream ends with an error, and the process with 0. A second signal ends it at once, with 130. If
the computing thread dies, the process ends with 70, so that whatever watches it starts another.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from plainformer.errors import PlainformerError
from plainformer.serve.api.service import Service
from plainformer.serve.app import guarded
from plainformer.serve.config import ServeOptions
from plainformer.serve.log import logger

DIED, INTERRUPTED = 70, 130
SEND_BUFFER = 32 * 1024  # of a socket: with the usual megabytes, no reader would ever be seen to be slow
_SAME = 0.5  # seconds within which a second signal is the first once more: `timeout` tells a process and then its group
_GRACE = 2.0  # seconds in which the last events of ended requests are sent


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises: PlainformerError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # those that are accepted inherit it
        listening.bind((host.strip("[]"), port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        what = f"{host}:{port} cannot be listened at: {error.strerror or error}"
        raise PlainformerError(what, "choose another --port (0 takes a free one) or --host") from None
    return listening


class Server(uvicorn.Server):
    """uvicorn with signals, an end and limits of connections of its own.

    Attributes:
        code: the exit code.
    """

    def __init__(self, service: Service, ready: Callable[[str], object]) -> None:
        options: ServeOptions = service.options
        self.service, self.options, self.ready = service, options, ready
        self.code = 0
        self._signalled_at: float | None = None
        self._ending: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            guarded(service),
            http=_protocol(options),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            timeout_keep_alive=options.keep_alive,
            h11_max_incomplete_event_size=options.max_header,
            backlog=128,
        )
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals in the event loop: uvicorn would raise them again at its end, whatever that was."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()

        def died(error: BaseException) -> None:
            loop.call_soon_threadsafe(self._died, error)

        self.service.engine.on_death.append(died)
        if not self.service.engine.alive:
            self._died(None)
        assert sockets is not None
        self.ready(address_of(sockets[0]))

    def _signalled(self) -> None:
        now = time.monotonic()
        if self._signalled_at is not None and now - self._signalled_at > _SAME:
            logger.warning("second signal: ending at once")
            os._exit(INTERRUPTED)
        if self._signalled_at is None:
            self._signalled_at = now
            self._end()

    def _died(self, error: BaseException | None) -> None:
        logger.error("the computing thread has died: %s", error)
        self.code = DIED
        self._end(0.0)

    def _end(self, seconds: float | None = None) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(
                self._drain(self.options.drain_timeout if seconds is None else seconds)
            )

    async def _drain(self, seconds: float) -> None:
        """Let what runs come to its end, then end it."""
        engine, loop = self.service.engine, asyncio.get_running_loop()
        for server in self.servers:
            server.close()
        if self.code == 0:
            logger.info("shutting down: running requests have %g s", seconds)
            engine.drain()
        until = loop.time() + seconds
        while self._is_busy() and loop.time() < until and engine.alive:
            await asyncio.sleep(0.02)
        if engine.alive:
            await asyncio.to_thread(engine.close, 0.0)  # what still runs is told: its streams end with an error
        until = loop.time() + _GRACE
        while self.server_state.tasks and loop.time() < until:
            await asyncio.sleep(0.02)
        self.force_exit = bool(self.server_state.tasks)
        self.should_exit = True

    def _is_busy(self) -> bool:
        return bool(self.server_state.tasks)


def address_of(listening: socket.socket) -> str:
    """Return the address of a listening socket, as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(service: Service, listening: socket.socket, ready: Callable[[str], object] = lambda address: None) -> int:
    """Serve until a signal; return the exit code. The engine must have been started.

    Args:
        ready: is told the address once requests are taken.
    """
    server = Server(service, ready)
    server.run(sockets=[listening])
    return server.code


# ---- connections --------------------------------------------------------------------------------------------------------


def _protocol(options: ServeOptions) -> type[H11Protocol]:
    """Return uvicorn's protocol with a bound on connections, and on the time that a request's headers take."""

    class Bounded(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            if len(self.connections) >= options.max_connections:
                transport.write(_FULL)
                transport.close()
                self.transport = transport
                self.refused = True
                return
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            if getattr(self, "refused", False):
                return
            super().data_received(data)
            if self._waits_for_headers():
                self._expect()
            else:
                self._expected()

        def connection_lost(self, exc: Exception | None) -> None:
            self._expected()
            if not getattr(self, "refused", False):
                super().connection_lost(exc)

        def _waits_for_headers(self) -> bool:
            answered = self.cycle is None or self.cycle.response_complete
            return answered and self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])

        def _expect(self) -> None:
            if self._late is None:
                self._late = self.loop.call_later(options.body_timeout, self._too_late)

        def _expected(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _too_late(self) -> None:
            self._late = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_SLOW)
                self.transport.close()

    return Bounded


def _response(status: str, message: str, code: str, *headers: str) -> bytes:
    body = json.dumps({"error": {"message": message, "type": "overloaded_error", "param": None, "code": code}}).encode()
    lines = [
        f"HTTP/1.1 {status}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


_FULL = _response(
    "503 Service Unavailable", "too many connections\n  → try again later", "connections", "retry-after: 1"
)
_SLOW = _response("408 Request Timeout", "the request did not come in time\n  → send it faster", "header_timeout")
