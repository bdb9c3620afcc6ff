"""The command line's flags, made of the fields that say what an option is (`config.options`). Importing this needs no torch.

One flag may be an option of several tasks: its help joins what they say of it, and whether the task at hand has it is known
when the checkpoint is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import Field, dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import Parameter

from plainformer.cli.options import WHOLE, restored
from plainformer.cli.progress import screen
from plainformer.config.loading import LoadOptions
from plainformer.config.options import NotTyped, OptionSet, Spec, specs
from plainformer.config.values import no_effect
from plainformer.errors import opt, spelt

if TYPE_CHECKING:
    from plainformer.loading import Chosen

_TYPES = {"bool": bool, "int": int, "float": float, "str": str}


@dataclass(frozen=True)
class Flag:
    """One flag of one option; `also` marks the further flag of an option that has two. `default`: a number or word, else None."""

    option: str
    name: str
    kind: Any
    help: str
    spec: Spec
    also: bool = False
    default: Any = None


@dataclass(frozen=True)
class Flags:
    """Flags as they were typed; one that was not given is None (or False).

    A subclass names the classes of options that its flags are of; fields that it declares itself are flags, too.

    Args:
        kinds: of options. group: the heading in --help of options that have none of their own.
        without: flags to leave out. only: the flags to take, all where it is empty.
        shown: flags that --help shows, all where it is empty: the others are said to be those of another verb.
        defaults: whether --help adds the defaults, where the helps of the options do not say them.
    """

    known: ClassVar[Mapping[str, Flag]] = {}
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init_subclass__(
        cls,
        kinds: Iterable[type[OptionSet]],
        group: str = "",
        without: Collection[str] = (),
        only: Collection[str] = (),
        shown: Collection[str] = (),
        defaults: bool = False,
    ) -> None:
        merged: dict[str, list[Flag]] = {}
        for flag in (flag for kind in kinds for flag in flags_in(kind).values()):
            if flag.name not in without and (not only or flag.name in only):
                merged.setdefault(flag.name, []).append(flag)
        for name, same in merged.items():
            said = [_with_default(flag) for flag in same] if defaults else same
            cls.__annotations__[name] = _typed(said, group, not shown or name in shown)
            setattr(cls, name, False if same[0].kind is bool else None)
        cls.known = {name: same[0] for name, same in merged.items()}
        Parameter(name="*")(dataclass(frozen=True)(cls))

    def checked(self, kind: type[OptionSet], owner: str) -> dict[str, Any]:
        """Return `options(kind, owner)`, whose values have been checked."""
        found = self.options(kind, owner)
        kind.of(found, owner)
        return found

    def given(self) -> list[str]:
        """Return the names of those that were given."""
        values = ((name, getattr(self, name)) for name in self.known)
        return [name for name, value in values if value is not None and value is not False]

    def options(self, kind: type[OptionSet] | None = None, owner: str = "") -> dict[str, Any]:
        """Return those that were given as options of `kind`; None: of any of the classes that the flags are made of.

        Raises:
            UsageError: a flag that `owner`, which has these options, does not take; a value that cannot be read.
        """
        known = self.known if kind is None else flags_in(kind)
        found: dict[str, Any] = {}
        for name in self.given():
            no_effect(name not in known, name, f"in {owner}")
            flag = known[name]
            no_effect(flag.option in found, flag.option, f"with {opt(name)}")
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
        plain = f.default if isinstance(f.default, int | float | str) and not isinstance(f.default, bool) else None
        found[name] = Flag(f.name, name, spec.typed or _own_type(f), spec.help, spec, default=plain)
        for more, (also, help) in ((spec.more or {}).get("also") or {}).items():
            found[more] = Flag(f.name, more, also, help, spec, also=True)
    return found


def _with_default(flag: Flag) -> Flag:
    if flag.default in (None, "") or "default" in flag.help:
        return flag
    shown = f"{flag.default:g}" if isinstance(flag.default, float) else str(flag.default)
    return replace(flag, help=f"{flag.help.removesuffix('.')}; default: {shown}.")


def _own_type(f: Field[Any]) -> Any:
    """The type that a field is declared with, where it is a plain one."""
    plain = str(f.type).removesuffix(" | None")
    if plain not in _TYPES:
        raise TypeError(f"option {f.name} is declared as {f.type}: say what the command line reads for it (typed=...)")
    return _TYPES[plain]


def _typed(same: list[Flag], group: str, show: bool) -> Any:
    """Return the type of one flag with what --help says, from all options that it is for."""
    first = same[0]
    help = _joined(dict.fromkeys(_PYTHON.sub("", flag.help) for flag in same))
    kind = bool if first.kind is bool else first.kind | None
    said = [Parameter(help=spelt(help, as_flag), negative="", show_default=False, show=show)]
    said += [WHOLE] if first.kind is int else []
    heading = first.spec.group or group  # a group of None would hide the flag
    said += [Parameter(group=heading)] if heading else []
    return Annotated[(kind, *said)]


# What a help says of Python's callers alone.
_PYTHON = re.compile(r";? in Python [^.;]*| \(in Python [^)]*\)")


def _joined(helps: Collection[str]) -> str:
    """Return the helps of one flag as one; of those that say more of the same, the only one, or what they share."""
    kept = dict.fromkeys(helps)
    for one in helps:
        longer = [more for more in helps if more != one and more.startswith(one[:-1])]
        for dropped in [one] if len(longer) == 1 else longer:
            kept.pop(dropped, None)
    return " ".join(kept)


def as_flag(name: str, value: str | None) -> str:
    """Return an option in a message as it is typed here."""
    flag = "--" + _flag_names().get(name, name).replace("_", "-")
    return flag if value in (None, "True", "...") else f"{flag} {value}"


@cache
def _flag_names() -> dict[str, str]:
    """Return the options whose flag has another name."""
    from plainformer.tasks import option_classes

    own = {name: spec.flag for kind in option_classes() for name, spec in specs(kind).items() if spec.flag}
    own.pop("task", None)  # of loading; a task's own option of that name has another flag
    own["purpose"] = "for"  # of a plan; that of loading cannot be typed
    return own


class LoadFlags(Flags, kinds=[LoadOptions]):
    """How a checkpoint is loaded."""

    task: Annotated[str | None, Parameter(help="Task; default: what the checkpoint's architecture implies.")] = None

    def load(self, ref: str, chosen: Chosen = lambda kind, name, config: None) -> Any:
        """Return the reference as a task, ready to call; `chosen` sees which it is before any weight is read."""
        asked = LoadOptions.of(self.options(), "load")
        if not screen.shows:  # huggingface_hub shows some of its bars in pipes, too
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        with screen.during(f"loading {restored(ref)}", ticks=False):  # a download has bars of its own
            from plainformer.loading import load_chosen

            return load_chosen(restored(ref), self.task, asked, chosen)
