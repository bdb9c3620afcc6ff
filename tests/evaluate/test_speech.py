"""Transcripts, against jiwer on whole corpora."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.evaluate import make_scorer

texts = st.text(alphabet="ab é.😀", max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(texts.filter(str.strip), texts), min_size=1, max_size=5))
def test_equal_to_jiwer(found: list[tuple[str, str]]) -> None:
    scorer = make_scorer("speech")
    rows = np.array([scorer.row(*pair) for pair in found])
    values = scorer.measure(rows)(np.ones(len(rows)))
    right, answers = (list(side) for side in zip(*found, strict=True))
    assert values["wer"] == pytest.approx(jiwer.wer(right, answers))
    assert values["cer"] == pytest.approx(jiwer.cer(right, answers))
    wrong = [jiwer.wer(*pair) > 0 for pair in found]
    assert values["sentence_error_rate"] == pytest.approx(np.mean(wrong))


def test_silence() -> None:
    scorer = make_scorer("speech")
    rows = np.array([scorer.row(*pair) for pair in (("", "two words"), (" ", ""), ("two words", "two"))])
    values = scorer.measure(rows)(np.ones(3))
    assert values["wer"] == 3 / 2 and values["cer"] == pytest.approx((9 + 6) / 9)
    assert scorer.tables(rows)[0].rows[0] == ("words", 0, 1, 2, 2)
    assert np.isnan(scorer.measure(rows[:2])(np.ones(2))["wer"])


def test_words_alone() -> None:
    scorer = make_scorer("speech", normalize="words")
    for right, answer in (
        ("Hello, World!", "hello world"),
        ("don't — stop", "Don't stop."),
        ("ﬁne x-ray's", "fine 'X-ray's'"),
        ("می\u200cرود", "میرود"),
        ("हिन्दी।", "हिन्दी"),
    ):
        row = scorer.row(right, answer)
        assert not any(row[1:5]) and row[5], (right, answer, row)
    assert make_scorer("speech").row("Hello, World!", "hello world")[2] == 2
    assert scorer.row("don't", "dont")[2] == 1
