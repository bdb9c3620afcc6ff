"""/health, /ready, /metrics, /requests/{id}: what whoever runs the server asks."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from plainformer.serve.api.service import Call, json_response
from plainformer.serve.errors import Refusal
from plainformer.serve.metrics import CONTENT_TYPE

_STUCK = 60.0  # seconds without a sign of the computing thread


async def health(call: Call) -> Any:
    """Say that the process runs."""
    return json_response({"status": "ok"})


async def ready(call: Call) -> Any:
    """Say whether requests are taken."""
    engine = call.engine
    if engine.draining:
        raise _not_ready("the server is shutting down", "draining")
    if not engine.alive or engine.idle_seconds > _STUCK:
        raise _not_ready("the computing thread does not answer", "engine_died")
    return json_response({"status": "ready", "models": list(call.service.names.models)})


def _not_ready(what: str, code: str) -> Refusal:
    return Refusal(
        503, f"{what}\n  → ask again later", kind="overloaded_error", code=code, headers={"retry-after": "5"}
    )


async def metrics(call: Call) -> Any:
    """Return the numbers of the server, as Prometheus reads them."""
    return Response(call.service.metrics.page(), media_type=CONTENT_TYPE)


async def cancel(call: Call) -> Any:
    """End a running request."""
    name = call.http.path_params["id"]
    found = [call.engine.cancel(one, "delete") for one in call.service.works_of(name)]
    if not any(found):
        raise Refusal(
            404,
            f"no request {name[:80]!r} is running\n  → its id is in the header x-request-id",
            code="request_not_found",
        )
    return json_response({"id": name, "object": "request", "deleted": True})
