"""YAML 1.2 as plain data, against ruamel's own reading of it and against the lists of the specification."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from plainformer.config.yaml import MAX_BYTES, parse_yaml, read_yaml, resolved_scalar, write_yaml
from plainformer.errors import InputError


def refused(text: str, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "run.yaml")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text", ["no", "on", "off", "yes", "12:30", "1_000", "0b1", "2024-01-01", "1e", ".e3", "0x", "-", "="]
)
def test_what_yaml_1_1_reads_otherwise_is_text(text: str) -> None:
    assert parse_yaml(f"x: {text}").data == {"x": text} if text != "-" else resolved_scalar("-") == "-"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3", 3),
        ("+3", 3),
        ("-0", 0),
        ("012", 12),
        ("0o14", 12),
        ("0xC", 12),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("12e03", 12000.0),
        ("~", None),
        ("", None),
        ("Null", None),
        ("TRUE", True),
        ("False", False),
    ],
)
def test_scalars_of_the_core_schema(text: str, value: Any) -> None:
    """The table of YAML 1.2.2, 10.3.2."""
    found = parse_yaml(f"x: {text}").data["x"]
    assert found == value and type(found) is type(value)
    assert parse_yaml(f"x: '{text}'").data == {"x": text}  # quoted, it is a text


def test_a_number_that_is_none_is_one() -> None:
    assert math.isnan(parse_yaml("x: .nan").data["x"])


def test_every_key_has_its_line() -> None:
    text = "# run\na: 1\nb:\n  c: [1,\n    2]\n  'no': &x {d: 1}\ne: *x\n"
    found = parse_yaml(text, "run.yaml")
    assert found.data == {"a": 1, "b": {"c": [1, 2], "no": {"d": 1}}, "e": {"d": 1}}
    lines = {
        ("a",): 2,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "c", 0): 4,
        ("b", "c", 1): 5,
        ("b", "no"): 6,
        ("b", "no", "d"): 6,
    }
    assert found.lines == {**lines, ("e",): 7, ("e", "d"): 6 + 0}
    assert found.place(("b", "no", "missing")) == "run.yaml line 6"


def test_keys_are_as_they_are_written() -> None:
    """As in JSON, where keys are texts: `id2label: {0: negative}` is what a config.json has."""
    assert parse_yaml("{0: a, no: b, 1.50: c, true: d}").data == {"0": "a", "no": "b", "1.50": "c", "true": "d"}


def test_a_key_twice_names_both_lines() -> None:
    refused("length:\n  epochs: 1\n  steps: 2\n  epochs: 3\n", "run.yaml line 4", "'epochs'", "line 2")
    refused("{a: 1, a: 1}", "line 1")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\nb: c: d", ("run.yaml line 2", "quote")),
        ("a:\n\t- b", ("line 2", "not with tabs")),
        ("a: [1,\n2", ("line 2",)),
        ("a: 'x", ("line 1",)),
        ("a: 1\nb: \x00", ("line 2", "#x0000")),
        ("a: @x", ("line 1", "quote")),
        ("a: *x", ("line 1", "no anchor &x")),
        ("a: &a [*a]", ("line 1", "no anchor &a")),
        ("%YAML 1.1\n---\na: no", ("1.2",)),
        ("a: 1\n---\nb: 2", ("line 2", "second document")),
        ("<<: {a: 1}", ("merge",)),
        ("? [a]\n: b", ("line 1", "key")),
        ("a: !!python/object/apply:os.system [x]", ("line 1", "!!python/object/apply:os.system")),
        ("a: !!str 1", ("!!str",)),
        ("[" * 9000, ("nested too deep",)),
        ("a: " + "{b: " * 70 + "1" + "}" * 70, ("nested too deep",)),
    ],
)
def test_what_is_not_taken_is_named_with_its_line(text: str, parts: tuple[str, ...]) -> None:
    refused(text, *parts)


def test_anchors_cannot_multiply_without_end() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    refused("\n".join(lines), "more than 100,000 values")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    bad, long, empty, listed = (tmp_path / f"{name}.yaml" for name in ("bad", "long", "empty", "list"))
    bad.write_bytes(b"a: caf\xe9")
    long.write_bytes(b"#" * (MAX_BYTES + 1))
    empty.write_text("# nothing\n")
    listed.write_text("- a")
    marked = tmp_path / "marked.yaml"
    marked.write_bytes("\ufeffa: é\r\nb: 2\r\n".encode())
    assert read_yaml(marked).data == {"a": "é", "b": 2}
    cases = [
        (bad, "UTF-8"),
        (long, "longer than"),
        (empty, "is empty"),
        (listed, "is a list"),
        (tmp_path, "is a folder"),
    ]
    for path, part in [*cases, (tmp_path / "none.yaml", "No such file"), (tmp_path / "\0", "cannot be read")]:
        with pytest.raises(InputError, match=part):
            read_yaml(path)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
DATA = st.dictionaries(
    st.text(), st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else bool(a == b)


@settings(max_examples=100, deadline=None)
@given(DATA)
def test_what_is_written_reads_back(data: dict[str, Any]) -> None:
    assert same(parse_yaml(write_yaml(data)).data or {}, data)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), SCALARS | st.lists(SCALARS), min_size=1))
def test_ruamel_reads_the_same(data: dict[str, Any]) -> None:
    """Its resolver is another than ours: what needs quotes in either has them."""
    assert same(dict(YAML(typ="safe", pure=True).load(write_yaml(data))), data)


def test_comments_stand_above_their_keys() -> None:
    text = write_yaml({"a": {"b": 1, "c": {}}, "d": ["x", 2.0]}, {("a",): "of a", ("a", "b"): "of b"})
    assert text == "# of a\na:\n  # of b\n  b: 1\n  c: {}\nd: [x, 2.0]\n"
