"""/chat/completions: a conversation goes on, whole or as a stream, with tools, a JSON schema, several answers.

A last message of the assistant is continued: the answer is what follows it. A model that turns a text into another reads the
last message of the user.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from plainformer.serve.api.fields import ANY, FLAG, OBJECT, TEXT, Field, Schema, either, list_of, whole, words
from plainformer.serve.api.service import Call, json_response
from plainformer.serve.api.writing import (
    WRITERS,
    Scored,
    Shown,
    asks,
    chat_logprobs,
    details_of,
    finish_reason,
    spelling_of,
    usage_of,
)
from plainformer.serve.calls import CallParser, Piece
from plainformer.serve.errors import invalid
from plainformer.serve.names import Served
from plainformer.serve.options import FORMAT, MOST_LIKELY, Asked, writing_table
from plainformer.serve.sse import DONE
from plainformer.serve.tools import Toolbox, toolbox

_PART: Schema = {"type": "object", "required": ["type"], "properties": {"type": TEXT, "text": TEXT}}
_CALL: Schema = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "id": TEXT,
        "type": TEXT,
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": TEXT, "arguments": TEXT},
        },
    },
}
ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGES: Schema = list_of(
    {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": words(*ROLES),
            "content": either(TEXT, list_of(_PART), {"type": "null"}),
            "name": {"type": ["string", "null"]},
            "tool_calls": either(list_of(_CALL), {"type": "null"}),
            "tool_call_id": {"type": ["string", "null"]},
        },
    },
    1,
)
TOOLS: Schema = list_of(
    {
        "type": "object",
        "required": ["type", "function"],
        "properties": {
            "type": words("function"),
            "function": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": TEXT,
                    "description": {"type": ["string", "null"]},
                    "parameters": {"type": ["object", "null"]},
                    "strict": {"type": ["boolean", "null"]},
                },
            },
        },
    },
    0,
    128,
)
CHOICE: Schema = either(
    words("none", "auto", "required"),
    {
        "type": "object",
        "required": ["type", "function"],
        "properties": {
            "type": words("function"),
            "function": {"type": "object", "required": ["name"], "properties": {"name": TEXT}},
        },
    },
)
TABLE = writing_table(
    Field("messages", MESSAGES, "The conversation, oldest message first.", required=True),
    Field("max_completion_tokens", whole(1), "New tokens at most; another name of max_tokens."),
    Field(
        "logprobs", FLAG, "Return the log-probability of each token, in the model's own distribution.", neutral=(False,)
    ),
    Field("top_logprobs", whole(0, MOST_LIKELY), "The likeliest tokens in each place, with logprobs."),
    Field("response_format", FORMAT, "What the answer is: text, any JSON object, or JSON of a schema."),
    Field("tools", TOOLS, "Functions that the model may call.", neutral=([],)),
    Field("tool_choice", CHOICE, "Whether it may call one, must, or must call the one named.", neutral=("auto",)),
    Field("parallel_tool_calls", FLAG, "Several calls in one answer.", neutral=(True, False)),
    Field("modalities", list_of(TEXT), "What is written.", neutral=(["text"],), why="answers are text alone."),
    Field("audio", OBJECT, "Speech as an answer.", why="answers are text alone."),
    Field("prediction", OBJECT, "Text that is likely to occur.", why="use prompt_lookup."),
    Field("functions", ANY, "Older form of tools.", neutral=([],), why="use tools."),
    Field("function_call", ANY, "Older form of tool_choice.", neutral=("auto", "none"), why="use tool_choice."),
    Field(
        "reasoning_effort",
        TEXT,
        "How long to think.",
        neutral=("none",),
        why="models here have no such switch; see template_variables.",
    ),
    Field(
        "web_search_options",
        OBJECT,
        "A search in the web.",
        neutral=({},),
        why="this server reads nothing from the web.",
    ),
)


async def chat(call: Call) -> Any:
    """Answer a conversation."""
    given = await call.read(TABLE)
    if len(given["messages"]) > call.options.max_messages:
        what = f"messages has {len(given['messages'])} items, more than {call.options.max_messages}"
        raise invalid(f"{what}\n  → send fewer, or start the server with a higher --max-messages", "messages")
    model = call.find(given.get("model"), WRITERS, "chats")
    if "top_logprobs" in given and "logprobs" not in given:
        raise invalid("top_logprobs has no effect without logprobs\n  → set logprobs to true", "top_logprobs")
    asked = asks(call, model, given)
    asked.logprobs = given.get("top_logprobs", 0) if given.get("logprobs") else None
    item, box, prefix = conversation(call, model, given, asked)
    work = call.engine.generate(model.name, item, asked.options, n=asked.n, logprobs=asked.logprobs, **call.identity())
    answer = _Answer(call, model, asked, work, box, prefix)
    if not given.get("stream"):
        return json_response(answer.whole((await call.outcomes(work))[0]))
    with_usage = bool(given.get("stream_options", {}).get("include_usage"))
    return await call.stream([work], answer.chunks(with_usage), DONE)


def conversation(call: Call, model: Served, given: dict[str, Any], asked: Asked) -> tuple[Any, Toolbox, str]:
    """Return what the model reads, its tools, and what of its answer is in the conversation already; adds to `asked.options`."""
    messages = [_plain(one, place) for place, one in enumerate(given["messages"])]
    if model.can.task == "text2text-generation":
        for name in ("tools", "tool_choice"):
            if given.get(name) not in (None, [], "none"):
                raise invalid(f"{name} has no effect: {model.name} turns a text into another\n  → leave it out", name)
        texts = [one["content"] for one in messages if one["role"] == "user"]
        if not texts:
            raise invalid("no message is of the user: there is nothing to read\n  → add one", "messages")
        return texts[-1], Toolbox(()), ""
    if not model.can.chat:
        fix = "send the prompt itself to /v1/completions"
        raise invalid(f"{model.name} has no chat template\n  → {fix}", "model", "wrong_task")
    template = model.tokenizer.chat_template
    source = template.source(None, given.get("tools"))
    reads = "tools" in template.reads(tools=given.get("tools"))
    box = toolbox(given, source, reads)
    for name, value in box.options().items():
        if name in asked.options:
            called = "response_format" if name == "json_schema" else name
            raise invalid(f"{called} has no effect where a call is forced\n  → leave it out", called)
        asked.options[name] = value
    if "developer" not in source:
        messages = [{**one, "role": "system"} if one["role"] == "developer" else one for one in messages]
    prefix = asked.options.get("answer_prefix", "")
    last = messages[-1]
    if last["role"] == "assistant" and not last.get("tool_calls") and len(messages) > 1:
        if prefix:
            what = "a last message of the assistant and an answer that begins otherwise exclude each other"
            raise invalid(f"{what}\n  → leave one of them out", "messages")
        prefix, messages = last["content"], messages[:-1]
        if prefix:
            asked.options["answer_prefix"] = prefix
    return box.messages(messages), box, prefix


def _plain(message: dict[str, Any], place: int) -> dict[str, Any]:
    """Return a message with its parts joined and the arguments of its calls as objects, as templates want them."""
    found = {name: value for name, value in message.items() if value is not None}
    content = found.get("content")
    if isinstance(content, list):
        for part in content:
            if part["type"] not in ("text", "input_text", "refusal"):
                what = f"messages[{place}] has a part of type {part['type']!r}; models here read text alone"
                raise invalid(f"{what}\n  → send parts of type text", "messages")
        found["content"] = "".join(part.get("text") or part.get("refusal") or "" for part in content)
    if content is None:
        if not found.get("tool_calls"):
            raise invalid(f"messages[{place}] has no content\n  → give a text", "messages")
        found["content"] = ""
    if calls := found.get("tool_calls"):
        found["tool_calls"] = [{**one, "type": "function", "function": _call_of(one["function"])} for one in calls]
    return found


def _call_of(function: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = function["arguments"]  # what a model wrote, which a template prints as it is
    return {"name": function["name"], "arguments": arguments}


class _Answer:
    """A response to a chat, whole or in chunks."""

    def __init__(self, call: Call, model: Served, asked: Asked, work: Any, box: Toolbox, prefix: str) -> None:
        self.call, self.model, self.asked, self.work, self.box, self.prefix = call, model, asked, work, box, prefix
        self.created = int(time.time())
        self.spelling = spelling_of(call.service, model) if asked.logprobs is not None else None

    def _head(self, kind: str) -> dict[str, Any]:
        name = f"chatcmpl-{self.call.id}"
        return {
            "id": name,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": None,
        }

    # ---- whole ----------------------------------------------------------------------------------------------------

    def whole(self, outcome: Any) -> dict[str, Any]:
        """Return the response of an outcome."""
        choices = [self._choice(place, answer, outcome) for place, answer in enumerate(outcome.answers)]
        reasons = [(answer.stop_reason, answer.stop_string) for answer in outcome.answers]
        details = details_of(self.call, self.asked, [outcome], reasons)
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": usage_of([outcome]),
            "plainformer": details,
        }

    def _choice(self, place: int, answer: Any, outcome: Any) -> dict[str, Any]:
        text = answer.text.removeprefix(self.prefix)
        parser = CallParser(self.box)
        calls: list[dict[str, Any]] = []
        shown = ""
        for piece in parser.push(text, last=True):
            if piece.call is None:
                shown += piece.text
            elif piece.name:
                calls.append({"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}})
            else:
                calls[piece.call]["function"]["arguments"] += piece.arguments
        message: dict[str, Any] = {
            "role": "assistant",
            "content": shown if shown or not calls else None,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = calls
        made = {
            "index": place,
            "message": message,
            "finish_reason": _reason(answer.stop_reason, parser),
            "logprobs": None,
        }
        if self.spelling is not None:
            scored = Scored(self.spelling)
            tokens = scored.take(Shown(text, outcome.scores[place], answer.stop_reason))
            made["logprobs"] = chat_logprobs(self.spelling, tokens, self.asked.logprobs or 0)
        return made

    # ---- as a stream ----------------------------------------------------------------------------------------------

    async def chunks(self, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a streamed response."""
        head = {**self._head("chat.completion.chunk"), **({"usage": None} if with_usage else {})}
        writers = [_Writer(self, place) for place in range(self.asked.n)]
        ended: dict[int, tuple[str | None, str | None]] = {}
        last: list[dict[str, Any]] = []
        async for event in self.work:
            for choice in writers[event.index].choices(event):
                yield {**head, "choices": [choice]}
            if event.reason is not None:
                ended[event.index] = (event.reason, event.stop_string)
                last.append(writers[event.index].ending(event.reason))
                if len(ended) < self.asked.n:  # the very last waits for what is known at the end alone
                    yield {**head, "choices": [last[-1]]}
        outcome = await self.work.outcome()
        details = details_of(self.call, self.asked, [outcome], [ended[place] for place in sorted(ended)])
        yield {**head, "choices": last[-1:], "plainformer": details}
        if with_usage:
            yield {**head, "choices": [], "usage": usage_of([outcome])}


