"""What processors are made of: parameters that are checked when a processor is made, and token ids as they take them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform

from plainformer.config.options import MISSING, Check, Checked, option, specs
from plainformer.errors import UsageError, opt
from plainformer.generation.options import GenerationOptions
from plainformer.generation.processors.id_tensors import TokenIds


def parameter(check: Check, *, default: Any = MISSING) -> Any:
    """Return a field whose value is checked; required where it has no default."""
    return option(default, help="", check=check)


def as_option(name: str, *, default: Any = MISSING) -> Any:
    """Return a field that takes what an option of generation takes."""
    spec = specs(GenerationOptions)[name]
    return parameter(spec.check or spec.more["engine"], default=default)


class Ids:
    """A field of distinct token ids: takes any list of them, an empty one (also the default) only if `least` is 0."""

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, made: object, owner: type) -> TokenIds:
        if made is None and self.least:
            raise AttributeError(self.name)  # which tells `dataclass` that there is no default
        return TokenIds() if made is None else made.__dict__[self.name]

    def __set__(self, made: object, ids: Iterable[int]) -> None:
        made.__dict__[self.name] = TokenIds(as_token_ids(self.name, ids, least=self.least), self.name)


@dataclass_transform(frozen_default=True, field_specifiers=(parameter, as_option))
class Configured(Checked):
    """Base of processors: each is a frozen dataclass, without need of the decorator, and has a name."""

    name: ClassVar[str]

    def __init_subclass__(cls, name: str) -> None:
        cls.name = name
        dataclass(frozen=True)(cls)


def as_sequence(name: str, ids: Any, *, least: int = 1) -> tuple[int, ...]:
    """Return token ids as a tuple, repeats kept: at least `least`, 0 or 1. Takes lists, arrays, tensors of one dimension."""
    refusal = UsageError(f"{opt(name, ids)} is not a list of token ids", f"write {name}=[...], whole numbers from 0")
    if isinstance(ids, str | bytes):
        raise refusal
    try:
        listed = tuple(-1 if isinstance(i, bool) else operator.index(i) for i in ids)
    except TypeError:
        raise refusal from None
    if any(i < 0 for i in listed):
        raise refusal
    if len(listed) < least:
        raise UsageError(f"{opt(name)} is empty", "give one token id or more, or leave this processor out")
    return listed


def as_token_ids(name: str, ids: Any, *, least: int = 1) -> tuple[int, ...]:
    """Return distinct token ids as a tuple, in the order given: at least `least`, 0 or 1."""
    return tuple(dict.fromkeys(as_sequence(name, ids, least=least)))
