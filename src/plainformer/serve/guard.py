"""What every request passes before a handler sees it, and every response after: pure ASGI, so that nothing hides a disconnect.

A browser lets any page send requests to a server on its own machine. So the Host must be an IP address, localhost or a name that
was allowed (DNS rebinding needs a name), and a request that carries the Origin of another page is refused unless it was allowed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from plainformer.serve.errors import Refusal, refusal_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Seen = Callable[["Passed", str], None]

_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")  # others could write lines of their own into a log
_SECURITY = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_METHODS = b"GET, POST, DELETE, OPTIONS"
OPEN = ("/health", "/ready", "/metrics")  # without a key


@dataclass(frozen=True)
class Rules:
    """What the guard lets pass.

    Attributes:
        key: of the API; None: no key is asked for. metrics_key: of /metrics; None: it is open.
        hosts: names that the Host header may have besides IP addresses and localhost. origins: of pages that may call, "*" for any.
        body, upload, header: bytes of a JSON body, of a form with a file, and of the headers.
        body_seconds: within which a body must have come.
    """

    key: str | None = None
    metrics_key: str | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    body: int = 4 * 2**20
    upload: int = 100 * 2**20
    header: int = 16 * 2**10
    body_seconds: float = 30.0


@dataclass
class Passed:
    """A request as the log and the metrics get it, once it has been answered."""

    id: str
    method: str
    path: str
    client: str
    started: float
    status: int = 499  # as long as nothing has been answered: the client has gone
    route: str = ""
    seconds: float = 0.0


class Guard:
    """An application within its rules; `seen` is told of each request at its end."""

    def __init__(self, app: App, rules: Rules, seen: Seen = lambda passed, model: None) -> None:
        self.app, self.rules, self.seen = app, rules, seen
        self.running: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        kept = _SAFE_ID.fullmatch(given) and given not in self.running
        request_id = given if kept else f"req-{secrets.token_hex(12)}"
        address = (scope.get("client") or ("",))[0]
        passed = Passed(request_id, scope["method"], scope["path"], address, time.monotonic())
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, client=address, passed=passed)
        answer = self._answering(send, passed, headers.get("origin"))
        self.running.add(request_id)
        try:
            await self._pass(scope, headers, receive, answer)
        finally:
            self.running.discard(request_id)
            passed.seconds = time.monotonic() - passed.started
            self.seen(passed, state.get("model", ""))

    async def _pass(self, scope: Scope, headers: dict[str, str], receive: Receive, answer: Send) -> None:
        try:
            self._check_host(headers)
            if self._check_origin(scope, headers):
                await _answer(answer, 204, b"", [(b"access-control-max-age", b"600")])
                return
            scope["state"]["client"] = self._check_key(scope, headers) or scope["state"]["client"]
            limit = self._check_body(headers)
        except Refusal as refusal:
            await refuse(answer, refusal)
            return
        await self.app(scope, _Body(receive, limit, self.rules.body_seconds), answer)

    def _answering(self, send: Send, passed: Passed, origin: str | None) -> Send:
        """Return `send` that adds the headers of every response and notes its status."""
        more = [(b"x-request-id", passed.id.encode()), *_SECURITY]
        if origin is not None and self._allows(origin):
            more += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"vary", b"origin"),
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-allow-headers", b"authorization, content-type, x-api-key, x-request-id"),
                (b"access-control-expose-headers", b"x-request-id, retry-after"),
            ]

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                passed.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        return answer

    # ---- checks ---------------------------------------------------------------------------------------------------

    def _check_host(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        name = _name_of(host)
        if not (name == "localhost" or name in self.rules.hosts or _is_address(name)):
            fix = f"start the server with --allowed-host {name[:80] or 'NAME'}, if that is its name"
            raise Refusal(
                403, f"the Host {host[:80]!r} is not one of this server's\n  → {fix}", code="host_not_allowed"
            )

    def _check_origin(self, scope: Scope, headers: dict[str, str]) -> bool:
        """Refuse a page of another origin that was not allowed. Returns whether this is a browser's preflight."""
        origin = headers.get("origin")
        if origin is None:
            return False
        try:
            is_own = urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
        except ValueError:  # no address at all
            is_own = False
        if not is_own and not self._allows(origin):
            fix = f"start the server with --cors-origin {origin[:80]}, if that page may call it"
            raise Refusal(
                403, f"the Origin {origin[:80]!r} may not call this server\n  → {fix}", code="origin_not_allowed"
            )
        return scope["method"] == "OPTIONS" and "access-control-request-method" in headers

    def _allows(self, origin: str) -> bool:
        return origin in self.rules.origins or "*" in self.rules.origins

    def _check_key(self, scope: Scope, headers: dict[str, str]) -> str:
        """Refuse a request without its key. Returns what the client is called where a key tells."""
        path = scope["path"].rstrip("/").removeprefix("/v1")
        wanted = self.rules.metrics_key if path == "/metrics" else None if path in OPEN else self.rules.key
        if wanted is None:
            return ""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode()):
            what = "this server needs an API key" if not given else "the API key is not this server's"
            message = f"{what}\n  → send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`"
            name = {"www-authenticate": "Bearer"}
            raise Refusal(401, message, kind="authentication_error", code="invalid_api_key", headers=name)
        return "key " + hashlib.sha256(given.encode()).hexdigest()[:8]

    def _check_body(self, headers: dict[str, str]) -> int:
        """Refuse a body that is too long, or compressed, by its headers. Returns the limit for those that do not say."""
        if sum(len(name) + len(value) for name, value in headers.items()) > self.rules.header:
            message = f"the headers are larger than {self.rules.header:,} bytes\n  → send less"
            raise Refusal(431, message, code="headers_too_large", headers={"connection": "close"})
        if headers.get("content-encoding", "identity").lower() != "identity":
            what = f"bodies with Content-Encoding {headers['content-encoding'][:40]!r} are not read"
            raise Refusal(415, f"{what}\n  → send it as it is", code="unsupported_encoding")
        form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        limit = self.rules.upload if form else self.rules.body
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > limit:
            raise too_large(limit)
        return limit


