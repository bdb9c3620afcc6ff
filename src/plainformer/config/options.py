"""An option is said once: as the field of a dataclass, which carries its help, its checks and how front ends spell it.

    @dataclass(frozen=True, kw_only=True)
    class Options(OptionSet):
        top_k: int = option(5, help="Answers to show.", check=whole(1))

From the field come the keyword in Python (`task(x, top_k=3)`), its validation, the command line's `--top-k` with its help,
and the table in the documentation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from plainformer.config.declared import check_declared
from plainformer.config.values import check_choice, check_flag, check_number, check_text, check_whole
from plainformer.errors import InputError, UsageError, did_you_mean, opt

Check = Callable[[str, Any], None]
T = TypeVar("T", bound="OptionSet")
F = TypeVar("F", bound=Callable[..., Any])


class Bounded:
    """A check that also says, as a JSON schema, what passes it: front ends that speak JSON publish these bounds."""

    def __init__(self, check: Check, **schema: Any) -> None:
        self._check, self.schema = check, schema

    def __call__(self, name: str, value: Any) -> None:
        self._check(name, value)


def whole(least: int = 1, most: int | None = None, *, fix: str = "") -> Check:
    """Return a check for a whole number from `least` to `most`."""
    bounds = {"minimum": least} if most is None else {"minimum": least, "maximum": most}
    return Bounded(lambda name, value: check_whole(name, value, least, most, fix=fix), **bounds)


def number(interval: str = "(-inf, inf)", *, fix: str = "") -> Check:
    """Return a check for a finite number in an interval such as "(0, 1]"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    bounds = {
        "minimum" if interval[0] == "[" else "exclusiveMinimum": low,
        "maximum" if interval[-1] == "]" else "exclusiveMaximum": high,
    }
    finite = {name: end for name, end in bounds.items() if math.isfinite(end)}
    return Bounded(lambda name, value: check_number(name, value, interval, fix=fix), **finite)


def flag() -> Check:
    """Return a check for True or False."""
    return check_flag


def text() -> Check:
    """Return a check for a str."""
    return check_text


def one_of(*choices: str) -> Check:
    """Return a check for one of these words."""
    return Bounded(lambda name, value: check_choice(name, value, choices), enum=list(choices))


@dataclass(frozen=True)
class Spec:
    """What a field says of its option.

    Attributes:
        help: one sentence, for --help and the documentation.
        check: refuses a value (never called with None where that is the default).
        group: its heading in --help.
        flag: the command line's name, where it is another one.
        typed: what the command line reads for it (`int`, `str`, `list[str]`...); None takes the field's own type, and
            `NotTyped` keeps the option off the command line.
        read: makes the option's value of what was typed.
        more: what one kind of option adds (the modes and processor of an option of generation).
    """

    help: str
    check: Check | None = None
    group: str = ""
    flag: str | None = None
    typed: Any = None
    read: Callable[[Any], Any] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


class NotTyped:
    """`Spec.typed` of an option that cannot be written on a command line."""


def at_file(text: str) -> str:
    """`Spec.read` of a long text: the text itself, or what the file whose name follows an @ holds."""
    if not text.startswith("@"):
        return text
    path = text[1:]
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {error.start}", "convert it, e.g. with iconv") from None
    except (OSError, ValueError):
        raise InputError(f"there is no file {path!r}", "check the path after the @") from None


def json_at_file(text: str) -> Any:
    """`Spec.read` of what is not a text: JSON, or what the file whose name follows an @ holds of it."""
    written = at_file(text)
    try:
        return json.loads(written)
    except (ValueError, RecursionError) as error:
        where = text[1:] if text.startswith("@") else repr(text[:60])
        raise UsageError(f"{where} is not JSON: {error}", "give JSON, or @FILE with JSON in it") from None


