"""Errors: an option as each front end writes it, an input by the caller's place, and nothing lost on the way."""

from __future__ import annotations

import copy
import pickle

import pytest

from plainformer.errors import (
    CheckpointError,
    HubError,
    InputError,
    PlainformerError,
    UsageError,
    did_you_mean,
    nth,
    opt,
)


def flags(name: str, value: str | None) -> str:
    return f"--{name.replace('_', '-')}" + ("" if value is None else f" {value}")


def test_an_option_is_spelt_by_the_front_end() -> None:
    error = UsageError(f"{opt('top_k', 0)} is too small", f"leave {opt('top_k')} out, or give {opt('min_p', 'x')}")
    assert str(error) == "top_k=0 is too small\n  → leave top_k out, or give min_p='x'"
    assert error.message(flags) == "--top-k 0 is too small\n  → leave --top-k out, or give --min-p 'x'"
    assert (error.what, error.fix) == ("top_k=0 is too small", "leave top_k out, or give min_p='x'")
    assert error.option == "top_k" and UsageError("no option here").option is None
    assert str(UsageError(f"{opt('labels', ...)} is missing")) == "labels=... is missing"


def test_a_long_value_is_cut_and_a_strange_one_cannot_break_a_message() -> None:
    long = str(UsageError(opt("text", "x" * 5000)))
    assert len(long) < 250 and long.endswith("…")
    strange = UsageError(f"{opt('stop', chr(3) + chr(2) + 'x' + chr(31))} is empty")
    assert strange.option == "stop" and strange.message(flags).startswith("--stop '")
    assert not set(str(strange)) & {"\x02", "\x03", "\x04", "\x05", "\x1f"}


def test_the_place_of_an_input_is_the_callers() -> None:
    """The second of a batch that held inputs 7 and 3 of the list is input 3."""
    error = InputError(f"{nth(1)} is empty", f"give {nth(0)} and {nth(1)} with {opt('truncate', True)}")
    assert str(error) == "input 1 is empty\n  → give input 0 and input 1 with truncate=True"
    moved = error.moved([7, 3])
    assert str(moved) == "input 3 is empty\n  → give input 7 and input 3 with truncate=True"
    assert type(moved) is InputError and "--truncate True" in moved.message(flags)
    assert (
        str(moved.moved(range(100, 120))) == "input 103 is empty\n  → give input 107 and input 103 with truncate=True"
    )
    plain = InputError("the text is empty")
    assert plain.moved([5]) is plain


@pytest.mark.parametrize("kind", [PlainformerError, UsageError, InputError, CheckpointError, HubError])
def test_errors_survive_pickling_and_copying(kind: type[PlainformerError]) -> None:
    error = kind(f"{opt('top_k', 0)} of {nth(2)}", f"give {opt('top_k', 1)}")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind and str(again) == str(error)
        assert (again.what, again.fix, again.option) == (error.what, error.fix, "top_k")
        assert again.message(flags) == error.message(flags) and "input 9" in str(again.moved([0, 0, 9]))


def test_exit_codes() -> None:
    assert [kind("").exit_code for kind in (UsageError, InputError, CheckpointError, HubError)] == [2, 2, 1, 1]
    assert issubclass(UsageError, ValueError) and not issubclass(CheckpointError, UsageError)


def test_within_says_where() -> None:
    assert str(CheckpointError(f"{opt('dtype', 3)} is unknown", "fix it").within("config.json")) == (
        "config.json: dtype=3 is unknown\n  → fix it"
    )


def test_the_nearest_names_are_offered() -> None:
    names = ("top_k", "top_p", "temperature")
    assert did_you_mean("tempreature", names) == "did you mean 'temperature'?"
    assert did_you_mean("TOP_P", names).startswith("did you mean 'top_p'")
    assert did_you_mean("zzz", names) == "known: temperature, top_k, top_p"
    assert did_you_mean("zzz", [f"name{i}" for i in range(13)]) == ""
    assert did_you_mean("x" * 10_000_000, names).startswith("known")


def test_a_front_end_may_count_inputs_from_one() -> None:
    error = InputError(f"{nth(2)} is empty", "leave it out")
    assert str(error).startswith("input 2") and error.message(first=1).startswith("input 3")
