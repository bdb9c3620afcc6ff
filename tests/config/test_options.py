"""Options as dataclass fields: unknown names, checks, and what counts as given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from plainformer.config.options import MISSING, OptionSet, flag, number, one_of, option, specs, table, text, whole
from plainformer.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    top_k: int = option(5, help="Answers to show.", check=whole(1, 100))
    limit: int | None = option(None, help="Most tokens.", check=whole())
    temperature: float = option(1.0, help="Flatness.", check=number("(0, 10]"), group="sampling")
    greedy: bool = option(False, help="Whether to take the likeliest.", check=flag())
    mode: str = option("fast", help="How.", check=one_of("fast", "exact"))
    prompt: str = option("", help="What comes first.", check=text())


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"(?s)a task has no option 'topk'.*did you mean 'top_k'"):
        Options.of({"topk": 3}, "a task")
    assert Options.of({"top_k": 3}, "a task").top_k == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 0}, "top_k=0 is not a whole number from 1 to 100"),
        ({"top_k": 101}, "top_k=101 is not"),
        ({"top_k": True}, "top_k=True is not"),
        ({"top_k": 2.0}, r"top_k=2\.0 is not"),
        ({"top_k": None}, "top_k=None is not"),  # None is a value only where it is the default
        ({"limit": 0}, "limit=0 is not a whole number of at least 1"),
        ({"temperature": 0}, r"temperature=0 is not a number in \(0, 10\]"),
        ({"temperature": 10.1}, r"temperature=10\.1 is not"),
        ({"temperature": float("nan")}, "temperature=nan is not"),
        ({"temperature": float("inf")}, "temperature=inf is not"),
        ({"temperature": "1"}, "temperature='1' is not"),
        ({"greedy": 1}, "greedy=1 is neither True nor False"),
        ({"mode": "fsat"}, r"(?s)mode='fsat' is unknown.*did you mean 'fast'"),
        ({"mode": None}, "mode=None is unknown"),
        ({"prompt": 3}, "prompt=3 is not a text"),
    ],
)
def test_values_are_checked_when_options_are_made(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Options(**given)
    assert caught.value.option == next(iter(given))
    with pytest.raises(UsageError, match=message):
        Options().changed(**given)


def test_bounds_are_values() -> None:
    made = Options(top_k=100, limit=None, temperature=10)
    assert (made.top_k, made.limit, made.temperature) == (100, None, 10) and Options(top_k=1).top_k == 1


def test_what_is_given_and_what_is_explicit() -> None:
    """`given` differs from the default; `explicit` was named by the caller, even with the default's value."""
    made = Options(top_k=5, mode="exact")
    assert made.given == {"mode"} and made.explicit == {"top_k", "mode"}
    changed = made.changed(greedy=True)
    assert changed.given == {"mode", "greedy"} and changed.explicit == {"top_k", "mode", "greedy"}
    assert made.greedy is False and Options().given == Options().explicit == frozenset()
    assert Options(temperature=1).given == {"temperature"}  # an int is not the default float


def test_what_the_front_ends_read() -> None:
    assert list(specs(Options)) == ["top_k", "limit", "temperature", "greedy", "mode", "prompt"]
    assert specs(Options)["top_k"].help == "Answers to show." and specs(Options)["temperature"].group == "sampling"
    shown = table(Options)
    assert "| `top_k` | `5` | Answers to show. |" in shown and "| `limit` |  | Most tokens. |" in shown
    assert shown.index("**sampling**") < shown.index("`temperature`")


def test_an_option_without_a_default_is_required() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needs(OptionSet):
        labels: list[str] = option(MISSING, help="The labels.")

    with pytest.raises(TypeError, match="labels"):
        Needs()
    assert Needs(labels=["a"]).labels == ["a"]
