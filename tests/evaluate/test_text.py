"""Texts, against sacrebleu and rouge-score on whole corpora; a corpus score from sentences' sums."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from plainformer.errors import MissingDependencyError
from plainformer.evaluate import make_scorer
from plainformer.evaluate.text import ROUGE
from tests.support.scorers import WORDS

sentence = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
corpus = st.lists(st.tuples(sentence, sentence, sentence), min_size=1, max_size=6)


@pytest.mark.parametrize(("word_order", "tokenize"), [(0, "13a"), (2, "char"), (0, "intl")])
def test_equal_to_sacrebleu(word_order: int, tokenize: str) -> None:
    scorer = make_scorer("text", word_order=word_order, tokenize=tokenize)

    @settings(max_examples=80, deadline=None)
    @given(corpus)
    def check(found: list[tuple[str, str, str]]) -> None:
        answers, first, second = (list(side) for side in zip(*found, strict=True))
        rows = np.array([scorer.row([one, other], answer) for answer, one, other in found])
        values = scorer.measure(rows)(np.ones(len(rows)))
        bleu = sacrebleu.BLEU(tokenize=tokenize, force=True).corpus_score(answers, [first, second]).score
        chrf = sacrebleu.CHRF(word_order=word_order).corpus_score(answers, [first, second]).score
        for name, theirs in (("bleu", bleu), ("chrf", chrf)):
            assert theirs == 0 if np.isnan(values[name]) else values[name] == pytest.approx(theirs, abs=1e-9)
        exact = [answer.strip() in (one.strip(), other.strip()) for answer, one, other in found]
        assert values["exact_match"] == pytest.approx(np.mean(exact))

    check()


@pytest.mark.parametrize("stem", [False, True])
def test_equal_to_rouge_score(stem: bool) -> None:
    scorer = make_scorer("text", main="rougeL", stem=stem)
    theirs = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=stem)
    texts = [
        ("The cats sat on mats.\nThey were happy.", "A cat sat on the mat.\nIt was happy."),
        ("running", "runs"),
        ("", "x"),
        ("x", ""),
        ("日本語 x", "日本語"),
    ]
    rows = np.array([scorer.row(*pair) for pair in texts])
    values = scorer.measure(rows)(np.ones(len(rows)))
    for name in ROUGE:
        expected = np.mean([theirs.score(*pair)[name].fmeasure for pair in texts])
        assert values[name] == pytest.approx(expected)
    assert scorer.metrics[0].name == "rougeL" and {metric.name for metric in scorer.metrics} == set(values)


def test_the_packages_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingDependencyError, match="sacrebleu"):
        make_scorer("text").row("a", "a")
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(MissingDependencyError, match="jiwer"):
        make_scorer("speech").row("a", "a")
