"""A body of JSON from bytes: what JSON leaves open is refused, before anything walks through it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from starlette.requests import Request

from plainformer.serve.errors import Refusal, invalid

_LARGE = 2**18  # bytes; reading more would hold up the event loop
_TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_OPENING = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_json(request: Request, depth: int = 64) -> dict[str, Any]:
    """Return the body of a request, which is a JSON object.

    Raises:
        Refusal: another content type, not JSON, NaN, a key twice, half a surrogate pair, nested deeper than `depth`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):  # a page of another site could send any other kind
        said = f"the Content-Type is {kind[:60]!r}" if kind else "there is no Content-Type"
        raise Refusal(415, f"{said}\n  → send JSON as application/json", code="unsupported_media_type")
    data = await request.body()
    return await asyncio.to_thread(parse, data, depth) if len(data) > _LARGE else parse(data, depth)


def parse(data: bytes, depth: int = 64) -> dict[str, Any]:
    """Return what bytes say; see `read_json`."""
    if nested_deeper(data, depth):
        raise _not_json(f"it is nested more than {depth} levels deep")
    try:
        found = json.loads(data, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise _not_json("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise _not_json(f"byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise _not_json(str(error)) from None
    if not isinstance(found, dict):
        raise _not_json("it is not an object")
    if _SURROGATE.search(data):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _not_json("a text holds half of a surrogate pair, which is not a character") from None
    return found


def nested_deeper(data: bytes, depth: int) -> bool:
    """Return whether brackets are nested deeper than that. Each round takes the innermost pairs away, all at C's speed."""
    if data.count(b"[") + data.count(b"{") <= depth:
        return False
    brackets = _TEXTS.sub(b"", data).translate(None, delete=_NO_BRACKETS).translate(_OPENING)
    for _ in range(depth):
        inner = brackets.replace(b"[]", b"")
        if len(inner) == len(brackets):
            break
        brackets = inner
    opened = len(brackets) - len(brackets.lstrip(b"["))
    return opened > depth or b"[]" in brackets


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON has")


def _not_json(why: str) -> Refusal:
    return invalid(f"the body is not JSON that can be read: {why}\n  → send one object, in UTF-8", code="invalid_json")
