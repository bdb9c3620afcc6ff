"""YAML 1.2 as plain data with the line of every key, and plain data as YAML that reads back as exactly the same.

The parser is ruamel's; what a scalar means is decided here, by the core schema of YAML 1.2 (yaml.org/spec/1.2.2, chapter
10.3): `no` and `12:30` are texts, `1e-4` is a number. Data alone is read: a tag, which could name an object, is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plainformer.config.values import decode_text
from plainformer.errors import InputError

Keys = tuple[str | int, ...]  # the way to a value: the keys of mappings and the places in lists
MAX_BYTES = 1 << 20  # a configuration is a few kilobytes; a file of more is another one
_MAX_VALUES, _MAX_DEPTH = 100_000, 60

_NULL = {"", "~", "null", "Null", "NULL"}
_FLAGS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_SPECIAL = {".nan": math.nan, ".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf}
_WHOLE = re.compile(r"[-+]?[0-9]{1,4000}")  # Python reads no more digits
_OCTAL, _HEX = re.compile(r"0o[0-7]{1,4000}"), re.compile(r"0x[0-9a-fA-F]{1,4000}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass
class Written:
    """Plain data and where it is written.

    Attributes:
        data: mappings, lists, texts, numbers, True, False and None. name: of the file, "" where there is none.
        lines: the line of each key and of each element of a list, counted from 1.
    """

    data: Any
    name: str = ""
    lines: dict[Keys, int] = field(default_factory=dict)

    def place(self, keys: Keys) -> str:
        """Return where a value is: "train.yaml line 7"; for one that is not there, where what should hold it is."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.name} line {self.lines[keys]}" if keys in self.lines else self.name


def read_yaml(path: str | Path) -> Written:
    """Return what a YAML file holds, which is a mapping.

    Raises:
        InputError: no such file, not UTF-8, not YAML, a key twice, a tag; with the line.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise InputError(f"{str(path)!r} is a folder", "give the YAML file in it")
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, InputError):
            raise
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"the configuration {str(path)!r} cannot be read: {why}", "check the path") from None
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{path} is longer than {MAX_BYTES // 2**20} MiB", "a configuration is a few kilobytes of YAML"
        )
    written = parse_yaml(decode_text(data, path), str(path))
    if not isinstance(written.data, dict):
        found = "a list" if isinstance(written.data, list) else "empty" if written.data is None else "a single value"
        raise InputError(f"{path} is {found}, not a mapping", "write `key: value` lines")
    return written


def parse_yaml(text: str, name: str = "") -> Written:
    """Return what a YAML text holds; `name` stands for it in messages. Raises InputError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        node = _Composer(YAML(typ="safe", pure=True).parse(text), name).document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not YAML"
        raise InputError(f"{_at(name, mark.line + 1)}: {problem}", _hint(problem)) from None
    except YAMLError as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        what = str(error).partition("\n")[0]
        raise InputError(f"{_at(name, line)}: {what}", "save the file as plain UTF-8 text") from None
    except RecursionError:
        raise InputError(f"{name or 'the YAML'} is nested too deep", f"nest at most {_MAX_DEPTH} deep") from None
    written = Written(None, name)
    written.data = _plain(node, (), written.lines)
    return written


def _at(name: str, line: int) -> str:
    return f"{name} line {line}" if name else f"line {line}"


def _hint(problem: str) -> str:
    if "'\\t'" in problem:
        return "indent with blanks, not with tabs"
    if "mapping values are not allowed" in problem:
        return 'indent the keys of a mapping alike, and quote a text with ": " in it'
    if "cannot start any token" in problem or "alphabetic or numeric" in problem:
        return 'quote a text that begins with @, `, %, &, * or !: "@name"'
    return "see yaml.org/spec/1.2.2; quote texts with special characters"


@dataclass
class _Node:
    """A value before it is plain data; `size` counts it and all within, since an anchor may be used again and again."""

    value: Any  # a scalar, dict[str, _Node] or list[_Node]
    lines: dict[str, int] = field(default_factory=dict)  # of a mapping's keys
    line: int = 0
    size: int = 1


