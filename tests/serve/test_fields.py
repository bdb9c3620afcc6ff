"""Bodies: JSON that leaves nothing open, and tables of fields that refuse what they do not know."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.serve.api.body import nested_deeper, parse
from plainformer.serve.api.chat import TABLE as CHAT
from plainformer.serve.api.fields import NOT_SERVED, Field, Table, check, option_fields, table_of, whole
from plainformer.serve.api.routes import ROUTES
from plainformer.serve.errors import Refusal
from plainformer.tasks import option_classes

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(ANY_JSON, st.integers(0, 4))
def test_depth_is_counted_without_parsing(value: Any, depth: int) -> None:
    assert nested_deeper(json.dumps(value).encode(), depth) is (depth_of(value) > depth)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 4_000_000,
        b'{"a":' * 800_000,
        b"[]" * 2_000_000,
        b'"[' * 2_000_000,
        b'{"a":' + b"[[" * 40 + b"]]" * 40 + b"}",
    ],
)
def test_depth_costs_no_time(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(Refusal):
        parse(data)
    assert time.process_time() - started < 3


@pytest.mark.parametrize("body", [
    b"", b"[]", b"1", b"{", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}', b'{"\\ud800": 1}',
    b"\xff{}", b'{"a": ' + b"9" * 5000 + b"}", b"{'a': 1}",
])  # fmt: skip
def test_what_is_not_json(body: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse(body)
    assert refused.value.status == 400 and refused.value.code == "invalid_json"


def test_pairs_of_surrogates_are_characters() -> None:
    assert parse(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*CHAT.fields, "user", "nothing"]), ANY_JSON, max_size=5))
def test_any_body_is_read_or_refused(body: dict[str, Any]) -> None:
    try:
        found = CHAT.read(body)
    except Refusal as refused:
        assert refused.status == 400 and refused.message
    else:
        assert "messages" in found


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([field for route in ROUTES if route.table for field in route.table.fields.values()]), ANY_JSON)
def test_what_is_published_is_what_holds(field: Field, value: Any) -> None:
    """A schema means to jsonschema what it means here; only null, which leaves a field out, is added."""
    try:
        jsonschema.validate(value, dict(field.schema))
    except jsonschema.ValidationError:
        with pytest.raises(Refusal):
            check(value, field.schema, field.name)
    else:
        if not (isinstance(value, int) and abs(value) > 2**63):
            check(value, field.schema, field.name)


def test_unknown_fields() -> None:
    table = Table(Field("max_tokens", whole(1), "Tokens."), Field("n", whole(1), "Answers.", neutral=(1,)))
    assert table.read({"max_tokens": 3, "user": "me", "n": 1, "metadata": {}}) == {"max_tokens": 3}
    with pytest.raises(Refusal, match="did you mean 'max_tokens'") as refused:
        table.read({"max_token": 3})
    assert (refused.value.param, refused.value.code) == ("max_token", "unknown_field")
    assert table.read({"max_token": 3}, unknown="ignore") == {}
    assert table.read({"n": None}) == {}
    with pytest.raises(Refusal):
        table.read({"n": True})  # 1 would be neutral; true is not 1


@pytest.mark.parametrize("kind", option_classes(), ids=lambda kind: kind.__name__)
def test_options_of_every_task_are_fields_with_schemas(kind: Any) -> None:
    fields = option_fields(kind)
    assert {field.name for field in fields}.isdisjoint(NOT_SERVED)
    for field in fields:
        jsonschema.Draft202012Validator.check_schema(field.published())
        assert field.help
    table_of(kind).published()


def test_no_option_is_a_path_or_code() -> None:
    """What the library also takes as a path is data alone here."""
    words = {field.name: field for kind in option_classes() for field in option_fields(kind)}["words"]
    check(["a", "b"], words.schema, "words")
    with pytest.raises(Refusal):
        check("/etc/passwd", words.schema, "words")
    assert {"ngram", "draft_model", "cache", "stop_when", "processors", "watermark"} <= NOT_SERVED
