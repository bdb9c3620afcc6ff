"""Tool calls: what a model reads of its tools, what it is made to write where it must call one, and calls found in what it writes.

Models write calls in the way that their chat template shows them; the template says which:

    <tool_call>{"name": ..., "arguments": {...}}</tool_call>     Hermes, Qwen, SmolLM; also where a template knows no tools
    [TOOL_CALLS][{"name": ..., "arguments": {...}}]              Mistral
    {"name": ..., "parameters": {...}}                           Llama 3

A template that does not read `tools` gets them in the system message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plainformer.serve.errors import invalid

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MISTRAL = "[TOOL_CALLS]"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ABOUT = """You may call these functions. To call one, answer with a JSON object within <tool_call></tool_call> tags:
<tool_call>
{{"name": NAME, "arguments": {{...}}}}
</tool_call>
<tools>
{}
</tools>"""


@dataclass(frozen=True)
class Toolbox:
    """The tools of a request.

    Attributes:
        tools: as given. forced: names of which one must be called; empty: the model decides. allowed: whether it may call any.
        style: "tags", "mistral" or "json". read: whether the chat template reads the tools.
    """

    tools: tuple[Mapping[str, Any], ...]
    forced: tuple[str, ...] = ()
    allowed: bool = True
    style: str = "tags"
    read: bool = True

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages as the template gets them: with the tools where it does not read them."""
        told = [dict(message) for message in messages]
        if self.read or not self.tools or not self.allowed:
            return told
        about = _ABOUT.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in self.tools))
        told = [_without_calls(message) for message in told]
        if told and told[0].get("role") == "system":
            told[0]["content"] = f"{told[0].get('content') or ''}\n\n{about}".strip()
            return told
        return [{"role": "system", "content": about}, *told]

    def options(self) -> dict[str, Any]:
        """Return options of the task: tools for a template that reads them, and the grammar of a call that must be."""
        found: dict[str, Any] = {}
        if self.read and self.tools and self.allowed:
            found["tools"] = list(self.tools)
        if self.forced:
            found["json_schema"] = self.schema()
            if self.style != "json":
                found["answer_prefix"] = OPEN + "\n" if self.style == "tags" else MISTRAL
        return found

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of a call that must be; with Mistral's style, a list of one."""
        argument = "parameters" if self.style == "json" else "arguments"
        calls = [
            _call_schema(tool["function"], argument) for tool in self.tools if tool["function"]["name"] in self.forced
        ]
        one = calls[0] if len(calls) == 1 else {"anyOf": calls}
        return {"type": "array", "items": one, "minItems": 1, "maxItems": 1} if self.style == "mistral" else one


def _call_schema(function: Mapping[str, Any], argument: str) -> dict[str, Any]:
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    properties = {"name": {"const": function["name"]}, argument: parameters}
    made = {"type": "object", "properties": properties, "required": ["name", argument], "additionalProperties": False}
    for name in ("$defs", "definitions"):  # references count from the root
        if name in parameters:
            made[name] = parameters[name]
    return made


def toolbox(given: Mapping[str, Any], template: str, reads: bool) -> Toolbox:
    """Return the tools of a body. `template`: the source of the chat template; `reads`: whether it reads `tools`."""
    tools, choice = given.get("tools") or [], given.get("tool_choice")
    names = [tool["function"]["name"] for tool in tools]
    for place, name in enumerate(names):
        if not _NAME.fullmatch(name):
            what = f"tools[{place}].function.name={name[:80]!r} cannot be the name of a function"
            raise invalid(f"{what}\n  → use letters, digits, _, . and -, at most 64 of them", "tools")
    if len(set(names)) != len(names):
        raise invalid("two tools have the same name\n  → give each a name of its own", "tools")
    if choice in (None, "auto", "none"):
        forced: tuple[str, ...] = ()
    elif not tools:
        raise invalid(
            f"tool_choice={choice!r} has no effect without tools\n  → give tools, or leave it out", "tool_choice"
        )
    elif choice == "required":
        forced = tuple(names)
    else:
        forced = (choice["function"]["name"],)
        if forced[0] not in names:
            raise invalid(
                f"tool_choice names {forced[0]!r}, which is not one of the tools\n  → {', '.join(names)}", "tool_choice"
            )
    if MISTRAL in template:
        style = "mistral"
    else:
        style = "json" if reads and OPEN not in template and '"parameters"' in template else "tags"
    return Toolbox(tuple(tools), forced, choice != "none", style, reads)


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its calls, or a tool's answer, as text: for templates that know neither."""
    calls = message.pop("tool_calls", None) or ()
    texts = [OPEN + "\n" + json.dumps(call["function"], ensure_ascii=False) + "\n" + CLOSE for call in calls]
    if texts:
        message["content"] = "\n".join([*([message["content"]] if message.get("content") else []), *texts])
    if message.get("role") == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"}
    return message