def option(
    default: Any = None,
    *,
    help: str,
    check: Check | None = None,
    group: str = "",
    flag: str | None = None,
    typed: Any = None,
    read: Callable[[Any], Any] | None = None,
    **more: Any,
) -> Any:
    """Return a dataclass field that is an option; see `Spec`. An option without a default is required: `default=MISSING`."""
    spec = Spec(help, check, group, flag, typed, read, more)
    return field(metadata={"option": spec}) if default is MISSING else field(default=default, metadata={"option": spec})


def cached(function: F) -> F:
    """`functools.cache` for functions of a class: as it is declared, it refuses classes of dataclasses."""
    return cast(F, cache(function))


@cached
def specs(kind: type[OptionSet]) -> dict[str, Spec]:
    """Return the options of a class, in order."""
    return {f.name: f.metadata["option"] for f in fields(kind) if "option" in f.metadata}


def table(kind: type[OptionSet]) -> str:
    """Return the options as Markdown, as the documentation shows them: a table for each group."""
    groups: dict[str, list[str]] = {}
    for f in fields(kind):
        spec: Spec | None = f.metadata.get("option")
        if spec is not None:
            default = "" if f.default in (None, MISSING) else f"`{f.default!r}`"
            groups.setdefault(spec.group, []).append(f"| `{f.name}` | {default} | {spec.help} |")
    parts = []
    for group, rows in groups.items():
        heading = [f"**{group}**", ""] if group else []
        parts.append("\n".join([*heading, "| option | default | what it does |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


class Checked:
    """Base of dataclasses whose fields carry checks: each value is checked when it is made."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            spec: Spec | None = f.metadata.get("option")
            value = getattr(self, f.name)
            if spec is None or value is f.default:  # also an option that was given as what it is anyway
                continue
            if spec.check is not None:
                spec.check(f.name, value)
            check_declared(type(self), f.name, value)


@dataclass(frozen=True, kw_only=True)
class OptionSet(Checked):
    """Base of all options.

    Attributes:
        explicit: the names that the caller gave, whatever their values.
    """

    explicit: ClassVar[frozenset[str]]

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        cls.__repr__ = OptionSet.__repr__  # type: ignore[method-assign]  # before the dataclass writes its own, of all

    def __repr__(self) -> str:
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name in self.given)
        return f"{type(self).__name__}({', '.join(shown)})"

    def __new__(cls, *args: Any, **values: Any) -> Self:
        made = super().__new__(cls)
        object.__setattr__(made, "explicit", frozenset(values))
        return made

    @classmethod
    def of(cls: type[T], given: Mapping[str, Any], owner: str) -> T:
        """Options by name; an unknown name is an error that offers the nearest. `owner` is who has them, for messages."""
        known = [f.name for f in fields(cls) if f.init]
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known) if known else "it takes none"
                raise UsageError(f"{owner} has no option {name!r}", hint or "options: " + ", ".join(known))
        for f in fields(cls):
            if f.init and f.default is MISSING and f.name not in given:
                raise UsageError(
                    f"{owner} needs {opt(f.name)}", f"give {opt(f.name, ...)}: {f.metadata['option'].help}"
                )
        return cls(**given)

    def changed(self, **changes: Any) -> Self:
        """Return the same options with changes, which are explicit too."""
        return type(self)(**{**{name: getattr(self, name) for name in self.explicit}, **changes})

    @property
    def given(self) -> frozenset[str]:
        """Return the names of the options whose value is not their default."""
        return frozenset(f.name for f in fields(self) if f.init and not _same(getattr(self, f.name), f.default))


def _same(value: Any, default: Any) -> bool:
    """Return whether a value is the default; tensors and functions, which compare otherwise, are so by identity alone."""
    if value is default:
        return True
    return (
        type(value) is type(default)
        and isinstance(value, bool | int | float | str | tuple | frozenset)
        and value == default
    )


__all__ = [
    "MISSING",
    "Bounded",
    "Check",
    "Checked",
    "NotTyped",
    "OptionSet",
    "Spec",
    "at_file",
    "cached",
    "flag",
    "json_at_file",
    "number",
    "one_of",
    "opt",
    "option",
    "specs",
    "table",
    "text",
    "whole",
]
