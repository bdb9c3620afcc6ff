"""A Python function as a tool that a chat model may call: its JSON schema, from its signature and its docstring.

    def temperature(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> float:
        '''Return the temperature.

        Args:
            city: Where, such as "Paris, France".
            unit: Of the number.
        '''

Schemas are those of transformers (5.23, `get_json_schema`), which the templates of published models were made for.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from plainformer.errors import UsageError, a_type

_NAMES: dict[Any, str] = {
    int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null",
    list: "array", tuple: "array", dict: "object",
}  # fmt: skip
_SCALARS = (int, float, str, bool, type(None))
_SECTION = r"[\n\s]*(?:Returns:|Raises:|\Z)"


def as_tools(tools: Any) -> list[Any] | None:
    """Return tools as JSON schemas: dicts as they are, functions by their signature and docstring.

    Raises:
        UsageError: not a list of them, or a function that says too little.
    """
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise UsageError(f"the tools are {a_type(tools)}, not a list", "give a list of schemas or functions")
    return [tool if isinstance(tool, Mapping) else tool_schema(tool) for tool in tools]


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the schema of a function whose arguments have type hints, and a line each in a Google-style docstring."""
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        what = f"{function!r:.80} is neither a function nor a JSON schema"
        raise UsageError(what, 'give a def with type hints and a docstring, or a dict {"type": "function", ...}')
    name = function.__name__
    doc = (inspect.getdoc(function) or "").strip()
    if not doc:
        raise UsageError(f"the tool {name} has no docstring", "say in one what it does, and each argument under Args:")
    described = _arguments(doc)
    hints, required = _hints(function, name)
    returned = hints.pop("return", None)
    properties: dict[str, Any] = {}
    for argument, hint in hints.items():
        if argument not in described:
            fix = f'add "{argument}: what it is" under "Args:"'
            raise UsageError(f"the docstring of the tool {name} does not describe {argument!r}", fix)
        properties[argument] = _described(_schema(hint, name), described[argument])
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    about = re.match(r"(.*?)[\n\s]*(?:Args:|Returns:|Raises:|\Z)", doc, re.DOTALL)
    made = {"name": name, "description": about[1].strip() if about else None, "parameters": parameters}
    return {"type": "function", "function": made | _returned(returned, doc, name)}


def _arguments(doc: str) -> dict[str, str]:
    """Return what a docstring says of each argument, in one line each."""
    block = re.search(rf"\n\s*Args:\n(.*?){_SECTION}", doc, re.DOTALL)
    lines = [line for line in block[1].split("\n") if line.strip()] if block else []
    found: dict[str, list[str]] = {}
    indent, current = None, None
    for line in lines:
        depth = len(line) - len(line.lstrip(" \t"))
        named = re.match(r"[ \t]*(\w+):\s*(.*)", line)
        if named and (indent is None or depth <= indent):
            indent, current = depth, named[1]
            found[current] = [named[2].strip()]
        elif current is not None:
            found[current].append(line.strip())
    return {name: " ".join(part for part in parts if part) for name, parts in found.items()}


def _hints(function: Callable[..., Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """Return the type of each argument (and "return"), and which have no default."""
    parameters = dict(inspect.signature(function).parameters)
    first = next(iter(parameters), None)
    if first in ("self", "cls") and parameters[first].annotation is inspect.Parameter.empty:
        del parameters[first]
    for argument, parameter in parameters.items():
        if parameter.annotation is inspect.Parameter.empty:
            raise UsageError(
                f"the argument {argument!r} of the tool {name} has no type", f'for example "{argument}: str"'
            )
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError) as error:
        raise UsageError(f"the types of the tool {name} cannot be read: {error}", "name types that exist") from None
    wanted = [argument for argument, p in parameters.items() if p.default is inspect.Parameter.empty]
    return {key: hint for key, hint in hints.items() if key in parameters or key == "return"}, wanted


def _returned(hint: Any, doc: str, name: str) -> dict[str, Any]:
    """Return the entry about the answer; a type that JSON has not is left out."""
    if hint is None:
        return {}
    try:
        schema = _schema(hint, name)
    except UsageError:
        return {}
    said = re.search(r"\n\s*Returns:\n\s*(.*?)[\n\s]*(?:Raises:|\Z)", doc, re.DOTALL)
    return {"return": {**schema, "description": said[1].strip()} if said else schema}


def _described(schema: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a schema with its description, whose "(choices: [...])" at the end becomes an enum."""
    choices = re.search(r"\(choices:\s*(.*?)\)\s*$", text, re.IGNORECASE)
    if choices is None:
        return {**schema, "description": text}
    try:
        listed = json.loads(choices[1])
    except ValueError:
        raise UsageError(f"{choices[0]!r} is not a JSON list", 'write (choices: ["a", "b"])') from None
    values = [value.strip() if isinstance(value, str) else value for value in listed]
    return {**schema, "enum": values, "description": text[: choices.start()].strip()}


def _schema(hint: Any, name: str) -> dict[str, Any]:
    """Return the JSON schema of a type."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin is None and isinstance(hint, type) and issubclass(hint, Enum):
        return _enum([member.value for member in hint], hint, name)
    bare = origin if origin is not None and not args else hint  # typing.List without its items
    if isinstance(bare, type) and bare in _NAMES:
        return {"type": _NAMES[bare]}
    if origin in (Union, types.UnionType):
        return _union([_schema(arg, name) for arg in args if arg is not type(None)], nullable=type(None) in args)
    if origin is Literal:
        return _enum(list(args), hint, name)
    if origin is list:
        return {"type": "array", "items": _schema(args[0], name)}
    if origin is tuple and len(args) > 1 and ... not in args:
        return {"type": "array", "prefixItems": [_schema(arg, name) for arg in args]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(args[1], name)}
    raise _no_type(hint, name)


def _union(each: list[dict[str, Any]], *, nullable: bool) -> dict[str, Any]:
    if len(each) == 1:
        made = each[0]
    elif all(one.keys() == {"type"} and isinstance(one["type"], str) for one in each):
        kinds = sorted({one["type"] for one in each})
        made = {"type": kinds[0] if len(kinds) == 1 else kinds}
    else:
        made = {"anyOf": each}
    return {**made, "nullable": True} if nullable else made


def _enum(values: list[Any], hint: Any, name: str) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise _no_type(hint, name)
    kinds = list(dict.fromkeys(_NAMES[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _no_type(hint: Any, name: str) -> UsageError:
    fix = "use int, float, str, bool, Literal, an Enum, list, dict or tuple of them; or write the schema by hand"
    return UsageError(f"the type {hint!r:.80} of the tool {name} has no JSON schema", fix)
