"""SQuAD's scores against the official scripts (see tests/support/record_old_question_answering.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plainformer.errors import InputError, UsageError
from plainformer.evaluate.squad import evaluate_squad, exact_match, f1, normalize_answer, read_references

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "squad.json").read_text())


def test_normal_form() -> None:
    for text, expected in RECORDED["normalized"]:
        assert normalize_answer(text) == expected


@pytest.mark.parametrize("case", RECORDED["1.1"], ids=lambda case: str(len(case["references"])))
def test_version_1(case: dict[str, Any]) -> None:
    found = evaluate_squad(case["predictions"], case["references"], version="1.1")
    assert (found.exact, found.f1) == pytest.approx((case["result"]["exact_match"], case["result"]["f1"]), abs=1e-9)
    assert found.to_dict() == {"exact": found.exact, "f1": found.f1, "total": len(case["references"])}


@pytest.mark.parametrize("case", RECORDED["2.0"], ids=lambda case: str(len(case["references"])))
def test_version_2(case: dict[str, Any]) -> None:
    asked = (case["predictions"], case["references"])
    plain = evaluate_squad(*asked)
    scored = evaluate_squad(*asked, no_answer_scores=case["scores"], threshold=case["threshold"])
    for found, expected in ((plain, case["plain"]), (scored, case["scored"])):
        ours: dict[str, Any] = {"exact": found.exact, "f1": found.f1, "total": found.total}
        for prefix, part in (("HasAns", found.has_answer), ("NoAns", found.no_answer)):
            if part is not None:
                ours |= {f"{prefix}_exact": part.exact, f"{prefix}_f1": part.f1, f"{prefix}_total": part.total}
        if found.best_exact is not None:
            ours |= {"best_exact": found.best_exact, "best_exact_thresh": found.best_exact_threshold}
            ours |= {"best_f1": found.best_f1, "best_f1_thresh": found.best_f1_threshold}
        # Without scores the official script prints no best thresholds; the recorded function always does.
        known = {name: value for name, value in expected.items() if name in ours or not name.startswith("best")}
        assert ours == pytest.approx(known, abs=1e-9)
    assert plain.best_f1 is None and scored.best_f1 is not None


def test_by_hand() -> None:
    assert f1("the black cat", "a Cat!") == pytest.approx(2 / 3) and exact_match("The cat.", "cat") == 1
    assert f1("", "the") == 1 and f1("", "the", version="1.1") == 0 and f1("", "cat") == 0
    data = {"data": [{"paragraphs": [{"qas": [{"id": "q", "answers": [{"text": "x"}]}, {"id": "r", "answers": []}]}]}]}
    assert read_references(data) == {"q": ("x",), "r": ()}


def test_bad_input() -> None:
    gold: dict[str, list[str]] = {"q": ["cat"], "r": []}
    good = {"q": "cat", "r": ""}
    for wrong, message in (({"q": "cat"}, "lack 1 of 2"), ({**good, "s": ""}, "not one of the questions")):
        with pytest.raises(InputError, match=message):
            evaluate_squad(wrong, gold)
    with pytest.raises(InputError, match="no questions"):
        evaluate_squad({}, {})
    with pytest.raises(InputError, match="no right answer"):
        evaluate_squad(good, gold, version="1.1")
    with pytest.raises(UsageError, match="version"):
        evaluate_squad(good, gold, version="3")
    with pytest.raises(UsageError, match="no effect"):
        evaluate_squad(good, gold, threshold=0.5)
    with pytest.raises(UsageError, match="no effect"):
        evaluate_squad({"q": ""}, {"q": ["cat"]}, version="1.1", no_answer_scores={"q": 1.0})
    with pytest.raises(InputError, match="no_answer_scores lack"):
        evaluate_squad(good, gold, no_answer_scores={"q": 1.0})
    with pytest.raises(InputError, match="not a SQuAD data set"):
        read_references({"data": [{"qas": []}]})
