"""Flags are made of the fields of options."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Any

import pytest

from plainformer.cli.flags import Flags, as_flag, flags_in
from plainformer.config.options import NotTyped, OptionSet, option, specs, whole
from plainformer.errors import UsageError, opt
from plainformer.tasks import option_classes


@dataclass(frozen=True, kw_only=True)
class First(OptionSet):
    size: int | None = option(None, help="A size.", check=whole(1))
    names: Any = option(None, help="A name.", flag="name", typed=list[str])
    hidden: Any = option(None, help="Of Python alone.", typed=NotTyped)
    sides: Any = option(None, help="Two.", typed=str, read=lambda text: tuple(text.split("x")))


@dataclass(frozen=True, kw_only=True)
class Second(OptionSet):
    size: int = option(3, help="Another size.")
    on: bool | float = option(False, help="On.", typed=bool, also={"on_from": (float, "On from here.")})


class Both(Flags, kinds=(First, Second)):
    """Flags of two classes of options."""


def test_flags_become_options() -> None:
    kind: Any = Both
    assert [f.name for f in fields(kind)] == ["size", "name", "sides", "on", "on_from"]
    flags = kind(name=["a", "\0stdin"], sides="2x3", on_from=0.5)
    assert flags.given() == ["name", "sides", "on_from"]
    assert flags.options() == {"names": ["a", "-"], "sides": ("2", "3"), "on": 0.5}
    with pytest.raises(UsageError, match="name has no effect in second"):
        flags.options(Second, "second")
    with pytest.raises(UsageError, match="on has no effect with on_from"):
        kind(on=True, on_from=0.5).options(Second, "second")


def test_one_flag_of_several_options_says_what_they_are() -> None:
    (size,) = (f for f in fields(Both) if f.name == "size")
    assert "A size. Another size." in str(size.type)


def test_help_names_other_options_as_flags() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Third(OptionSet):
        near: bool = option(False, help=f"As with {opt('top_k', 3)}.")

    class ThirdFlags(Flags, kinds=[Third]):
        """Flags with a help that names an option."""

    (near,) = fields(ThirdFlags)
    assert "As with --top-k 3." in str(near.type)


def test_a_field_of_no_plain_type_must_say_what_is_typed() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrong(OptionSet):
        value: list[int] | None = option(None, help="Wrong.")

    with pytest.raises(TypeError, match="typed="):
        flags_in(Wrong)


def test_every_option_of_every_task_has_a_flag_and_a_help() -> None:
    for kind in option_classes():
        flags = {flag.option for flag in flags_in(kind).values()}
        for name, spec in specs(kind).items():
            assert (name in flags) is (spec.typed is not NotTyped), name
            assert spec.help.endswith("."), name


def test_messages_name_flags() -> None:
    error = UsageError(f"{opt('labels')} and {opt('top_k', 0)}, {opt('stride', ...)}", f"give {opt('truncate', True)}")
    assert str(error) == "labels and top_k=0, stride=...\n  → give truncate=True"
    assert error.message(as_flag) == "--label and --top-k 0, --stride\n  → give --truncate"


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from plainformer.cli.main import run_app\n"
        "assert run_app(['run', '--help']) == 0 and run_app(['chat', '--help']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
