"""/openapi.json (OpenAPI 3.1): made of the table of routes and of the tables that check bodies, so that it says what holds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from plainformer.serve.api.service import Call, json_response

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_REFUSALS = {
    "400": "The request cannot work: the message says why, and what to do.",
    "401": "The API key is missing or wrong.",
    "403": "This host or origin is not allowed.",
    "404": "The route, model, task or request does not exist.",
    "405": "The route has another method.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "415": "The body is of another type.",
    "429": "Too many requests wait; Retry-After says when to come again.",
    "500": "The server failed; its log says why.",
    "501": "An optional package is not installed.",
    "503": "The server is starting, shutting down, or the request waited too long.",
}


async def page(call: Call) -> Any:
    """Return this description."""
    return json_response(call.service.cache["openapi"])


def described(routes: Iterable[Any], models: Iterable[str]) -> dict[str, Any]:
    """Return the description of routes (`routes.Route`); `models`: the names that are served."""
    import plainformer

    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r"\{(\w+):path\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path)
    info = {
        "title": "Plainformer",
        "version": plainformer.__version__,
        "description": "Every task of transformers over HTTP; OpenAI's clients work. Served: " + ", ".join(models),
    }
    keys = {
        "key": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }
    components = {"schemas": {"Error": _ERROR}, "securitySchemes": keys}
    return {
        "openapi": "3.1.0",
        "info": info,
        "paths": paths,
        "components": components,
        "security": [{}, {"key": []}, {"header": []}],
    }


def _operation(route: Any, path: str) -> dict[str, Any]:
    about = (inspect.getdoc(route.handler) or "").strip()
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    answer: dict[str, Any] = {} if path == "/metrics" else {"application/json": {"schema": {}}}
    if path == "/metrics" or route.form:
        answer["text/plain"] = {"schema": {"type": "string"}}
    if route.form:
        answer["text/vtt"] = {"schema": {"type": "string"}}
    if route.streams:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": answer}}
    responses |= {status: {"description": said, "content": refusal} for status, said in _REFUSALS.items()}
    made: dict[str, Any] = {"tags": [route.tag], "summary": about.rstrip("."), "responses": responses}
    made["operationId"] = route.method.lower() + re.sub(r"\W+", "_", path).rstrip("_")
    names = re.findall(r"\{(\w+)\}", path)
    made["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    if route.streams and path.endswith("{task}"):
        made["parameters"].append(
            {"name": "stream", "in": "query", "schema": {"type": "string", "enum": ["1", "true"]}}
        )
    if route.table is not None:
        kind = "multipart/form-data" if route.form else "application/json"
        made["requestBody"] = {"required": True, "content": {kind: {"schema": route.table.published()}}}
    return made
