"""Checks of configuration values, and limits beyond which a size is corrupt or malicious.

A check names the field; `reading` puts the name of the file before it.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

from plainformer.config.values import is_whole
from plainformer.errors import CheckpointError, spelling_of

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu", "tanh", "sigmoid", "identity")

# Larger sizes are refused before anything is allocated.
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1 << 10
MAX_VOCABULARY = 1 << 24
MAX_POSITIONS = 1 << 27
MAX_PATCH = 1 << 12
MAX_CONVOLUTIONS = 64

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: object) -> str:
    """Return a value for a message: its repr, cut where it is long or deep, since a forged one may be megabytes."""
    return _short.repr(value)


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; True and False are not, though Python counts with them."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 1 << 53
    return whole or (isinstance(value, float) and math.isfinite(value))


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Put the name of what is read ("config.json") before the errors of checks, which speak of fields alone."""
    try:
        yield
    except CheckpointError as error:
        raise error.within(where) from error.__cause__


def json_hint(text: str, error: Exception) -> str:
    """Return what to do about a file that is not JSON: what ends too early is truncated; a mistake within may be its editor's."""
    if isinstance(error, json.JSONDecodeError):
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            return "the file is truncated: download it again"
        return "correct that place if you have edited the file, or else download it again"
    return "the file is damaged or forged: download it again"


_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # how JSON writes half a surrogate pair: as an emoji's, or alone


def require_text(written: str, value: object) -> None:
    """Raise CheckpointError where JSON, `value` as it was written, has half a surrogate pair: no file could hold its text."""
    if not _HALF.search(written):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise CheckpointError(
            f"a text with half a surrogate pair, {half}, is not text", "write the whole character"
        ) from None


def require(condition: bool, what: str, fix: str = "check it against the model card") -> None:
    """Raise CheckpointError(what, fix) unless `condition` holds."""
    if not condition:
        raise CheckpointError(what, fix)


def require_size(name: str, value: object, upper: int, lower: int = 1) -> None:
    """Raise CheckpointError unless a field is a whole number from `lower` to `upper`."""
    fits = is_whole(value, lower) and value <= upper
    require(fits, f"{name}={shown(value)} is not a whole number from {lower} to {upper}")


def require_choice(name: str, value: str, options: tuple[str, ...]) -> None:
    """Raise CheckpointError, which offers another spelling, unless a field is one of `options`."""
    if value not in options:
        fix = spelling_of(str(value), options) or "supported: " + ", ".join(filter(None, options))
        raise CheckpointError(f"{name}={shown(value)} is not supported", fix)


def require_probability(name: str, value: object) -> None:
    """Raise CheckpointError unless a field is a number from 0 to 1."""
    good = is_number(value) and 0 <= value <= 1  # type: ignore[operator]
    require(good, f"{name}={shown(value)} is not a number from 0 to 1")


def require_positive(name: str, value: object) -> None:
    """Raise CheckpointError unless a field is a finite number above zero."""
    require(is_number(value) and value > 0, f"{name}={shown(value)} is not a positive number")  # type: ignore[operator]
