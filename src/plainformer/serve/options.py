"""From the names of OpenAI's interface to the library's options of generation.

A temperature of 0 is the likeliest token, above 0 sampling. Without one, the checkpoint's own settings hold, and where it has
none, sampling at temperature 1, which is OpenAI's default (`--defaults plain`: the likeliest token). Samplers beside a temperature
of 0 have no effect: clients send both, so they are dropped, and named in the response's warnings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plainformer.generation.options import SAMPLERS
from plainformer.serve.api.fields import (
    FLAG,
    MAX_INT,
    OBJECT,
    TEXT,
    Field,
    Schema,
    Table,
    either,
    list_of,
    number,
    option_fields,
    whole,
    words,
)
from plainformer.serve.errors import invalid
from plainformer.tasks.writing.checkpoint_defaults import says_how
from plainformer.tasks.writing.options import CONSTRAINTS, Text2TextOptions, TextGenerationOptions

MOST_ANSWERS, MOST_STOPS, MOST_LIKELY = 8, 16, 20
_BIASES: Schema = {"type": "object", "additionalProperties": number(-100, 100)}
FORMAT: Schema = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": words("text", "json_object", "json_schema"),
        "json_schema": {
            "type": "object",
            "required": ["schema"],
            "properties": {
                "name": TEXT,
                "description": TEXT,
                "schema": OBJECT,
                "strict": {"type": ["boolean", "null"]},
            },
        },
    },
}
_STREAM_OPTIONS: Schema = {
    "type": "object",
    "properties": {"include_usage": FLAG, "include_obfuscation": FLAG},
    "additionalProperties": False,
}
# What both of OpenAI's routes that write have in common.
SHARED = (
    Field("model", TEXT, "Name of a served model; without it, the first that can do this."),
    Field("temperature", number(0), "0 takes the likeliest token; above 0 sampling, sharper below 1."),
    Field("top_p", number(0, 1), "Keep the likeliest tokens that together have this probability.", neutral=(1, 1.0)),
    Field("top_k", whole(0), "Keep the k likeliest tokens.", neutral=(0,)),
    Field(
        "min_p", number(0, 1), "Keep tokens of at least this share of the likeliest's probability.", neutral=(0, 0.0)
    ),
    Field(
        "presence_penalty", number(-2, 2), "Subtract this from the logits of tokens that occurred.", neutral=(0, 0.0)
    ),
    Field("frequency_penalty", number(-2, 2), "Subtract this for each time that a token occurred.", neutral=(0, 0.0)),
    Field(
        "repetition_penalty",
        {"type": "number", "exclusiveMinimum": 0},
        "Above 1: tokens that occurred are less likely.",
        neutral=(1, 1.0),
    ),
    Field("logit_bias", _BIASES, "Token ids and what is added to their logits.", neutral=({},)),
    Field(
        "seed", whole(-(2**63)), "The same seed gives the same answer; without one, the response says which was drawn."
    ),
    Field(
        "stop",
        either(TEXT, list_of(TEXT, 0, MOST_STOPS)),
        "Texts that end the answer and are not part of it.",
        neutral=("", []),
    ),
    Field("n", whole(1, MOST_ANSWERS), "Answers to each prompt.", neutral=(1,), default=1),
    Field("max_tokens", whole(1), "New tokens at most."),
    Field("min_tokens", whole(0), "No end before this many new tokens.", neutral=(0,)),
    Field("stream", FLAG, "Send the answer while it is written.", neutral=(False,), default=False),
    Field(
        "stream_options", _STREAM_OPTIONS, "include_usage: count tokens in a last event of their own.", neutral=({},)
    ),
)
_RENAMED = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
_SAMPLING = (*SAMPLERS, "seed")


def writing_table(*own: Field) -> Table:
    """Return the table of a route that writes: its own fields, the shared ones, and the options that have no other name."""
    known = {one.name: one for one in (*own, *SHARED)}
    other = [one for kind in (TextGenerationOptions, Text2TextOptions) for one in option_fields(kind)]
    hidden = {*known, "num_return_sequences", "defaults"}
    return Table(*known.values(), *{one.name: one for one in other if one.name not in hidden}.values())


@dataclass
class Asked:
    """What a body asks of the engine.

    Attributes:
        options: of the task. n: answers. logprobs: how many of the likeliest tokens are wanted; None: no log-probabilities.
        warnings: what of the body had no effect.
    """

    options: dict[str, Any] = field(default_factory=dict)
    n: int = 1
    logprobs: int | None = None
    warnings: list[str] = field(default_factory=list)


# Fields of the routes that a task has no option for, or one of another kind.
NOT_OPTIONS = [
    "model",
    "messages",
    "prompt",
    "stream",
    "stream_options",
    "n",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "echo",
    "best_of",
    "suffix",
    "temperature",
    "functions",
    "function_call",
    "modalities",
    "reasoning_effort",
]


def asked_of(given: Mapping[str, Any], *, settings: Mapping[str, Any], defaults: str, max_schema: int) -> Asked:
    """Return what the checked fields of a body ask for.

    Args:
        settings: of the checkpoint, its generation_config.json. defaults: of the server, "checkpoint" or "plain".
        max_schema: bytes of a definition of what the answer may be.
    """
    asked = Asked(n=given.get("n", 1))
    for name, value in given.items():
        if name not in NOT_OPTIONS:
            _put(asked.options, _RENAMED.get(name, name), value, name)
    if asked.options.get("min_new_tokens", 0) > asked.options.get("max_new_tokens", MAX_INT):
        raise invalid("min_tokens is more than max_tokens\n  → give less, or leave it out", "min_tokens")
    if (biases := given.get("logit_bias")) is not None:
        asked.options["sequence_bias"] = {(_id_of(key),): float(value) for key, value in biases.items()}
    if (shape := given.get("response_format")) is not None:
        _constrain(asked.options, shape)
    for name in CONSTRAINTS:
        if len(json.dumps(asked.options.get(name))) > max_schema:
            what = f"{name} is larger than {max_schema:,} bytes"
            raise invalid(
                f"{what}\n  → give a smaller one, or start the server with a higher --max-schema",
                name,
                "unsupported_schema",
            )
    _choose_mode(asked, given.get("temperature"), settings, defaults)
    return asked


def _put(options: dict[str, Any], name: str, value: Any, called: str) -> None:
    if options.get(name, value) != value:
        what = f"{called}={value} and another name of it with {options[name]} contradict each other"
        raise invalid(f"{what}\n  → give one of them", called)
    options[name] = value


def _id_of(key: str) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > 10:
        raise invalid(
            f"logit_bias has the key {key[:40]!r}, which is not a token id\n  → /v1/tokenize gives the ids of a text",
            "logit_bias",
        )
    return int(key)


def _constrain(options: dict[str, Any], shape: Mapping[str, Any]) -> None:
    kind = shape["type"]
    others = [name for name in CONSTRAINTS if name in options]
    if kind != "text" and others:
        raise invalid(f"response_format and {others[0]} exclude each other\n  → give one of them", "response_format")
    if kind == "json_object":
        options["json_schema"] = {"type": "object"}
    elif kind == "json_schema":
        if "json_schema" not in shape:
            raise invalid(
                'response_format has no "json_schema"\n  → {"type": "json_schema", "json_schema": {"schema": …}}',
                "response_format",
            )
        options["json_schema"] = shape["json_schema"]["schema"]


def _choose_mode(asked: Asked, temperature: float | None, settings: Mapping[str, Any], defaults: str) -> None:
    """Say whether tokens are drawn, which the options of the library want to know before any sampler."""
    options = asked.options
    searches = options.get("num_beams", 1) > 1 or "penalty_alpha" in options
    if temperature == 0:
        for name in [name for name in options if name in _SAMPLING and not (name == "top_k" and searches)]:
            if name != "seed":  # the likeliest token needs none
                asked.warnings.append(f"{name} has no effect with temperature 0")
            del options[name]
        options["do_sample"] = False
        return
    if temperature is not None:
        options.update(do_sample=True, temperature=temperature)
    elif defaults == "checkpoint" and "do_sample" not in options and not searches:
        options["do_sample"] = bool(settings.get("do_sample", (settings.get("num_beams") or 1) == 1))
    if options.get("temperature") == 1:
        del options["temperature"]
    if defaults == "checkpoint" and says_how(settings):
        options["defaults"] = "checkpoint"
    if not options.get("do_sample") and not searches:
        options.pop("seed", None)
