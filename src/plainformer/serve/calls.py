"""Calls of tools in what a model writes, found while it is written."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass

from plainformer.serve.tools import CLOSE, MISTRAL, OPEN, Toolbox

_BEGINNING = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*')


@dataclass
class Piece:
    """Something new of an answer: text, or a part of a call, whose first part has `name` and `id`."""

    text: str = ""
    call: int | None = None
    name: str = ""
    id: str = ""
    arguments: str = ""


class CallParser:
    """Cuts an answer into text and calls as it comes.

    It is in one of four states: "text"; "begin", before {"name": ..., "arguments":; "arguments"; and "end", before what ends a
    call. Each has a method that takes what it can of `_rest` and returns whether it got anywhere.

    Attributes:
        calls: how many have ended.
    """

    def __init__(self, box: Toolbox) -> None:
        self.style, self.forced = box.style, bool(box.forced)
        self.names = {tool["function"]["name"] for tool in box.tools} if box.allowed else set()
        self.calls = 0
        self._state = "begin" if self.forced else "text"
        self._rest = ""
        self._value = _JsonValue()
        self._is_first = True  # nothing but blanks has been written so far
        self._braced = self._after = False

    def push(self, text: str, *, last: bool = False) -> list[Piece]:
        """Return what new text adds. `last`: nothing follows, so nothing is held back."""
        if not self.names:
            return [Piece(text)] if text else []
        self._rest += text
        found: list[Piece] = []
        while getattr(self, f"_in_{self._state}")(found, last):
            pass
        return found

    def _in_text(self, found: list[Piece], last: bool) -> bool:
        marks = {"tags": (OPEN,), "mistral": (MISTRAL,), "json": ()}[self.style]
        if self._after:  # blanks between calls
            self._rest = self._rest.lstrip()
            self._after = not self._rest
        for mark in marks:
            place = self._rest.find(mark)
            if place >= 0:
                self._show(found, self._rest[:place])
                self._rest, self._state = self._rest[place + len(mark) :], "begin"
                return True
        bare = {"tags": "", "mistral": "[{", "json": "{"}[self.style]  # a special token before it is not in the text
        head = self._rest.lstrip()
        if self._is_first and bare:
            if head.startswith(bare):
                self._state = "begin"
                return True
            if not last and bare.startswith(head):
                return False
        kept = 0 if last else max((_overlap(self._rest, mark) for mark in marks), default=0)
        shown = self._rest[: len(self._rest) - kept]
        self._rest = self._rest[len(shown) :]
        self._show(found, shown)
        return False

    def _in_begin(self, found: list[Piece], last: bool) -> bool:
        if self.style == "mistral":
            self._rest = self._rest.lstrip(" \n[,")
        match = _BEGINNING.match(self._rest)
        if match is not None and (name := json.loads(match[1])) in self.names:
            self._rest, self._state, self._value = self._rest[match.end() :], "arguments", _JsonValue()
            found.append(Piece(call=self.calls, name=name, id=f"call_{secrets.token_hex(12)}"))
            return True
        is_none = match is not None or (self.style == "tags" and CLOSE in self._rest)
        if not (last or is_none):
            return False
        # Nothing that could be carried out: whoever asked reads what the model wrote.
        mark = OPEN if self.style == "tags" and not self.forced else ""
        whole, self._rest, self._state = mark + self._rest, "", "text"
        if whole != mark or not last:
            self._show(found, whole)
        return False

    def _in_arguments(self, found: list[Piece], last: bool) -> bool:
        if not self._value.depth:
            self._rest = self._rest.lstrip()
        taken = self._value.take(self._rest)
        if taken:
            found.append(Piece(call=self.calls, arguments=self._rest[:taken]))
            self._rest = self._rest[taken:]
        if not self._value.ended:
            return False
        self.calls, self._state, self._braced = self.calls + 1, "end", False
        return True

    def _in_end(self, found: list[Piece], last: bool) -> bool:
        self._rest = self._rest.lstrip()
        if not self._braced and self._rest.startswith("}"):
            self._rest, self._braced = self._rest[1:].lstrip(), True
        if not self._rest:
            return False
        self._is_first = False
        if self.style == "mistral" and self._rest.startswith(","):
            self._state = "begin"
            return True
        ending = {"tags": CLOSE, "mistral": "]", "json": ""}[self.style]
        if not last and len(self._rest) < len(ending) and ending.startswith(self._rest):
            return False
        self._rest = self._rest.removeprefix(ending)
        self._state, self._after = "text", True
        return True

    def _show(self, found: list[Piece], text: str) -> None:
        if text:
            self._is_first = self._is_first and not text.strip()
            found.append(Piece(text))


class _JsonValue:
    """Finds the end of an object or a list in text that comes in pieces."""

    def __init__(self) -> None:
        self.depth, self.in_text, self.escaped, self.ended = 0, False, False, False

    def take(self, text: str) -> int:
        """Return how many characters of the text belong to the value."""
        for place, c in enumerate(text):
            if self.in_text:
                self.in_text = self.escaped or c != '"'
                self.escaped = c == "\\" and not self.escaped
            elif c == '"':
                self.in_text = True
            elif c in "{[":
                self.depth += 1
            elif c in "}]":
                self.depth -= 1
                if self.depth <= 0:
                    self.ended = True
                    return place + 1
        return len(text)


def _overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a mark."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
