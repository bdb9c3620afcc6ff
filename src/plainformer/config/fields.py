"""Typed reading of JSON objects and other metadata: wrong types and missing fields are errors that name them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from plainformer.config.checks import is_number, require, require_probability, require_size, shown


def _is_list(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(kind(entry) for entry in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)


_noted: ContextVar[set[str] | None] = ContextVar("noted", default=None)


class _Noting(dict[str, Any]):
    """An object that notes which names it is asked for, whether it has them or not."""

    def __init__(self, raw: Mapping[str, Any], noted: set[str]) -> None:
        super().__init__(raw)
        self.noted = noted

    def get(self, name: str, default: Any = None) -> Any:
        self.noted.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.noted.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.noted.add(str(name))
        return super().__contains__(name)


@contextmanager
def noting() -> Iterator[set[str]]:
    """Note which names all objects are asked for that are read meanwhile."""
    noted: set[str] = set()
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


class Fields:
    """An object read with care. A getter takes the first of its names that is there and not null, or else `default`."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        noted = _noted.get()
        self.raw = dict(raw) if noted is None else _Noting(raw, noted)

    def get(self, *names: str, default: Any = None) -> Any:
        """Return a field's value as it is."""
        return next((self.raw[name] for name in names if self.raw.get(name) is not None), default)

    def _checked(self, names: tuple[str, ...], default: Any, good: Callable[[Any], bool], wrong: str) -> Any:
        value = self.get(*names, default=default)
        require(value is not None, f"{names[0]!r} is missing")
        require(good(value), f"{names[0]}={shown(value)} {wrong}")
        return value

    def integer(self, *names: str, default: int | None = None) -> int:
        return int(self._checked(names, default, _is_whole, "is not a whole number, or far out of range"))

    def bounded(self, name: str, upper: int, lower: int = 1, *, default: int | None = None) -> int:
        """Return a whole number from `lower` to `upper`."""
        value = self.integer(name, default=default)
        require_size(name, value, upper, lower)
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        return float(self._checked(names, default, is_number, "is not a number"))

    def positive(self, *names: str, default: float | None = None) -> float:
        """Return a number above zero."""
        value = self.number(*names, default=default)
        require(value > 0, f"{names[0]}={value} is not positive")
        return value

    def probability(self, *names: str, default: float = 0.0) -> float:
        """Return a number from 0 to 1."""
        value = self.number(*names, default=default)
        require_probability(next((name for name in names if self.raw.get(name) is not None), names[0]), value)
        return value

    def maybe_number(self, name: str) -> float | None:
        """Return a number, or None where there is none."""
        return None if self.get(name) is None else self.number(name)

    def flag(self, *names: str, default: bool) -> bool:
        return bool(self._checked(names, default, lambda v: isinstance(v, bool), "is neither true nor false"))

    def text(self, *names: str, default: str | None = None) -> str:
        return str(self._checked(names, default, _is_text, "is not a text"))

    def numbers(self, name: str) -> tuple[float, ...]:
        return tuple(map(float, self._checked((name,), [], _is_list(is_number), "is not a list of numbers")))

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._checked((name,), [], _is_list(_is_text), "is not a list of names"))

    def sizes(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        return tuple(self._checked((name,), default, _is_list(_is_whole), "is not a list of whole numbers"))

    def pair(self, name: str, default: int) -> tuple[int, int]:
        """Return a size given as one number or as [height, width]."""
        value = self.get(name, default=default)
        both = value if isinstance(value, list | tuple) else (value, value)
        good = len(both) == 2 and all(map(_is_whole, both))
        require(good, f"{name}={shown(value)} is not one or two whole numbers")
        return both[0], both[1]

    def object(self, name: str) -> dict[str, Any]:
        """Return a nested object."""
        return dict(self._checked((name,), {}, lambda v: isinstance(v, dict), "is not an object"))