class _Writer:
    """The chunks of one of a response's answers."""

    def __init__(self, answer: _Answer, place: int) -> None:
        self.answer, self.place = answer, place
        self.parser = CallParser(answer.box)
        self.scored = None if answer.spelling is None else Scored(answer.spelling)
        self.skipped = len(answer.prefix)  # characters of the beginning that the client has already
        self.begun = False

    def choices(self, event: Any) -> list[dict[str, Any]]:
        """Return what an event adds."""
        text = event.text
        if self.skipped:
            text, self.skipped = text[self.skipped :], max(0, self.skipped - len(text))
        found = [self._choice({"role": "assistant", "content": ""})] if not self.begun else []
        self.begun = True
        found += [self._choice(_delta(piece)) for piece in self.parser.push(text, last=event.reason is not None)]
        if self.scored is not None:
            tokens = self.scored.take(Shown(text, event.scores, event.reason))
            logprobs = chat_logprobs(self.scored.spelling, tokens, self.answer.asked.logprobs or 0)
            if tokens and not found:
                found.append(self._choice({"content": ""}))
            if tokens:
                found[-1]["logprobs"] = logprobs
        return found

    def ending(self, reason: str) -> dict[str, Any]:
        """Return the choice that says why the answer ended."""
        return {**self._choice({}), "finish_reason": _reason(reason, self.parser)}

    def _choice(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self.place, "delta": delta, "logprobs": None, "finish_reason": None}


def _delta(piece: Piece) -> dict[str, Any]:
    if piece.call is None:
        return {"content": piece.text}
    if piece.name:
        begun = {
            "index": piece.call,
            "id": piece.id,
            "type": "function",
            "function": {"name": piece.name, "arguments": ""},
        }
        return {"tool_calls": [begun]}
    return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.arguments}}]}


def _reason(reason: str | None, parser: CallParser) -> str:
    said = finish_reason(reason)
    return "tool_calls" if parser.calls and said == "stop" else said
