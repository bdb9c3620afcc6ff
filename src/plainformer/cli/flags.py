"""The command line's flags, made of the fields that say what an option is (`config.options`). Importing this needs no torch.

One flag may be an option of several tasks: its help joins what they say of it, and whether the task at hand has it is known
when the checkpoint is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import Parameter

from plainformer.cli.options import restored
from plainformer.config.options import NotTyped, OptionSet, Spec
from plainformer.errors import UsageError, opt

_TYPES = {"bool": bool, "int": int, "float": float, "str": str}


@dataclass(frozen=True)
class Flag:
    """One flag of one option; `also` marks the further flag of an option that has two."""

    option: str
    name: str
    kind: Any
    help: str
    spec: Spec
    also: bool = False


@dataclass(frozen=True)
class Flags:
    """Flags as they were typed; one that was not given is None (or False)."""

    known: ClassVar[Mapping[str, Flag]] = {}
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def given(self) -> list[str]:
        """Return the names of those that were given."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return [name for name, value in values if value is not None and value is not False]

    def options(self, kind: type[OptionSet] | None = None, owner: str = "") -> dict[str, Any]:
        """Return those that were given as options of `kind`; None: of any of the classes that the flags are made of.

        Raises:
            UsageError: a flag that `owner`, which has these options, does not take; a value that cannot be read.
        """
        known = self.known if kind is None else flags_in(kind)
        found: dict[str, Any] = {}
        for name in self.given():
            if name not in known:
                raise UsageError(f"{opt(name)} has no effect in {owner}", "leave it out")
            flag = known[name]
            if flag.option in found:
                raise UsageError(f"{opt(flag.option)} has no effect with {opt(name)}", "leave it out")
            found[flag.option] = _value(flag, getattr(self, name))
        return found


def _value(flag: Flag, typed: Any) -> Any:
    """An option's value from what was typed, where "-" is a hyphen."""
    if isinstance(typed, list):
        typed = [restored(one) for one in typed]
    elif isinstance(typed, str):
        typed = restored(typed)
    if flag.option == "draft_model":
        from plainformer.loading import load

        return load(typed, task="text-generation")
    return typed if flag.spec.read is None or flag.also else flag.spec.read(typed)


def flags_in(kind: type[OptionSet]) -> dict[str, Flag]:
    """Return the flags of one class of options by name."""
    found = {}
    for f in fields(kind):
        spec: Spec | None = f.metadata.get("option")
        if spec is None or spec.typed is NotTyped:
            continue
        name = spec.flag or f.name
        found[name] = Flag(f.name, name, spec.typed or _own_type(f), spec.help, spec)
        for more, (also, help) in ((spec.more or {}).get("also") or {}).items():
            found[more] = Flag(f.name, more, also, help, spec, also=True)
    return found


def _own_type(f: Field[Any]) -> Any:
    """The type that a field is declared with, where it is a plain one."""
    plain = str(f.type).removesuffix(" | None")
    if plain not in _TYPES:
        raise TypeError(f"option {f.name} is declared as {f.type}: say what the command line reads for it (typed=...)")
    return _TYPES[plain]


def flags_of(
    name: str, *kinds: type[OptionSet], group: str = "", without: Collection[str] = (), only: Collection[str] = ()
) -> type[Flags]:
    """Return a dataclass of flags for the options of some classes, as a verb's function takes it.

    Args:
        name: of the dataclass. group: the heading in --help of options that have none of their own.
        without: flags to leave out. only: the flags to take, all where it is empty.
    """
    merged: dict[str, list[Flag]] = {}
    for kind in kinds:
        for flag in flags_in(kind).values():
            if flag.name not in without and (not only or flag.name in only):
                merged.setdefault(flag.name, []).append(flag)
    made: Any = make_dataclass(
        name, [_field(same, group) for same in merged.values()], bases=(Flags,), frozen=True, kw_only=True
    )
    made.known = {flag: same[0] for flag, same in merged.items()}
    made.__module__ = __name__  # the parser takes a class of module "types", where it was made, for a builtin one
    return Parameter(name="*")(made)


def _field(same: list[Flag], group: str) -> tuple[str, Any, Any]:
    """The field of one flag, from all options that it stands for."""
    first = same[0]
    helps = list(dict.fromkeys(flag.help for flag in same))
    help = " / ".join(one for one in helps if not any(one != more and more.startswith(one[:-1]) for more in helps))
    parameter = Parameter(help=help, group=first.spec.group or group or None, negative="", show_default=False)
    if first.kind is bool:
        return first.name, Annotated[bool, parameter], field(default=False)
    return first.name, Annotated[first.kind | None, parameter], field(default=None)
