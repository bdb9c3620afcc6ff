"""The common checks of values: what passes, and the message that names the option, the value and what it should be."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from plainformer.config.values import check_choice, check_flag, check_number, check_text, check_whole, is_whole
from plainformer.errors import UsageError


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (lambda: check_whole("n", 0), "n=0 is not a whole number of at least 1"),
        (lambda: check_whole("n", True), "n=True is not a whole number"),
        (lambda: check_whole("n", 2.0), "n=2.0 is not a whole number"),
        (lambda: check_whole("n", None), "n=None is not a whole number"),
        (lambda: check_whole("n", 9, 2, 8), "n=9 is not a whole number from 2 to 8"),
        (lambda: check_number("p", 1.5, "[0, 1]"), "p=1.5 is not a number in [0, 1]"),
        (lambda: check_number("p", 0, "(0, 1)"), "p=0 is not a number in (0, 1)"),
        (lambda: check_number("p", float("nan")), "p=nan is not a finite number"),
        (lambda: check_number("p", float("inf")), "p=inf is not a finite number"),
        (lambda: check_number("p", True, "[0, 1]"), "p=True is not a number"),
        (lambda: check_number("p", "1", "[0, 1]"), "p='1' is not a number"),
        (lambda: check_flag("f", 1), "f=1 is neither True nor False"),
        (lambda: check_flag("f", None), "f=None is neither True nor False"),
        (lambda: check_choice("c", "fas", ["fast", "exact"]), "did you mean 'fast'"),
        (lambda: check_choice("c", 3, ["fast", "exact"]), "c=3 is unknown"),
        (lambda: check_text("t", 3), "t=3 is not a text"),
    ],
)
def test_what_is_refused(check: Callable[[], None], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        check()
    assert says in str(caught.value) and caught.value.fix


def test_what_passes() -> None:
    for value, least, most in ((1, 1, None), (2, 2, 8), (8, 2, 8), (0, 0, None), (-3, -3, None)):
        check_whole("n", value, least, most)
    for number, interval in ((0, "[0, 1]"), (1, "[0, 1]"), (0.5, "(0, 1)"), (-4, "(-inf, inf)")):
        check_number("p", number, interval)
    check_flag("f", False)
    check_choice("c", "exact", ["fast", "exact"])
    check_text("t", "")


def test_whole_numbers_are_not_flags() -> None:
    assert [is_whole(value, 0) for value in (0, 3, -1, True, False, 1.0, "1", None)] == [True, True, *[False] * 6]
