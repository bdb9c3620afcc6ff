"""Metrics of answers to questions about texts: SQuAD's exact match and F1, in percent (see `squad`).

Shapes: N questions, M numbers of a question, G groups of equal scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plainformer.config.values import check_choice, no_effect
from plainformer.errors import InputError, opt
from plainformer.evaluate.base import Measure, Metric, Numbers, Scorer, Table, ratio
from plainformer.evaluate.ranks import Order
from plainformer.evaluate.squad import VERSIONS, question_scores

_WITH, _WITHOUT = "no question has an answer", "every question has an answer"
_VERSION_2 = (
    Metric("has_answer_exact_match", undefined=_WITH),
    Metric("has_answer_f1", undefined=_WITH),
    Metric("no_answer_accuracy", undefined=_WITHOUT),
)


class Squad(Scorer):
    """Answers to questions.

    A reference is the list of right answers, empty where there is none (2.0); an answer is {"text": ...}, "" for none, with
    `no_answer_scores` also {"no_answer_score": ...}. "best_f1" and "best_exact_match" have the threshold that is best for each;
    questions of equal scores are on the same side of it (the official script, which parts them, can say more).

    Args:
        version: "2.0" (default) or "1.1", of the official script. no_answer_scores: whether answers have them.
        threshold: questions with a higher such score count as predicted to have no answer.
    """

    name = "squad"
    in_training = {"exact": "exact_match"}  # noqa: RUF012

    def __init__(self, version: str = "2.0", no_answer_scores: bool = False, threshold: float = 1.0) -> None:
        check_choice("version", version, VERSIONS)
        no_effect(no_answer_scores and version == "1.1", "no_answer_scores", f"in {opt('version', '1.1')}")
        without = f"without {opt('no_answer_scores')}"
        no_effect(threshold != 1.0 and not no_answer_scores, "threshold", without, "give both, or neither")
        self.version, self.no_answer_scores, self.threshold = version, no_answer_scores, threshold
        self.columns = ("exact_match", "f1", "has_answer", "answered", "no_answer_score")[
            : 5 if no_answer_scores else 4
        ]
        self.metrics = (Metric("f1"), Metric("exact_match"), *_VERSION_2 * (version == "2.0"))
        self.metrics += (Metric("best_f1"), Metric("best_exact_match")) * no_answer_scores

    def settings(self) -> Mapping[str, Any]:
        return {"version": self.version, "no_answer_scores": self.no_answer_scores, "threshold": self.threshold}

    def row(self, reference: Any, answer: Any) -> Sequence[float]:
        """Return exact match and F1 from 0 to 1, whether there is a right answer, whether one was given, and the score.

        Raises InputError: a question of version 1.1 without a right answer.
        """
        if self.version == "1.1" and not reference:
            raise InputError(
                "a question has no right answer, and in SQuAD 1.1 each has one", f"pass {opt('version', '2.0')}"
            )
        first = (
            *question_scores(answer["text"], reference, version=self.version),
            bool(reference),
            bool(answer["text"]),
        )
        return (*first, float(answer["no_answer_score"])) if self.no_answer_scores else first

    def measure(self, rows_NM: Numbers) -> Measure:
        has_N = np.array(rows_NM[:, 2])
        parts_N4 = np.stack(
            (has_N, 1 - has_N, *self._cut(rows_NM).T * has_N, self._cut(rows_NM)[:, 0] * (1 - has_N)), -1
        )
        order, gains_N2 = None, None
        if self.no_answer_scores:
            order = Order(rows_NM[:, 4])
            gains_N2 = np.where(has_N[:, None] > 0, rows_NM[:, :2], -rows_NM[:, 3:4])

        def measured(weights_N: Numbers) -> dict[str, float]:
            has, lacks, exact, shared, right = (float(each) for each in 100 * (weights_N @ parts_N4))
            total = (has + lacks) / 100
            values = {"exact_match": ratio(exact + right, total), "f1": ratio(shared + right, total)}
            if self.version == "2.0":
                values |= {"has_answer_exact_match": ratio(100 * exact, has), "has_answer_f1": ratio(100 * shared, has)}
                values["no_answer_accuracy"] = ratio(100 * right, lacks)
            if order is not None and gains_N2 is not None:
                for place, name in enumerate(("best_exact_match", "best_f1")):
                    best = max(0.0, float(order.totals(weights_N * gains_N2[:, place]).max(initial=0.0)))
                    values[name] = ratio(lacks + 100 * best, total)
            return values

        return measured

    def outcomes(self, rows_NM: Numbers, metric: str) -> Numbers | None:
        return 100 * self._cut(rows_NM)[:, int(metric == "f1")] if metric in ("exact_match", "f1") else None

    def tables(self, rows_NM: Numbers) -> list[Table]:
        """Return the best thresholds, where answers have scores."""
        if not self.no_answer_scores or not len(rows_NM):
            return []
        order, found = Order(rows_NM[:, 4]), []
        scores_G = order.of_groups(rows_NM[:, 4])
        gains_N2 = np.where(rows_NM[:, 2:3] > 0, rows_NM[:, :2], -rows_NM[:, 3:4])
        for place, name in enumerate(("best_exact_match", "best_f1")):
            totals_G = order.totals(gains_N2[:, place])
            # Where answering no question is best, any threshold below all scores will do: the script says 0.
            best = int(totals_G.argmax())
            found.append((name, float(scores_G[best]) if totals_G[best] > 0 else 0.0))
        return [Table("thresholds", ("metric", "threshold"), tuple(found), "A higher score counts as no answer.")]

    def _cut(self, rows_NM: Numbers) -> Numbers:
        """Return exact match and F1 with the threshold applied, (N, 2)."""
        if not self.no_answer_scores:
            return np.array(rows_NM[:, :2])
        return np.where(rows_NM[:, 4:5] > self.threshold, rows_NM[:, 2:3] == 0, rows_NM[:, :2])
