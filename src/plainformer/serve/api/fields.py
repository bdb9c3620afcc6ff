"""Tables of the fields that bodies of requests have: each field says its JSON schema, its help, and what it is without effect.

The schema checks values and is published in /openapi.json; so what is documented is what holds. Fields that are options of the
library are made of the fields of its dataclasses (`option_fields`), which the command line's flags are made of, too.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin

from plainformer.config.declared import declared
from plainformer.config.options import OptionSet, Spec, cached, specs
from plainformer.errors import did_you_mean, spelt
from plainformer.serve.errors import Refusal, invalid

Schema = Mapping[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
ANY: Schema = {}
OBJECT: Schema = {"type": "object"}
MAX_INT = 2**63 - 1


def whole(least: int = 0, most: int = MAX_INT) -> Schema:
    """Return the schema of a whole number."""
    return {"type": "integer", "minimum": least, "maximum": most}


def number(least: float | None = None, most: float | None = None) -> Schema:
    """Return the schema of a number."""
    bounds = {"minimum": least, "maximum": most}
    return {"type": "number", **{name: end for name, end in bounds.items() if end is not None}}


def words(*choices: str) -> Schema:
    """Return the schema of one of these words."""
    return {"type": "string", "enum": list(choices)}


def list_of(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    """Return the schema of a list."""
    bounds = {"minItems": least} if most is None else {"minItems": least, "maxItems": most}
    return {"type": "array", "items": items, **bounds}


def either(*schemas: Schema) -> Schema:
    """Return the schema of what is any of these."""
    return {"anyOf": list(schemas)}


TEXT_OR_TEXTS = either(TEXT, list_of(TEXT, 1))
_IDS = list_of(whole(0), 1)
TEXTS_OR_IDS = either(TEXT, list_of(TEXT, 1), _IDS, list_of(_IDS, 1))


@dataclass(frozen=True)
class Field:
    """A field of a body.

    Attributes:
        name: of the field. schema: of its values; null always means that it is not given. help: one sentence.
        required: whether a body must have it. neutral: values that mean the same as its absence.
        takes: the values that are taken, where others are known to clients and refused; with `why` in the message.
        default: what holds without it, for the documentation.
    """

    name: str
    schema: Schema
    help: str
    required: bool = False
    neutral: tuple[Any, ...] = ()
    why: str = ""
    default: Any = None

    @property
    def is_refused(self) -> bool:
        """Whether it is known and taken with its neutral values alone."""
        return bool(self.why)

    def published(self) -> dict[str, Any]:
        """Return its schema as clients read it."""
        made = {**self.schema, "description": self.help + (f" {self.why}" if self.why else "")}
        if self.default is not None:
            made["default"] = self.default
        if not self.required and "enum" not in made and isinstance(made.get("type"), str):
            made["type"] = [made["type"], "null"]
        elif not self.required and "anyOf" in made:
            made["anyOf"] = [*made["anyOf"], {"type": "null"}]
        elif not self.required and "enum" in made:
            made = {**made, "type": [made["type"], "null"], "enum": [*made["enum"], None]}
        return made


# What clients send that changes nothing of an answer: accounts, storage, routing.
INERT = frozenset(
    (
        "user",
        "store",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "verbosity",
    )
)


class Table:
    """The fields of one route."""

    def __init__(self, *fields: Field) -> None:
        self.fields = {field.name: field for field in fields}

    def read(self, body: Mapping[str, Any], *, unknown: str = "error", where: str = "") -> dict[str, Any]:
        """Return the fields that are given and not neutral, checked. `unknown`: "error" or "ignore"."""
        found: dict[str, Any] = {}
        for name, value in body.items():
            field = self.fields.get(name)
            if field is None:
                if name not in INERT and unknown == "error":
                    raise self._unknown(name, where)
                continue
            if value is None or any(value == one and type(value) is type(one) for one in field.neutral):
                continue
            if field.is_refused:
                raise invalid(f"{where}{name} is not supported: {field.why}\n  → leave it out", name)
            check(value, field.schema, f"{where}{name}")
            found[name] = value
        for field in self.fields.values():
            if field.required and field.name not in found:
                raise invalid(f"{where}{field.name} is missing\n  → {field.help}", field.name, "missing_field")
        return found

    def _unknown(self, name: str, where: str) -> Refusal:
        hint = did_you_mean(name, self.fields, few=False) or "see /openapi.json for the fields of this route"
        return invalid(f"{where}{name[:80]} is not a field that this route has\n  → {hint}", name[:80], "unknown_field")

    def published(self) -> dict[str, Any]:
        """Return the JSON schema of a body."""
        properties = {field.name: field.published() for field in self.fields.values()}
        required = [field.name for field in self.fields.values() if field.required]
        return {"type": "object", "properties": properties, **({"required": required} if required else {})}


# ---- values against schemas ---------------------------------------------------------------------------------------------

_KINDS: dict[str, Any] = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}
_NAMES = {
    "string": "a text",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "integer": "a whole number",
}


def check(value: Any, schema: Schema, where: str) -> None:
    """Refuse a value that a schema does not describe; the schemas of this package use a dozen keywords, which are all here."""
    if "anyOf" in schema:
        _check_any(value, schema["anyOf"], where)
        return
    kind = schema.get("type")
    kinds = [kind] if isinstance(kind, str) else list(kind or ())
    if "integer" in kinds and type(value) is int and abs(value) > MAX_INT + 1:
        raise _wrong(where, value, f"is beyond {MAX_INT:,}", f"give {_interval(schema) or 'a smaller number'}")
    if kinds and not any(_is(value, one) for one in kinds):
        wanted = " or ".join(_NAMES.get(one, f"a {one}") for one in kinds)
        raise _wrong(where, value, f"is not {wanted}", f"give {wanted}")
    if "enum" in schema and value not in schema["enum"]:
        listed = ", ".join(map(str, schema["enum"]))
        raise _wrong(
            where, value, "is not known", did_you_mean(str(value), map(str, schema["enum"])) or f"give one of {listed}"
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_bounds(value, schema, where)
    if isinstance(value, list):
        _check_list(value, schema, where)
    if isinstance(value, dict):
        _check_object(value, schema, where)


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return whole and not isinstance(value, bool) and abs(value) <= MAX_INT + 1
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, _KINDS[kind])


def _check_any(value: Any, schemas: Sequence[Schema], where: str) -> None:
    failures = []
    for schema in schemas:
        try:
            check(value, schema, where)
        except Refusal as refusal:
            failures.append((_depth(value, schema), refusal))
        else:
            return
    raise max(failures, key=lambda one: one[0])[1]  # of the one whose kind it is


def _depth(value: Any, schema: Schema) -> int:
    """Return how far a value is of a schema's kind: a list, then a list of such items. Every number is meant as a whole one."""
    kind = schema.get("type")
    if not isinstance(kind, str) or not (_is(value, kind) or (kind == "integer" and isinstance(value, int | float))):
        return 0
    return 1 + (_depth(value[0], schema.get("items", ANY)) if isinstance(value, list) and value else 0)


