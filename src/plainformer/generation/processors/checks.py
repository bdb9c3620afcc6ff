"""Token ids as processors take them: each check names the option, its value, and what it takes instead."""

from __future__ import annotations

import operator
from typing import Any

from plainformer.errors import UsageError, opt


def as_sequence(name: str, ids: Any) -> tuple[int, ...]:
    """Token ids as a tuple, repeats kept; at least one. Takes lists, arrays and tensors of one dimension."""
    listed = _listed(name, ids)
    if not listed:
        raise UsageError(f"{opt(name)} is empty", "give one token id or more, or leave this processor out")
    return listed


def as_token_ids(name: str, ids: Any, *, least: int = 1) -> tuple[int, ...]:
    """A set of token ids as a tuple, in the order given; it may be empty only if `least` is 0."""
    listed = as_sequence(name, ids) if least else _listed(name, ids)
    return tuple(dict.fromkeys(listed))


def _listed(name: str, ids: Any) -> tuple[int, ...]:
    refusal = UsageError(f"{opt(name, ids)} is not a list of token ids", f"write {name}=[...], whole numbers from 0")
    if isinstance(ids, str | bytes):
        raise refusal
    try:
        listed = tuple(-1 if isinstance(i, bool) else operator.index(i) for i in ids)
    except TypeError:
        raise refusal from None
    if any(i < 0 for i in listed):
        raise refusal
    return listed
