"""Tool calls: found in what a model writes, however it is cut; forced where they must be; a loop of two turns by real clients."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest

from plainformer.serve.calls import CallParser, Piece
from plainformer.serve.errors import Refusal
from plainformer.serve.tools import Toolbox, toolbox
from tests.support.serving import Running

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASK: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]


def read(box: Toolbox, parts: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls of an answer that comes in parts."""
    parser = CallParser(box)
    pieces: list[Piece] = []
    for place, part in enumerate(parts):
        pieces += parser.push(part, last=place == len(parts) - 1)
    calls: list[list[str]] = []
    for piece in pieces:
        if piece.name:
            assert piece.call == len(calls) and piece.id.startswith("call_")
            calls.append([piece.name, ""])
        elif piece.call is not None:
            calls[piece.call][1] += piece.arguments
    assert parser.calls == len(calls) or not parts[-1].endswith("}")
    return "".join(piece.text for piece in pieces), [(name, arguments) for name, arguments in calls]


HERMES = 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "a \\"}{\\" b", "days": [1, {"x": 2}]}}\n</tool_call>'
ARGUMENTS = '{"city": "a \\"}{\\" b", "days": [1, {"x": 2}]}'
NOBODY = '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>'
TWO = '[TOOL_CALLS][{"name": "clock", "arguments": {}}, {"name": "clock", "arguments": {"a": 1}}]'
CASES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("tags", HERMES, "Let me see.\n", [("weather", ARGUMENTS)]),
    ("tags", HERMES + "\n" + HERMES.split("\n", 1)[1], "Let me see.\n", [("weather", ARGUMENTS)] * 2),
    ("tags", "no call <b> here", "no call <b> here", []),
    ("tags", NOBODY, NOBODY, []),
    ("tags", "<tool_call>what</tool_call>", "<tool_call>what</tool_call>", []),
    ("mistral", TWO, "", [("clock", "{}"), ("clock", '{"a": 1}')]),
    ("mistral", ' [{"name": "clock", "arguments": {}}]', "", [("clock", "{}")]),
    ("mistral", "[1] is a list", "[1] is a list", []),
    ("json", '{"name": "clock", "parameters": {"a": {}}}', "", [("clock", '{"a": {}}')]),
    ("json", "A set is {1, 2}", "A set is {1, 2}", []),
]


@pytest.mark.parametrize(("style", "answer", "text", "calls"), CASES)
def test_calls_are_found_however_the_answer_is_cut(style: str, answer: str, text: str, calls: list[Any]) -> None:
    box = Toolbox((WEATHER, CLOCK), style=style)
    assert read(box, [answer]) == (text, calls)
    assert read(box, list(answer)) == (text, calls)
    for place in range(1, len(answer), 3):
        assert read(box, [answer[:place], answer[place:]]) == (text, calls), place


def test_the_style_is_the_templates() -> None:
    assert toolbox({"tools": [CLOCK]}, "{{ '[TOOL_CALLS]' }} tools", True).style == "mistral"
    assert toolbox({"tools": [CLOCK]}, "<tool_call> tools", True).style == "tags"
    assert toolbox({"tools": [CLOCK]}, 'tools {"name": x, "parameters": y}', True).style == "json"
    assert toolbox({"tools": [CLOCK]}, "nothing", False).style == "tags"


def test_a_template_without_tools_gets_them_in_words() -> None:
    box = toolbox({"tools": [CLOCK]}, "nothing", False)
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
    told = box.messages([{"role": "system", "content": "Be brief."}, call, {"role": "tool", "content": "noon"}])
    assert told[0]["content"].startswith("Be brief.") and '"clock"' in told[0]["content"]
    assert "<tool_call>" in told[1]["content"] and "noon" in told[2]["content"] and told[2]["role"] == "user"
    assert toolbox({"tools": [CLOCK], "tool_choice": "none"}, "nothing", False).messages(ASK) == ASK


@pytest.mark.parametrize("wrong", [
    {"tool_choice": "required"}, {"tools": [CLOCK, CLOCK]},
    {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "cloc"}}},
])  # fmt: skip
def test_what_cannot_be_called(wrong: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        toolbox(wrong, "", True)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_call_is_valid(client: openai.OpenAI, choice: Any) -> None:
    given: Any = dict(model="smol", messages=ASK, tools=[WEATHER], tool_choice=choice, temperature=0, max_tokens=60)
    whole = client.chat.completions.create(**given).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    (call,) = whole.message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
    assert call.function.name == "weather" and call.type == "function" and call.id
    chunks = list(client.chat.completions.create(**given, stream=True))
    deltas = [one for chunk in chunks for one in chunk.choices[0].delta.tool_calls or ()]
    assert deltas[0].id and deltas[0].type == "function" and deltas[0].function.name == "weather"
    assert all(one.index == 0 for one in deltas) and len(deltas) > 3
    assert "".join(one.function.arguments or "" for one in deltas) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_loop_of_two_turns(client: openai.OpenAI) -> None:
    given: Any = dict(model="smol", tools=[WEATHER], temperature=0, max_tokens=60)
    first = client.chat.completions.create(messages=ASK, tool_choice="required", **given).choices[0].message
    messages = [*ASK, first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "Sunny, 25 degrees."}]
    second = client.chat.completions.create(messages=messages, tool_choice="none", **given)
    assert second.choices[0].message.content and second.choices[0].finish_reason in ("stop", "length")


def test_a_forced_call_and_a_schema_exclude_each_other(house: Running) -> None:
    body = {"messages": ASK, "tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}}
    assert house.refused("/v1/chat/completions", body)["param"] == "response_format"