def _check_bounds(value: float, schema: Schema, where: str) -> None:
    bounds = (
        ("minimum", lambda end: value < end, "less than"),
        ("maximum", lambda end: value > end, "more than"),
        ("exclusiveMinimum", lambda end: value <= end, "not more than"),
        ("exclusiveMaximum", lambda end: value >= end, "not less than"),
    )
    for name, is_outside, said in bounds:
        if name in schema and is_outside(schema[name]):
            raise _wrong(where, value, f"is {said} {schema[name]:,}", f"give {_interval(schema)}")


def _interval(schema: Schema) -> str:
    low = next(
        (
            f"{word} {schema[name]:,}"
            for name, word in (("minimum", "from"), ("exclusiveMinimum", "more than"))
            if name in schema
        ),
        "",
    )
    high = next(
        (
            f"{word} {schema[name]:,}"
            for name, word in (("maximum", "to"), ("exclusiveMaximum", "less than"))
            if name in schema
        ),
        "",
    )
    return " ".join(part for part in (low, high) if part)


def _check_list(value: list[Any], schema: Schema, where: str) -> None:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if len(value) < least:
        raise _wrong(where, ..., f"has {len(value)} items, fewer than {least}", "give more")
    if most is not None and len(value) > most:
        raise _wrong(where, ..., f"has {len(value):,} items, more than {most:,}", "give fewer")
    for place, one in enumerate(value):
        check(one, schema.get("items", ANY), f"{where}[{place}]")


