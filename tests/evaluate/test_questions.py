"""The scorer of questions, against the script's arithmetic in squad.py and the official scripts' recorded results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plainformer.errors import InputError
from plainformer.evaluate import evaluate_squad, make_scorer
from tests.support.scorers import pairs

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "squad.json").read_text())


def measured(scorer: Any, references: Any, predictions: Any, scores: Any = None) -> tuple[dict[str, float], np.ndarray]:
    answers = {
        name: {"text": predictions[name], **({"no_answer_score": scores[name]} if scores else {})}
        for name in references
    }
    rows = np.array([scorer.row(references[name], answers[name]) for name in references], dtype=np.float64)
    return scorer.measure(rows)(np.ones(len(rows))), rows


@pytest.mark.parametrize("case", RECORDED["1.1"], ids=lambda case: str(len(case["references"])))
def test_version_1(case: dict[str, Any]) -> None:
    found, _ = measured(make_scorer("squad", version="1.1"), case["references"], case["predictions"])
    assert found == pytest.approx({"exact_match": case["result"]["exact_match"], "f1": case["result"]["f1"]}, abs=1e-9)


@pytest.mark.parametrize("case", RECORDED["2.0"], ids=lambda case: str(len(case["references"])))
def test_version_2(case: dict[str, Any]) -> None:
    asked = case["references"], case["predictions"]
    plain, _ = measured(make_scorer("squad"), *asked)
    scorer = make_scorer("squad", no_answer_scores=True, threshold=case["threshold"])
    scored, _ = measured(scorer, *asked, case["scores"])
    names = {"exact_match": "exact", "f1": "f1", "has_answer_exact_match": "HasAns_exact", "has_answer_f1": "HasAns_f1"}
    names["no_answer_accuracy"] = "NoAns_exact"
    for ours, theirs in ((plain, case["plain"]), (scored, case["scored"])):
        for name, other in names.items():
            assert ours[name] == pytest.approx(theirs.get(other, np.nan), abs=1e-9, nan_ok=True), name


def test_best_thresholds() -> None:
    """Equal to the script's where scores differ; with equal ones no better than it, which parts what no threshold can."""
    scorer = make_scorer("squad", no_answer_scores=True)
    for seed in range(40):
        found = pairs("squad", 30, seed)
        references = {str(place): pair[0] for place, pair in enumerate(found)}
        predictions = {str(place): pair[1]["text"] for place, pair in enumerate(found)}
        equal = {str(place): pair[1]["no_answer_score"] for place, pair in enumerate(found)}
        different = {name: score + 1e-3 * int(name) for name, score in equal.items()}
        for scores in (different, equal):
            ours, rows = measured(scorer, references, predictions, scores)
            theirs = evaluate_squad(predictions, references, no_answer_scores=scores)
            assert (ours["exact_match"], ours["f1"]) == pytest.approx((theirs.exact, theirs.f1))
            best = theirs.best_exact, theirs.best_f1
            if scores is equal:
                assert ours["best_exact_match"] <= best[0] + 1e-9 and ours["best_f1"] <= best[1] + 1e-9
                continue
            assert (ours["best_exact_match"], ours["best_f1"]) == pytest.approx(best)
            thresholds = {line[0]: line[1] for line in scorer.tables(rows)[0].rows}
            assert thresholds == pytest.approx(
                {"best_exact_match": theirs.best_exact_threshold, "best_f1": theirs.best_f1_threshold}
            )
            # What the threshold promises is what it gives.
            cut = make_scorer("squad", no_answer_scores=True, threshold=thresholds["best_f1"])
            if thresholds["best_f1"] != 0:
                assert cut.measure(rows)(np.ones(30))["f1"] >= ours["best_f1"] - 1e-9


def test_every_question_of_version_1_has_an_answer() -> None:
    with pytest.raises(InputError, match="no right answer"):
        make_scorer("squad", version="1.1").row([], {"text": ""})
