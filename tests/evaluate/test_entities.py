"""Entities, against seqeval in both modes."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import seqeval.scheme
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_scores

from plainformer.config.tag_schemes import scheme_of, types_of
from plainformer.evaluate import make_scorer

TYPES = ("PER", "LOC")


LABELS = {
    "IOB1": ["O", *(f"{prefix}-{kind}" for prefix in "IB" for kind in TYPES)],
    "IOB2": ["O", *(f"{prefix}-{kind}" for prefix in "IB" for kind in TYPES)],
    "IOBES": ["O", *(f"{prefix}-{kind}" for prefix in "IBES" for kind in TYPES)],
    "BILOU": ["O", *(f"{prefix}-{kind}" for prefix in "BILU" for kind in TYPES)],
}


def sentences(labels: list[str]) -> Any:
    tag = st.sampled_from(labels)
    return st.lists(st.lists(st.tuples(tag, tag), min_size=1, max_size=8), min_size=1, max_size=5)


def well_formed(tags: Any) -> list[str]:
    """IOB1 with B only between entities of one type: what seqeval makes of others depends on what follows them."""
    before = ["O", *tags]
    return [tag if tag[2:] == last[2:] else tag.replace("B-", "I-") for last, tag in zip(before, tags, strict=False)]


def measured(found: Any, scheme: str) -> tuple[dict[str, float], list[list[str]], list[list[str]]]:
    scorer = make_scorer("entities", labels=LABELS[scheme], scheme=scheme)
    right, answers = ([[pair[side] for pair in sentence] for sentence in found] for side in (0, 1))
    rows = np.array([scorer.row(*pair) for pair in zip(right, answers, strict=True)])
    return scorer.measure(rows)(np.ones(len(rows))), right, answers


def expected(scores: Any, suffix: str, right: Any, answers: Any, **settings: Any) -> dict[str, float]:
    """Seqeval's scores by our names: its zeros where nothing is defined are NaN."""
    found = {}
    for how, names in (
        ("micro", ("precision", "recall", "f1")),
        ("macro", ("", "", "f1_macro")),
        ("weighted", ("", "", "f1_weighted")),
    ):
        values = scores(right, answers, average=how, zero_division=0, **settings)
        found |= {f"{name}{suffix}": float(value) for name, value in zip(names, values[:3], strict=True) if name}
    return found


@pytest.mark.parametrize("scheme", sorted(LABELS))
def test_equal_to_seqeval(scheme: str) -> None:
    @settings(max_examples=150, deadline=None)
    @given(sentences(LABELS[scheme]))
    def check(found: Any) -> None:
        if scheme == "IOB1":
            found = [list(zip(*map(well_formed, zip(*sentence, strict=True)), strict=True)) for sentence in found]
        values, right, answers = measured(found, scheme)
        letters = {"L": "E", "U": "S"}  # seqeval's default mode does not know those of BILOU
        iobes = [
            [[letters.get(tag[0], tag[0]) + tag[1:] for tag in tags] for tags in side] for side in (right, answers)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = expected(precision_recall_fscore_support, "", *iobes)
            rules = getattr(seqeval.scheme, scheme)
            theirs |= expected(strict_scores, "_strict", right, answers, scheme=rules)
        for name, value in theirs.items():
            undefined = math.isnan(values[name])
            assert not value > 0 if undefined else values[name] == pytest.approx(value), name
        pairs = [pair for sentence in found for pair in sentence]
        assert values["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))

    check()


def test_types() -> None:
    found = [[("B-PER", "B-PER"), ("I-PER", "O"), ("B-LOC", "B-LOC")], [("O", "I-LOC"), ("B-PER", "B-PER")]]
    values, right, answers = measured(found, "IOB2")
    report = classification_report(right, answers, output_dict=True)
    for kind in TYPES:
        assert values[f"f1/{kind}"] == pytest.approx(report[kind]["f1-score"])
        assert values[f"precision/{kind}"] == pytest.approx(report[kind]["precision"])
    assert values["f1"] != values["f1_strict"]
    scorer = make_scorer("entities", labels=LABELS["IOB2"])
    rows = np.array([scorer.row(*pair) for pair in zip(right, answers, strict=True)])
    assert [table.name for table in scorer.tables(rows)] == ["types", "strict_types"]
    assert [table.name for table in scorer.tables(rows[:1])] == ["types"]


def test_the_scheme_is_that_of_the_prefixes() -> None:
    assert {name: scheme_of(labels) for name, labels in LABELS.items()} == {name: name for name in LABELS} | {
        "IOB1": "IOB2"
    }
    assert scheme_of(["NOUN", "O"]) is None and scheme_of(["O"]) is None and scheme_of(["I-PER", "O"]) is None
    assert scheme_of(["B-PER", "X"]) is None and types_of(["O", "B-PER", "I-PER", "B-x y", "MISC"]) == (
        "PER",
        "x y",
        "MISC",
    )
    words = make_scorer("entities", labels=["O", "PER"])
    assert not any("strict" in metric.name for metric in words.metrics)
    assert words.settings() == {"labels": ["O", "PER"], "scheme": None}
