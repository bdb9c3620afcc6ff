"""Kept evaluations of different rows as one: metrics of all, and units that lie in several folds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from plainformer.data.survey import hash_of
from plainformer.errors import InputError
from plainformer.evaluate import bootstrap, make_scorer
from plainformer.evaluate.kept import Keeper, Kept
from plainformer.folds.pooled import pool, units_of

LABELS = ("no", "yes")


def kept(folder: Path, answers: Sequence[tuple[str, str, str | None]], labels: tuple[str, ...] = LABELS) -> Kept:
    """A kept evaluation of (right, given, document) answers."""
    scorer = make_scorer("single-label", labels=labels)
    with Keeper(folder, len(scorer.columns)) as keeper:
        for number, (right, given, unit) in enumerate(answers):
            answer = {"label": given, "probabilities": [float(given == label) for label in labels]}
            line = {"place": f"line {number}", "reference": right, "answer": answer}
            key = hash_of(f"{folder} {number}")
            keeper.add(line, scorer.row(right, answer), key, None if unit is None else hash_of(unit))
        units = keeper.units(own=answers[0][2] is None)
        info = {"scorer": {"name": scorer.name, "settings": dict(scorer.settings())}, "unit": {"name": "document"}}
        return keeper.finish(info, units)


def test_a_document_that_lies_in_two_folds_is_one_unit(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        (LABELS[int(right)], LABELS[int(given)], f"document {place // 3}")
        for place, (right, given) in enumerate(draw.integers(0, 2, (90, 2)))
    ]
    folds = [kept(tmp_path / "1", rows[::2]), kept(tmp_path / "2", rows[1::2])]
    pooled = pool(folds)
    assert pooled.n == 90 and pooled.units == 30
    scorer = folds[0].scorer
    whole = np.concatenate([one.rows for one in folds])
    documents = [row[2] for row in rows[::2] + rows[1::2]]
    expected = bootstrap(whole, scorer.measure, np.unique(documents, return_inverse=True)[1])
    assert pooled.metrics["accuracy"].value == np.mean([right == given for right, given, _ in rows])
    assert pooled.metrics["accuracy"].units == expected["accuracy"].units == 30
    assert [own["accuracy"] for own in pooled.folds] == [
        np.mean([right == given for right, given, _ in rows[start::2]]) for start in (0, 1)
    ]


def test_rows_without_a_unit_are_one_each(tmp_path: Path) -> None:
    rows: list[tuple[str, str, str | None]] = [("yes", "no", None)] * 4
    assert units_of([kept(tmp_path / "1", rows), kept(tmp_path / "2", rows)]).tolist() == list(range(8))


def test_folds_with_other_labels_are_refused(tmp_path: Path) -> None:
    rows: list[tuple[str, str, str | None]] = [("yes", "no", None)] * 4
    with pytest.raises(InputError, match="not scored alike"):
        pool([kept(tmp_path / "1", rows), kept(tmp_path / "2", rows, ("no", "yes", "x"))])
