"""A layout numbers its ranks, and says why it cannot divide a model, with what would."""

from __future__ import annotations

import re
from typing import Any

import pytest

from plainformer.config.layout import Layout
from plainformer.errors import UsageError
from tests.support.shares import config_of


@pytest.mark.parametrize("layout", [Layout(dp=3), Layout(tp=2, pp=2), Layout(dp=2, tp=3, pp=4)])
def test_places_and_ranks_are_inverse(layout: Layout) -> None:
    places = [layout.place(rank) for rank in range(layout.world)]
    assert [layout.rank(place) for place in places] == list(range(layout.world))
    assert len(set(places)) == layout.world
    assert [place.tp for place in places[: layout.tp]] == list(range(layout.tp))  # neighbours talk most


SMOL = dict(num_attention_heads=9, num_key_value_heads=3, hidden_size=72, head_dim=8, intermediate_size=1536)
PROBLEMS: list[tuple[str, dict[str, Any], Layout, str]] = [
    ("llama", SMOL, Layout(tp=2), r"9 attention heads of the decoder cannot be divided by tp=2.*one of 1, 3"),
    ("llama", {**SMOL, "intermediate_size": 1530}, Layout(tp=2), r"one of 1, 3, 9$"),
    ("llama", dict(intermediate_size=50), Layout(tp=4), r"feed-forward size 50 of the decoder .*tp=4.*one of 1, 2$"),
    ("llama", dict(num_attention_heads=12, num_key_value_heads=3, hidden_size=96), Layout(tp=2), r"3 key-value heads"),
    ("bert", {}, Layout(pp=3), r"2 layers cannot be pp=3 stages.*1 to 2"),
    ("llama", dict(vocab_size=5), Layout(tp=4), r"a vocabulary of 5 leaves ranks of tp=4 without a word"),
]


@pytest.mark.parametrize(("name", "changes", "layout", "message"), PROBLEMS)
def test_says_what_would_work(name: str, changes: dict[str, Any], layout: Layout, message: str) -> None:
    config = config_of(name, **changes)
    with pytest.raises(UsageError) as caught:
        layout.check(config)
    assert re.search(message, f"{caught.value}".replace("\n", " "))


def test_one_process_always_fits() -> None:
    for name in ("llama", "t5", "vit", "albert", "whisper"):
        assert Layout().problems(config_of(name)) == []


@pytest.mark.parametrize("wrong", [dict(tp=0), dict(zero=4), dict(schedule="zigzag"), dict(pp=-1), dict(dp=1.5)])
def test_refuses_what_is_no_division(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Layout(**wrong)
