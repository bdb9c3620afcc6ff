"""/rerank: documents by how well they answer a query, in the three dialects that clients speak.

    /v1/rerank, /rerank    Jina's, vLLM's, LiteLLM's: {"query", "documents", "top_n", "return_documents"} → results
    /v2/rerank             Cohere's: the same with "id" and "meta"
    /rerank with "texts"   text-embeddings-inference: {"query", "texts", "raw_scores", "return_text"} → a list

A model of vectors ranks by cosine where the body says "by": "embedding".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from plainformer.errors import plural
from plainformer.serve.api.embeddings import TASK as VECTORS
from plainformer.serve.api.embeddings import counted
from plainformer.serve.api.fields import FLAG, OBJECT, TEXT, Field, Table, either, list_of, whole, words
from plainformer.serve.api.service import Call, json_response
from plainformer.serve.errors import invalid
from plainformer.serve.names import Served

_DOCUMENT = either(TEXT, {"type": "object", "required": ["text"], "properties": {"text": TEXT}})
_SHARED = (
    Field("query", TEXT, "What the documents should answer.", required=True),
    Field("model", TEXT, "Name of a served model; without it, the first that ranks."),
    Field("by", words("embedding"), "Rank by the cosine of vectors, with a model of vectors."),
    Field("truncate", FLAG, "Cut documents that are too long instead of refusing them.", neutral=(False,)),
)
TABLE = Table(
    *_SHARED,
    Field("documents", list_of(_DOCUMENT, 1), 'Texts, or objects with a "text".', required=True),
    Field("top_n", whole(1), "Results at most."),
    Field("return_documents", FLAG, "Return the documents, too.", neutral=(False,)),
    Field("max_tokens_per_doc", whole(1), "Tokens of a document.", neutral=(4096,), why="use truncate."),
    Field("max_chunks_per_doc", whole(1), "Parts of a document.", why="use truncate."),
    Field("rank_fields", list_of(TEXT), "Parts of documents.", why='documents are texts, or objects with a "text".'),
    Field("priority", whole(), "Order of requests.", neutral=(0,), why="requests are answered in turn."),
)
TEI = Table(
    *_SHARED,
    Field("texts", list_of(TEXT, 1), "The documents.", required=True),
    Field("raw_scores", FLAG, "Logits instead of probabilities.", neutral=(False,)),
    Field("return_text", FLAG, "Return the texts, too.", neutral=(False,)),
    Field(
        "truncation_direction",
        words("left", "right"),
        "Which end is cut.",
        neutral=("right", "Right"),
        why="the end is cut.",
    ),
)
ANY = Table(*{one.name: one for one in (*TEI.fields.values(), *TABLE.fields.values())}.values())


async def rerank(call: Call) -> Any:
    """Rank documents."""
    from plainformer.serve.api.body import read_json

    body = await read_json(call.http, call.options.max_depth)
    tei = "texts" in body and "documents" not in body
    given = (TEI if tei else TABLE).read(body, unknown=call.options.unknown_fields)
    documents = [one if isinstance(one, str) else one["text"] for one in given["texts" if tei else "documents"]]
    if len(documents) > call.options.max_documents:
        what = f"{plural(len(documents), 'document')} are more than {call.options.max_documents:,}"
        raise invalid(f"{what}\n  → send fewer at once, or start the server with a higher --max-documents", "documents")
    by_vector = given.get("by") == "embedding"
    model = call.find(given.get("model"), (VECTORS,) if by_vector else ("text-ranking",), _what(call, given))
    ranked = await (_by_vector if by_vector else _by_reading)(call, model, given, documents)
    if tei:
        keep = given.get("return_text")
        return json_response(
            [
                {"index": place, "score": score, **({"text": documents[place]} if keep else {})}
                for place, score in ranked
            ]
        )
    tokens = await asyncio.to_thread(counted, model, [given["query"], *documents], given)
    keep = given.get("return_documents")
    results = [
        {"index": place, "relevance_score": score, **({"document": {"text": documents[place]}} if keep else {})}
        for place, score in ranked
    ]
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({"id": call.id, "model": model.name, "results": results, "meta": meta, "usage": usage})


def _what(call: Call, given: Mapping[str, Any]) -> str:
    named = call.service.names.models.get(given.get("model") or "")
    if named is not None and VECTORS in named.tasks and given.get("by") is None:
        return 'rankings by reading ("by": "embedding" ranks by its vectors)'
    return "rankings"


async def _by_reading(
    call: Call, model: Served, given: dict[str, Any], documents: list[str]
) -> list[tuple[int, float]]:
    options: dict[str, Any] = {"truncate": True} if given.get("truncate") else {}
    if "top_n" in given:
        options["top_k"] = given["top_n"]
    if "raw_scores" in given:
        options["scores"] = "logits"
    found = (await call.run(model, (given["query"], documents), options, "text-ranking")).result
    return [(one.index, one.score) for one in found.documents]


async def _by_vector(call: Call, model: Served, given: dict[str, Any], documents: list[str]) -> list[tuple[int, float]]:
    task = model.task
    options: dict[str, Any] = {"truncate": True} if given.get("truncate") else {}
    if model.can.task != VECTORS:
        raise invalid(f'"by" has no effect: {model.name} is for {model.can.task}\n  → ask a model of vectors', "by")
    corpus = (await call.run(model, documents, task.searching("document", options))).result
    query = (await call.run(model, given["query"], task.searching("query", options))).result
    hits = await asyncio.to_thread(task.search, query, corpus, given.get("top_n", len(documents)))
    return [(hit.index, hit.score) for hit in hits]


__all__ = ["ANY", "OBJECT", "TABLE", "rerank"]
