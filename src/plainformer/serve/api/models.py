"""/models: what is served, in OpenAI's shape, with what this library knows of each besides."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from plainformer.serve.api.service import Call, json_response
from plainformer.serve.names import Served


async def models(call: Call) -> Any:
    """List the models."""
    data = [described(call, one) for one in call.service.names.models.values()]
    return json_response({"object": "list", "data": data})


async def model(call: Call) -> Any:
    """Describe a model."""
    return json_response(described(call, call.find(call.http.path_params["model"])))


def described(call: Call, model: Served) -> dict[str, Any]:
    """Return what is said of a model."""
    can = {name: value for name, value in asdict(model.can).items() if name != "name"}
    own = {**can, "tasks": list(model.tasks), "defaults": call.options.defaults}
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "plainformer",
        "plainformer": own,
    }