def _check_object(value: dict[str, Any], schema: Schema, where: str) -> None:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            raise invalid(f"{where} has no {name!r}\n  → add it", where, "missing_field")
    for name, one in value.items():
        if name in properties:
            check(one, properties[name], f"{where}.{name}")
        elif schema.get("additionalProperties") is False:
            hint = did_you_mean(name, properties) or "leave it out"
            raise invalid(f"{where}.{name[:80]} is not known\n  → {hint}", where, "unknown_field")
        elif isinstance(schema.get("additionalProperties"), Mapping):
            check(one, schema["additionalProperties"], f"{where}.{name[:80]}")


def _wrong(where: str, value: Any, why: str, fix: str) -> Refusal:
    shown = "" if value is ... else f"={str(value)[:80]!r}" if isinstance(value, str) else f"={str(value)[:80]}"
    return invalid(f"{where}{shown} {why}\n  → {fix}", where.split("[")[0].split(".")[0])


# ---- fields made of the library's options -------------------------------------------------------------------------------

# Options that are code, objects of Python or paths, and those that the engine decides.
# fmt: off
NOT_SERVED = frozenset((
    "stop_when", "allowed_tokens", "processors", "cache", "watermark", "negative_ids", "order", "batch_size", "sampling_rate",
    "draft_model", "num_draft_tokens", "ngram", "ngram_weight", "sequence_bias", "cache_kind", "prefill_chunk", "on_error",
))
# fmt: on
_LISTS = ("words",)  # of which a text would be the path of a file


@cached
def option_fields(kind: type[OptionSet]) -> tuple[Field, ...]:
    """Return the options of a task that can be given over HTTP, as fields."""
    defaults = {f.name: f.default for f in fields(kind)}
    found = []
    for name, spec in specs(kind).items():
        schema = None if name in NOT_SERVED else _schema_of(kind, name, spec)
        if schema is not None:
            default = defaults[name]
            plain = default if isinstance(default, bool | int | float | str) and default != "" else None
            help = spelt(spec.help, lambda option, value: option if value is None else f"{option}={value}")
            found.append(Field(name, schema, help, required=default is MISSING, default=plain))
    return tuple(found)


def _schema_of(kind: type[OptionSet], name: str, spec: Spec) -> Schema | None:
    """Return the schema of an option's values; None where no JSON is one."""
    if name in _LISTS:
        return list_of(TEXT)
    owner: Any = kind  # mypy takes a class of dataclasses for one that has no hash
    made = _of_type(declared(owner, name))
    if made is None:
        return None
    bounds = getattr(spec.check, "schema", {})
    one_kind = made.get("type") in ("integer", "number", "string")
    return {**made, **bounds} if one_kind else made


def _of_type(kind: Any) -> dict[str, Any] | None:
    origin, inner = get_origin(kind), get_args(kind)
    simple = {str: "string", bool: "boolean", int: "integer", float: "number"}
    if kind in simple:
        return {"type": simple[kind]}
    if kind is Any:
        return None
    if origin in (Union, types.UnionType):
        found = [one for one in (_of_type(each) for each in inner if each is not type(None)) if one is not None]
        return None if not found else found[0] if len(found) == 1 else {"anyOf": found}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple and inner and inner[-1] is not ...:
        return {"type": "array", "minItems": len(inner), "maxItems": len(inner)}
    if origin is Sequence or origin is tuple:
        items = {} if inner[0] is Any else _of_type(inner[0])
        return None if items is None else {"type": "array", "items": items}
    if origin is Mapping:
        return {"type": "object"} if inner[0] is str else None
    return None


def table_of(kind: type[OptionSet]) -> Table:
    """Return the table of a task's options."""
    return Table(*option_fields(kind))
