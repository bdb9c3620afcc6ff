"""/tokenize, /detokenize and /chat/render: what a model reads of a text, and the exact prompt of a conversation."""

from __future__ import annotations

import asyncio
from typing import Any

from plainformer.serve.api.chat import CHOICE, MESSAGES, TOOLS, conversation
from plainformer.serve.api.fields import FLAG, TEXT, Field, Table, list_of, whole
from plainformer.serve.api.service import Call, json_response
from plainformer.serve.errors import invalid
from plainformer.serve.names import Served
from plainformer.serve.options import Asked

TOKENIZE = Table(
    Field("text", TEXT, "The text.", required=True),
    Field("model", TEXT, "Name of a served model; without it, the first that reads text."),
    Field("add_special_tokens", FLAG, "With the tokens that the model reads around a text.", default=True),
)
DETOKENIZE = Table(
    Field("tokens", list_of(whole(0)), "Token ids.", required=True),
    Field("model", TEXT, "Name of a served model; without it, the first that reads text."),
    Field("skip_special_tokens", FLAG, "Without special tokens.", default=False),
)
RENDER = Table(
    Field("messages", MESSAGES, "The conversation.", required=True),
    Field("model", TEXT, "Name of a served model; without it, the first that chats."),
    Field("tools", TOOLS, "Functions that the model may call.", neutral=([],)),
    Field("tool_choice", CHOICE, "Whether it may call one.", neutral=("auto",)),
)


def _reader(call: Call, name: str | None) -> Served:
    """Return a model that reads text."""
    if name is not None:
        return call.find(name)
    able = [one for one in call.service.names.models.values() if one.task.needs_tokenizer]
    if not able:
        raise invalid("none of the models here reads text\n  → serve one that does", "model", "wrong_task")
    return able[0]


async def tokenize(call: Call) -> Any:
    """Return a text's tokens, each with its place."""
    given = await call.read(TOKENIZE)
    model = _reader(call, given.get("model"))
    special = given.get("add_special_tokens", True)
    tokenizer = model.tokenizer

    def encoded() -> Any:
        return tokenizer.encode_batch([given["text"]], add_special_tokens=special, max_length=None)[0]

    row = await asyncio.to_thread(encoded)
    tokens = [
        {"id": i, "token": name, "start": start, "end": end, "special": mark}
        for i, name, (start, end), mark in zip(row.input_ids, row.tokens, row.offsets, row.special, strict=True)
    ]
    ids = list(row.input_ids)
    return json_response(
        {"model": model.name, "count": len(ids), "tokens": ids, "details": tokens, "max_model_len": model.can.context}
    )


async def detokenize(call: Call) -> Any:
    """Return the text of token ids."""
    given = await call.read(DETOKENIZE)
    model = _reader(call, given.get("model"))
    text = model.tokenizer.decode(
        [int(i) for i in given["tokens"]], skip_special_tokens=given.get("skip_special_tokens", False)
    )
    return json_response({"model": model.name, "prompt": text, "text": text})


async def render(call: Call) -> Any:
    """Return the exact prompt of a conversation, and its tokens."""
    given = await call.read(RENDER)
    model = call.find(given.get("model"), ("text-generation",), "chats")
    asked = Asked()
    item, _, _ = conversation(call, model, given, asked)

    def prompt() -> tuple[str, list[int]]:
        options = model.task.make_options(asked.options)
        made = model.task.prompt_of(item, options)
        row = model.task.row_of(item, options)
        return made.text + options.answer_prefix, list(row.input_ids)

    text, ids = await asyncio.to_thread(prompt)
    return json_response({"model": model.name, "prompt": text, "tokens": ids, "count": len(ids)})
