"""All routes in one table: what is served, what /openapi.json says of it, and what metrics call it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from plainformer.serve.api import (
    audio,
    chat,
    completions,
    embeddings,
    entities,
    explain,
    health,
    models,
    openapi,
    rerank,
    tasks,
    tokenize,
)
from plainformer.serve.api.fields import Table
from plainformer.serve.api.service import Call

Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """A route of the API.

    Attributes:
        method, path: of the request; {name} is one part of a path, {name:path} any number of them. Each path is served with
            and without /v1.
        handler: answers. table: the fields of its body. tag: its group in the documentation. form: whether the body is a form.
        streams: whether the body may ask for events.
    """

    method: str
    path: str
    handler: Handler
    table: Table | None = None
    tag: str = "server"
    form: bool = False
    streams: bool = False

    @property
    def name(self) -> str:
        """What metrics call it."""
        return self.path


ROUTES = (
    Route("POST", "/v1/chat/completions", chat.chat, chat.TABLE, "writing", streams=True),
    Route("POST", "/v1/completions", completions.completions, completions.TABLE, "writing", streams=True),
    Route("POST", "/v1/embeddings", embeddings.embeddings, embeddings.TABLE, "reading"),
    Route("POST", "/v1/rerank", rerank.rerank, rerank.ANY, "reading"),
    Route("POST", "/v2/rerank", rerank.rerank, rerank.TABLE, "reading"),
    Route("POST", "/v1/audio/transcriptions", audio.transcriptions, audio.TRANSCRIPTIONS, "hearing", form=True),
    Route("POST", "/v1/audio/translations", audio.translations, audio.TRANSLATIONS, "hearing", form=True),
    Route("GET", "/v1/tasks", tasks.tasks, tag="tasks"),
    Route("POST", "/v1/tasks/{task}", tasks.answer, tasks.TABLE, "tasks", streams=True),
    Route("GET", "/v1/tasks/{task}/schema", tasks.schema, tag="tasks"),
    Route("POST", "/v1/entities", entities.entities, entities.TABLE, "reading"),
    Route("GET", "/v1/models", models.models, tag="models"),
    Route("GET", "/v1/models/{model:path}", models.model, tag="models"),
    Route("POST", "/v1/tokenize", tokenize.tokenize, tokenize.TOKENIZE, "tokens"),
    Route("POST", "/v1/detokenize", tokenize.detokenize, tokenize.DETOKENIZE, "tokens"),
    Route("POST", "/v1/chat/render", tokenize.render, tokenize.RENDER, "tokens"),
    Route("POST", "/v1/explain", explain.explain, explain.EXPLAIN, "explaining"),
    Route("POST", "/v1/explain/steps", explain.steps, explain.STEPS, "explaining"),
    Route("POST", "/v1/whatif", explain.what_if, explain.WHAT_IF, "explaining"),
    Route("DELETE", "/v1/requests/{id}", health.cancel),
    Route("GET", "/health", health.health),
    Route("GET", "/ready", health.ready),
    Route("GET", "/metrics", health.metrics),
    Route("GET", "/openapi.json", openapi.page),
)
