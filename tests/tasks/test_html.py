"""How notebooks show answers: escaped, and nothing of the text lost."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest

from plainformer.tasks.answering.spans import Answer
from plainformer.tasks.html import bars, marked
from plainformer.tasks.text.classification import Classification, LabelScore
from plainformer.tasks.text.token_classification import Entity, Spans

TEXT = "<b>Ada</b> met 'Alan' & left\n  London"


def plain(html: str) -> str:
    """The text of a page."""
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_a_text_with_marks_is_the_text() -> None:
    found = marked(TEXT, [(3, 6, "<PER>"), (32, 38, "LOC"), (4, 9, "overlaps"), (5, 5, "empty")])
    assert "<b>" not in found and "<PER>" not in found and found.count("<mark") == 2
    assert plain(found) == TEXT.replace("Ada", "Ada <PER>").replace("London", "London LOC")
    assert plain(marked(TEXT, [])) == TEXT


def test_bars_are_as_long_as_the_scores() -> None:
    found = bars([("<i>", 0.5), ("b", 0.25), ("c", -0.1)])
    assert "<i>" not in found and [int(w) for w in re.findall(r"width:(\d+)px", found)] == [100, 50, 20]
    assert bars([]) == "<table></table>" and "width:0px" in bars([("a", 0.0)])


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (Classification("a", 0.75, (LabelScore("a", 0.75), LabelScore("b", 0.25))), "0.7500"),
        (Spans.of(TEXT, [Entity("PER", 0.9, "Ada", 3, 6)]), "Ada PER"),
        (Answer("Ada", 3, 6, 0.9, context=TEXT), "Ada 0.90"),
    ],
)
def test_results_show_themselves(result: Any, shown: str) -> None:
    assert shown in plain(result._repr_html_())


def test_what_is_shown_is_not_part_of_the_result() -> None:
    answer = Answer("Ada", 3, 6, 0.9, context=TEXT)
    assert answer == Answer("Ada", 3, 6, 0.9) and "context" not in answer.to_dict()
    entities = Spans.of(TEXT, [Entity("PER", 0.9, "Ada", 3, 6)])
    assert entities == (Entity("PER", 0.9, "Ada", 3, 6),)
