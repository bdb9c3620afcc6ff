"""Tags of words: scikit-learn's accuracy and F1 over all words; and the sums of hidden tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from plainformer.errors import InputError
from plainformer.evaluate.scorers import make_scorer

LABELS = ("DET", "NOUN", "VERB", "X")


def test_tags_as_scikit_learn_scores_them() -> None:
    draw = random.Random(0)
    pairs = [[[draw.choice(LABELS[:3]) for _ in range(n)] for _ in range(2)] for n in [1, 5, 9, 0, 7] * 6]
    scorer = make_scorer("tags", labels=LABELS)
    rows = np.array([scorer.row(*pair) for pair in pairs])
    found = scorer.measure(rows)(np.ones(len(rows)))
    right, given = ([tag for pair in pairs for tag in pair[side]] for side in (0, 1))
    assert found["accuracy"] == pytest.approx(accuracy_score(right, given))
    assert found["f1_macro"] == pytest.approx(f1_score(right, given, average="macro"))
    assert found["f1_weighted"] == pytest.approx(f1_score(right, given, average="weighted"))
    each = precision_recall_fscore_support(right, given, labels=LABELS[:3])
    for place, label in enumerate(LABELS[:3]):
        assert [found[f"{kind}/{label}"] for kind in ("precision", "recall", "f1")] == pytest.approx(
            [v[place] for v in each[:3]]
        )
    assert found["f1/X"] != found["f1/X"]  # undefined
    (table,) = scorer.tables(rows)
    assert [row[0] for row in table.rows] == list(LABELS) and table.rows[0][4] == each[3][0]
    with pytest.raises(InputError, match="2 tags and 1 answers"):
        scorer.row(["X", "X"], ["X"])
    with pytest.raises(InputError, match="no label 'Y'"):
        scorer.row(["X"], ["Y"])


def test_hidden_tokens_are_summed() -> None:
    scorer = make_scorer("masked")
    rows = np.array([scorer.row(None, {"nats": n, "tokens": t, "right": r}) for n, t, r in ((3.0, 2, 1), (9.0, 4, 0))])
    assert scorer.measure(rows)(np.ones(2)) == {"loss": 2.0, "accuracy": pytest.approx(1 / 6)}
    assert scorer.measure(rows)(np.array([2.0, 0.0])) == {"loss": 1.5, "accuracy": 0.5}
