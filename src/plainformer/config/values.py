"""Checks of the values that a caller gives: each names the option, its value, and what it takes instead."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard

from plainformer.errors import InputError, UsageError, did_you_mean, opt


def is_whole(value: object, least: int | None = None) -> TypeGuard[int]:
    """Return whether a value is a whole number (True and False are not), of at least `least`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and (least is None or int(value) >= least)


def _check_size(name: str, value: object) -> None:
    """Refuse a whole number of more than 64 bits: no tensor holds it."""
    if isinstance(value, Integral) and abs(int(value)) >= 1 << 63:
        raise UsageError(
            f"{opt(name)} is far out of range: it has {int(value).bit_length()} bits", "give less than 2^63"
        )


def check_whole(name: str, value: object, least: int = 1, most: int | None = None, *, fix: str = "") -> None:
    """Refuse what is not a whole number from `least` to `most`."""
    _check_size(name, value)
    if not is_whole(value, least) or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        raise UsageError(f"{opt(name, value)} is not a whole number {bounds}", fix or f"give {allowed}")


def check_number(name: str, value: object, interval: str = "(-inf, inf)", *, fix: str = "") -> None:
    """Refuse what is not a finite number in an interval as mathematics writes it: "(0, 1]" is 0 < value <= 1."""
    _check_size(name, value)
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if not (above and below and math.isfinite(number)):
        where = "a finite number" if interval == "(-inf, inf)" else f"a number in {interval}"
        raise UsageError(f"{opt(name, value)} is not {where}", fix or f"give {where}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise UsageError(f"{opt(name, value)} is neither True nor False", f"give {opt(name, True)}, or leave it out")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse what is not one of a few words."""
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        raise UsageError(f"{opt(name, value)} is unknown", did_you_mean(str(value), known) or ", ".join(known))


def check_text(name: str, value: object) -> None:
    """Refuse what is not a str."""
    if not isinstance(value, str):
        raise UsageError(f"{opt(name, value)} is not a text", "give a text")


def check_texts(name: str, value: object) -> None:
    """Refuse what is not a list of str."""
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise UsageError(f"{opt(name, value)} is not a list of texts", "give a list of texts")


def no_effect(given: bool, name: str, why: str, fix: str = "leave it out") -> None:
    """Refuse an option that is given where it has no effect; `why` continues that sentence: "in a chat", ": ..."."""
    if given:
        raise UsageError(f"{opt(name)} has no effect{why if why.startswith(':') else ' ' + why}", fix)


def decode_text(data: bytes, where: object) -> str:
    """Return UTF-8 bytes as text, without a byte order mark; refuse others, naming `where` they are from."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text: byte {error.start}", "convert it, e.g. with iconv") from None


def read_text(path: str | Path, what: str = "") -> str:
    """Return the text of a UTF-8 file; refuse one that cannot be read, with `what` it is before its path."""
    named = f"{what} {str(path)!r}" if what else str(path)
    try:
        return decode_text(Path(path).read_bytes(), named)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, InputError):
            raise
        raise InputError(f"{named} cannot be read: {getattr(error, 'strerror', error)}", "check the path") from None


def read_json_line(line: str | bytes, where: str) -> Any:
    """Return the value of a line of JSON from `where`."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}", "write one JSON value per line") from None
