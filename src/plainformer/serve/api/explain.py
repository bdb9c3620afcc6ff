"""/explain, /explain/steps and /whatif: how an input became an answer. Nothing else computes meanwhile: they change the model."""

from __future__ import annotations

import asyncio
from typing import Any

from plainformer.serve.api.fields import FLAG, OBJECT, TEXT, Field, Table, either, list_of, table_of, whole
from plainformer.serve.api.service import Call, json_response
from plainformer.serve.api.tasks import _MESSAGE, options_of, read_inputs
from plainformer.serve.errors import Refusal, invalid
from plainformer.serve.names import Served
from plainformer.tasks import TASKS

_SHARED = (
    Field("model", TEXT, "Name of a served model; without it, the first."),
    Field("input", either(TEXT, list_of(_MESSAGE, 1), OBJECT), "One input of the model's task.", required=True),
    Field("chat", FLAG, "The input is a user's message in a chat.", neutral=(False,)),
    Field("truncate", FLAG, "Cut an over-long input instead of refusing it.", neutral=(False,)),
    Field("options", OBJECT, "Options of the task, by name.", neutral=({},)),
)
EXPLAIN = Table(
    *_SHARED,
    Field("pair", TEXT, "Second text, where the task reads two."),
    Field("top_k", whole(1, 100), "Candidates that are shown."),
    Field(
        "attention",
        either(FLAG, TEXT, list_of(TEXT)),
        "true: a summary of every head; heads such as 0.1: their maps.",
        neutral=(False,),
    ),
    Field("lens", FLAG, "What each layer would predict.", neutral=(False,)),
    Field("nearest", either(whole(0), TEXT), "Words nearest to each vector: embedding, last, or a layer."),
    Field("map_size", whole(1, 512), "Tokens of a map of attention, at most."),
)
STEPS = Table(
    *_SHARED,
    Field("steps", whole(1, 256), "Tokens to generate.", default=16),
    Field("width", whole(1, 50), "Candidates kept of each step.", default=5),
)
WHAT_IF = Table(
    *_SHARED,
    Field(
        "change",
        TEXT,
        "mask-head=L.H, no-cache, attend-to-padding, decoder-prefix=TEXT, or OPTION=VALUE.",
        required=True,
    ),
    Field("width", whole(1, 50), "Likeliest next tokens that are shown.", default=5),
)
_MAP_SIZE = 128  # tokens of a map where the body says nothing


async def explain(call: Call) -> Any:
    """Explain one input in one pass."""
    given = await _read(call, EXPLAIN)
    model, item, options = await _asked(call, given)
    names = ("pair", "chat", "top_k", "truncate", "attention", "lens", "nearest", "map_size")
    how = {name: given[name] for name in names if name in given}
    if how.get("attention", True) is not True:
        how.setdefault("map_size", _MAP_SIZE)

    def run() -> Any:
        from plainformer.explanation import explain as explained

        return {**explained(model.task, item, **how, **options).to_dict(), "ref": model.name}

    return json_response({"model": model.name, "explanation": await call.alone(run)})


async def steps(call: Call) -> Any:
    """Explain a generation, step by step."""
    given = await _read(call, STEPS)
    model, item, options = await _asked(call, given)

    def run() -> Any:
        from plainformer.explanation import Request, explain_steps

        request = Request(item, bool(given.get("chat")), bool(given.get("truncate")), options)
        found = explain_steps(model.task, request, steps=given.get("steps", 16), width=given.get("width", 5)).to_dict()
        return {**found, "about": {**found["about"], "ref": model.name}}

    return json_response({"model": model.name, "trace": await call.alone(run)})


async def what_if(call: Call) -> Any:
    """Run an input as it is, and with one thing changed."""
    given = await _read(call, WHAT_IF)
    model, item, options = await _asked(call, given)

    def run() -> Any:
        from plainformer.explanation import Request
        from plainformer.explanation import what_if as changed

        request = Request(item, bool(given.get("chat")), bool(given.get("truncate")), options)
        return changed(model.task, request, given["change"], width=given.get("width", 5)).to_dict()

    return json_response({"model": model.name, "difference": await call.alone(run)})


def _tokens(model: Served, given: dict[str, Any]) -> int:
    """Return the tokens of all texts of a body."""
    if not model.task.needs_tokenizer:
        return 0
    texts = [text for text in _texts_in([given["input"], given.get("pair")]) if text]
    return sum(model.lengths(texts))


def _texts_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _texts_in(one)]


async def _read(call: Call, table: Table) -> dict[str, Any]:
    if call.options.no_explain:
        raise Refusal(404, "explanations are off on this server\n  → start it without --no-explain", code="not_found")
    return await call.read(table)


async def _asked(call: Call, given: dict[str, Any]) -> tuple[Served, Any, dict[str, Any]]:
    model = call.find(given.get("model"))
    tokens, most = await asyncio.to_thread(_tokens, model, given), call.options.max_explain_tokens
    if tokens > most:
        what = f"input has {tokens:,} tokens, more than {most:,}; nothing else is computed while it is explained"
        raise invalid(f"{what}\n  → send less, or start the server with a higher --max-explain-tokens", "input")
    task = model.can.task
    options = table_of(options_of(model, task)).read(given.get("options", {}), where="options.")
    item = given["input"]
    if TASKS[task].reads in ("image", "audio") or not isinstance(item, str):
        item, several = read_inputs(task, item)
        if several:
            raise invalid("input is a list: one input is explained\n  → send one", "input")
    return model, item, options