def too_large(limit: int) -> Refusal:
    """Return the refusal of a body beyond its limit."""
    fix = "send less, or start the server with a higher --max-body or --max-upload"
    return Refusal(
        413,
        f"the body is larger than {limit:,} bytes\n  → {fix}",
        code="body_too_large",
        headers={"connection": "close"},
    )


class _Body:
    """`receive` with a bound on the bytes of the body and the time that it takes."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self.receive, self.limit = receive, limit
        self.left, self.ended = limit, False
        self.deadline = time.monotonic() + seconds

    async def __call__(self) -> Any:
        if self.ended:  # what comes now is the disconnect, whenever that is
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), max(0.001, self.deadline - time.monotonic()))
        except TimeoutError:
            close = {"connection": "close"}
            raise Refusal(
                408, "the body did not come in time\n  → send it faster", code="body_timeout", headers=close
            ) from None
        if message["type"] == "http.request":
            self.left -= len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
            if self.left < 0:
                raise too_large(self.limit)
        return message


# ---- parts --------------------------------------------------------------------------------------------------------------


def _name_of(host: str) -> str:
    """Return the name or address of a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0].lower() if re.search(r":\d*$", host) else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def refuse(send: Send, error: BaseException, request_id: str = "") -> None:
    """Answer with an error."""
    refusal = refusal_of(error, request_id)
    headers = [(name.encode(), value.encode("latin-1")) for name, value in refusal.headers.items()]
    body = json.dumps(refusal.body(), ensure_ascii=False).encode("utf-8", "backslashreplace")
    await _answer(send, refusal.status, body, [(b"content-type", b"application/json"), *headers])


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
