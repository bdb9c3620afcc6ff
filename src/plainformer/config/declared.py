"""Whether a value is of the type that a field declares: the check of every option, besides its own.

What is declared is read from the annotations. Names that only a type checker imports (`Tensor`, a cache, a processor) are
not known here, and importing them for a check would load torch: any object that is not plain data passes for one of them.
"""

from __future__ import annotations

import builtins
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from inspect import get_annotations
from numbers import Real
from typing import Any, Literal, Union, get_args, get_origin

from plainformer.config.values import is_whole
from plainformer.errors import UsageError, opt

_PLAIN = (str, bytes, bool, int, float, complex, list, tuple, set, frozenset, dict, type(None))


class _Unknown(type):
    """The type of classes that are known to type checkers alone; `torch.dtype` is an attribute of one."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Unknown(name, (), {})


class _Names(dict[str, Any]):
    """What annotations of a module may name."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.known = vars(sys.modules[module])

    def __missing__(self, name: str) -> Any:
        if name in self.known:
            value = self.known[name]
            return _evaluated(value, self) if isinstance(value, str) else value  # an alias written as text
        return getattr(builtins, name) if hasattr(builtins, name) else _Unknown(name, (), {})


def _evaluated(annotation: Any, names: _Names) -> Any:
    # Our own annotations, as `typing.get_type_hints` would evaluate them if all their names were imported.
    return eval(annotation, {}, names) if isinstance(annotation, str) else annotation


@cache
def declared(owner: type, name: str) -> Any:
    """Return the type that a class, or one that it derives from, declares for a field; Any where none does."""
    for kind in owner.__mro__:
        annotations = get_annotations(kind)
        if name in annotations:
            return _evaluated(annotations[name], _Names(kind.__module__))
    return Any


def check_declared(owner: type, name: str, value: object) -> None:
    """Refuse a value that is not of the type that its field declares."""
    kind = declared(owner, name)
    if not fits(value, kind):
        words = described(kind)
        raise UsageError(f"{opt(name, value)} is not {words}", f"give {words}")


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a declared type. Numbers and lists may be those of arrays; True is not a number."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if origin is Sequence:
        found = _elements(value)
        return found is not None and all(fits(one, inner[0]) for one in found)
    if origin is Mapping:
        pairs = value.items() if isinstance(value, Mapping) else None
        return pairs is not None and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in pairs)
    if origin is Callable:
        return callable(value)
    return _is_a(value, origin or kind)


def _is_a(value: Any, kind: Any) -> bool:
    if kind is None or kind is type(None):
        return value is None
    if kind is int:
        return is_whole(value)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool) and value == value
    if isinstance(kind, _Unknown):
        return not isinstance(value, _PLAIN) and type(value) is not object
    return isinstance(value, kind)


def _elements(value: Any) -> Iterator[Any] | None:
    """Return the elements of a list, or of an array of one dimension; None of anything else."""
    if getattr(value, "ndim", 1) != 1 or isinstance(value, str | bytes | bytearray | Mapping):
        return None
    if hasattr(value, "tolist"):
        return iter(value.tolist())
    return iter(value) if hasattr(value, "__len__") and hasattr(value, "__iter__") else None


def _is_internal(kind: Any) -> bool:
    """Whether a type is one of our classes, which a message does not name beside plainer types."""
    return (
        isinstance(kind, _Unknown)
        and kind.__name__ != kind.__name__.lower().capitalize()
        and not kind.__name__.islower()
    )


def _plural(kind: Any) -> str:
    inside = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_plural, inside))
    return f"lists of {_plural(inside[0])}" if get_origin(kind) is Sequence else _PLURALS.get(kind) or f"{_name(kind)}s"


def _name(kind: Any) -> str:
    name: str = getattr(kind, "__name__", str(kind))
    return name.lower() if name.istitle() else name


_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts", os.PathLike[str]: "paths"}


def described(kind: Any) -> str:
    """Return a declared type in words, for messages."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        said = [described(one) for one in inner if one is not type(None) and not _is_internal(one)]
        *first, last = dict.fromkeys(said or map(described, inner))
        return f"{', '.join(first)} or {last}" if first else last
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple:
        return "a pair of numbers" if len(inner) == 2 else "a tuple of numbers"
    if origin is Sequence:
        return f"a list of {_plural(inner[0])}"
    if origin is Mapping:
        return "a dictionary"
    if origin is Callable:
        return "a function"
    name = _name(kind)
    return _WORDS.get(kind) or (
        "a path" if name == "PathLike" else f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
    )
