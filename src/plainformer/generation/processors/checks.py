"""What a processor's options may be: each check names the option, its value, and what it takes instead."""

from __future__ import annotations

import math
import operator
from numbers import Integral, Real
from typing import Any

from plainformer.errors import UsageError


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise UsageError(
            f"{name}={shortened(value)} is not a whole number of at least {least}", f"give {least} or more"
        )


def check_number(name: str, value: object, interval: str, fix: str = "") -> None:
    """Refuse what is no finite number, or outside an interval as mathematics writes it: "(0, 1]" is 0 < value <= 1."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if not (above and below and math.isfinite(number)):
        raise UsageError(
            f"{name}={shortened(value)} is not a number in {interval}", fix or f"give a number in {interval}"
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is not one of a few words."""
    if value not in choices:
        raise UsageError(f"{name}={shortened(value)} is unknown", f"{name} is one of: " + ", ".join(choices))


def as_sequence(name: str, ids: Any) -> tuple[int, ...]:
    """Token ids as a tuple, repeats kept; refused where they are none. Takes lists, arrays and tensors of one dimension."""
    listed = _listed(name, ids)
    if not listed:
        raise UsageError(f"{name} is empty", "give one token id or more, or leave this processor out")
    return listed


def as_token_ids(name: str, ids: Any, *, least: int = 1) -> tuple[int, ...]:
    """A set of token ids as a tuple, in the order given; refused where it is empty, unless `least` is 0."""
    listed = as_sequence(name, ids) if least else _listed(name, ids)
    return tuple(dict.fromkeys(listed))


def shortened(value: object) -> str:
    """A value for a message, which a list of a whole text's tokens would fill."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"


def _listed(name: str, ids: Any) -> tuple[int, ...]:
    refusal = UsageError(
        f"{name}={shortened(ids)} is not a list of token ids", f"write {name}=[...], whole numbers from 0"
    )
    if isinstance(ids, str | bytes):
        raise refusal
    try:
        listed = tuple(-1 if isinstance(i, bool) else operator.index(i) for i in ids)
    except TypeError:
        raise refusal from None
    if any(i < 0 for i in listed):
        raise refusal
    return listed
