"""What a request is answered with where it cannot be carried out: a status, and a body in the shape that OpenAI's clients read.

Every failure of a handler comes to `refusal_of`: the library's errors keep their message, with options as HTTP calls them; anything
else is told to the log with the request's id, and to the client as no more than that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect

from plainformer.errors import MissingDependencyError, PlainformerError
from plainformer.inputs.text.lengths import TooLongError
from plainformer.serve.engine.errors import (
    ContextTooLong,
    Draining,
    EngineDied,
    EngineError,
    QueueFull,
    QueueTimeout,
    RequestCancelled,
)

logger = logging.getLogger("plainformer.serve")

INVALID = "invalid_request_error"
# Options that OpenAI's interface calls otherwise.
HTTP_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    "json_schema": "response_format",
    "stop_strings": "stop",
    "sequence_bias": "logit_bias",
    "kv_memory_bytes": "--kv-memory",
    "max_queue": "--max-queue",
    "queue_timeout": "--queue-timeout",
}
_STATUSES: dict[type[EngineError], tuple[int, str, str]] = {
    QueueFull: (429, "overloaded_error", "overloaded"),
    QueueTimeout: (503, "overloaded_error", "queue_timeout"),
    Draining: (503, "overloaded_error", "draining"),
    EngineDied: (500, "server_error", "engine_died"),
}


class Refusal(Exception):
    """A request that is not carried out.

    Args:
        status: of HTTP. message: what is wrong and what to do. kind, code, param: `type`, `code` and `param` of the body.
        headers: further ones of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the body of the response."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> Refusal:
    """Return the refusal of a body with a value that cannot work."""
    return Refusal(400, message, code=code, param=param)


def gone() -> Refusal:
    """Return what is noted of a request whose client has left; nobody reads it."""
    return Refusal(499, "the client has gone", kind="server_error", code="disconnect")


def missing_route(message: str) -> Refusal:
    """Return the refusal of a path that leads nowhere."""
    return Refusal(404, message, code="not_found")


def http_name(name: str, value: str | None = None) -> str:
    """Return an option as bodies of requests spell it, for messages."""
    named = HTTP_NAMES.get(name, name)
    return named if value is None else f"{named}={value}"


def refusal_of(error: BaseException, request_id: str = "", names: Mapping[str, str] = HTTP_NAMES) -> Refusal:
    """Return how an error is told to a client; `names`: options that are called otherwise on this route."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ClientDisconnect):
        return gone()

    def spelling(name: str, value: str | None) -> str:
        return names.get(name, name) if value is None else f"{names.get(name, name)}={value}"

    if isinstance(error, ContextTooLong | TooLongError):
        return _too_long(error, spelling)
    if isinstance(error, EngineError):
        return _of_engine(error, spelling)
    if isinstance(error, MissingDependencyError):
        return Refusal(501, error.message(spelling), kind="server_error", code="missing_dependency")
    if isinstance(error, PlainformerError) and error.exit_code == 2:
        param = names.get(error.option, error.option) if error.option else None
        unsupported = error.option == "json_schema" or "JSON schema" in error.what
        if unsupported:
            return invalid(error.message(spelling), param or names.get("json_schema"), "unsupported_schema")
        return invalid(error.message(spelling), param)
    return _defect(error, request_id)


def _too_long(error: PlainformerError, spelling: Any) -> Refusal:
    """Return the refusal of a text that does not fit: gateways know it by the words "maximum context length is"."""
    message = error.message(spelling)
    if "maximum context length is" not in message:
        limit = error.what.rsplit("the limit is ", 1)[-1].split(";")[0] if "the limit is " in error.what else ""
        known = f"This model's maximum context length is {limit} tokens: " if limit.isdigit() else ""
        message = known + message
    return invalid(message, None, "context_length_exceeded")


def _of_engine(error: EngineError, spelling: Any) -> Refusal:
    if isinstance(error, RequestCancelled):
        status, code = {"timeout": (504, "timeout"), "drain": (503, "draining"), "delete": (409, "cancelled")}.get(
            error.why, (499, error.why)
        )
        headers = _NO_RETRY if error.why == "delete" else {}  # whoever ended it does not want it again
        return Refusal(status, error.message(spelling), kind="server_error", code=code, headers=headers)
    for kind, (status, name, code) in _STATUSES.items():
        if isinstance(error, kind):
            after = error.retry_after
            headers = {} if after is None else {"retry-after": str(max(1, round(after)))}
            return Refusal(status, error.message(spelling), kind=name, code=code, headers=headers)
    return Refusal(500, error.message(spelling), kind="server_error", code="request_failed", headers=_NO_RETRY)


_NO_RETRY = {"x-should-retry": "false"}  # the openai clients obey it: the same request would fail again


def _defect(error: BaseException, request_id: str) -> Refusal:
    logger.error("request %s failed: %s: %s", request_id, type(error).__name__, error, exc_info=error)
    if isinstance(error, PlainformerError):
        message = error.message(http_name)
    else:
        message = f"the server failed on this request; its log says why under {request_id or 'the time of it'}"
    return Refusal(500, message, kind="server_error", code="internal_error", headers=_NO_RETRY)