class _Composer:
    """Makes nodes of the parser's events."""

    def __init__(self, events: Iterator[Any], name: str) -> None:
        self.events, self.name = events, name
        self.anchors: dict[str, _Node] = {}

    def document(self) -> _Node:
        """Return the only document."""
        next(self.events)  # the stream starts
        start = next(self.events)
        if type(start).__name__ == "StreamEndEvent":
            return _Node(None)
        if start.version is not None and start.version != (1, 2):
            raise self._error(start, "%YAML 1.1 is another language", "leave the line out: this is read as YAML 1.2")
        found = self._node(next(self.events), 0)
        next(self.events)  # the document ends
        after = next(self.events)
        if type(after).__name__ != "StreamEndEvent":
            raise self._error(after, "a second document begins", "one file is one configuration: take `---` out")
        return found

    def _node(self, event: Any, depth: int) -> _Node:
        kind, line = type(event).__name__, event.start_mark.line + 1
        if kind == "AliasEvent":
            if event.anchor not in self.anchors:
                raise self._error(
                    event, f"there is no anchor &{event.anchor} before *{event.anchor}", 'quote a text: "*"'
                )
            return self.anchors[event.anchor]
        if event.tag is not None:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            raise self._error(event, f"the tag {tag} is not taken", "write plain data; quote a text that begins with !")
        if depth > _MAX_DEPTH:
            raise self._error(event, "nested too deep", f"nest at most {_MAX_DEPTH} deep")
        if kind == "ScalarEvent":
            made = _Node(resolved_scalar(event.value) if event.implicit[0] else event.value)
        elif kind == "SequenceStartEvent":
            made = self._list(depth)
        else:
            made = self._mapping(depth)
        made.line = line
        if made.size > _MAX_VALUES:
            raise self._error(event, f"more than {_MAX_VALUES:,} values", "a configuration is a few kilobytes of YAML")
        if event.anchor is not None:
            self.anchors[event.anchor] = made
        return made

    def _list(self, depth: int) -> _Node:
        values = []
        while type(event := next(self.events)).__name__ != "SequenceEndEvent":
            values.append(self._node(event, depth + 1))
        return _Node(values, size=1 + sum(one.size for one in values))

    def _mapping(self, depth: int) -> _Node:
        values: dict[str, _Node] = {}
        lines: dict[str, int] = {}
        while type(event := next(self.events)).__name__ != "MappingEndEvent":
            line = event.start_mark.line + 1
            if type(event).__name__ != "ScalarEvent" or event.tag is not None:
                raise self._error(event, "a key that is not a plain text", "write `key: value`")
            key = str(event.value)  # as it is written: `no: 1` and `0: 1` have the keys "no" and "0", as JSON would
            if key == "<<" and event.implicit[0]:
                raise self._error(event, "YAML 1.2 has no merge keys (<<)", "write the keys out")
            if key in lines:
                raise self._error(
                    event, f"the key {key!r} is there already, in line {lines[key]}", "keep one of the two"
                )
            lines[key] = line
            values[key] = self._node(next(self.events), depth + 1)
        return _Node(values, lines, size=1 + sum(one.size for one in values.values()))

    def _error(self, event: Any, what: str, fix: str) -> InputError:
        return InputError(f"{_at(self.name, event.start_mark.line + 1)}: {what}", fix)


def _plain(node: _Node, keys: Keys, lines: dict[Keys, int]) -> Any:
    """Return a node as plain data, and note the lines of what is in it."""
    if isinstance(node.value, list):
        for place, one in enumerate(node.value):
            lines[(*keys, place)] = one.line
        return [_plain(one, (*keys, place), lines) for place, one in enumerate(node.value)]
    if isinstance(node.value, dict):
        for key, line in node.lines.items():
            lines[(*keys, key)] = line
        return {key: _plain(one, (*keys, key), lines) for key, one in node.value.items()}
    return node.value


def resolved_scalar(text: str) -> Any:
    """Return what an unquoted scalar means in YAML 1.2's core schema: None, True, False, a number or the text itself."""
    if text in _NULL:
        return None
    if text in _FLAGS:
        return _FLAGS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text.lower() in _SPECIAL and text[-3:] in ("inf", "Inf", "INF", "nan", "NaN", "NAN"):
        return _SPECIAL[text.lower()]
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    return int(text, 16) if _HEX.fullmatch(text) else text


# ---- writing ------------------------------------------------------------------------------------------------------------

# A text that needs no quotes: letters, digits and what paths and names have, not only digits, no blank at an end.
_BARE = re.compile(r"[A-Za-z_/][\w./+-]*( [\w./+-]+)*", re.ASCII)


def write_yaml(data: Mapping[str, Any], comments: Mapping[Keys, str] | None = None) -> str:
    """Return plain data as YAML from which `parse_yaml` makes exactly the same; keys keep their order.

    Args:
        comments: a line to write above a key, by its keys.
    """
    return "".join(f"{line}\n" for line in _mapping_lines(data, (), comments or {}))


def _mapping_lines(data: Mapping[str, Any], keys: Keys, comments: Mapping[Keys, str]) -> Iterator[str]:
    indent = "  " * len(keys)
    for key, value in data.items():
        here = (*keys, key)
        if here in comments:
            yield f"{indent}# {comments[here]}"
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_scalar(key)}:"
            yield from _mapping_lines(value, here, comments)
        else:
            yield f"{indent}{_scalar(key)}: {_flow(value)}"


def _flow(value: Any) -> str:
    """Return a value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        special = ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        return repr(float(value)) if math.isfinite(value) else special
    if isinstance(value, int):
        return str(int(value))
    if _BARE.fullmatch(value) and isinstance(resolved_scalar(value), str):
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
