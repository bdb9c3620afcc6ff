"""Splits are scikit-learn's, index for index, on rows sorted by what they hold; the order of the file changes nothing."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn import model_selection as sk

from plainformer.config.training import SplitConfig
from plainformer.data import folds
from plainformer.data.columns import Columns
from plainformer.data.rows import DataRow
from plainformer.data.split import SIDES, Split, digest, divide, fold
from plainformer.data.survey import Survey, ids_of, survey
from plainformer.errors import InputError, UsageError

COLUMNS = Columns({"text": "text", "label": "label"}, frozenset({"text"}))


def surveyed(rows: list[dict[str, Any]], group: str | None = None) -> Survey:
    placed = [DataRow(row, f"line {i}") for i, row in enumerate(rows)]
    return survey("train", placed, COLUMNS, targets=("label",), group=group)


def cases(count: int, seed: int = 0) -> list[tuple[np.random.RandomState, int, int, int]]:
    """Random sizes: generator, rows, folds, seed."""
    rng = np.random.RandomState(seed)
    return [(rng, int(rng.randint(20, 200)), int(rng.randint(2, 7)), int(rng.randint(0, 1000))) for _ in range(count)]


def same_folds(found: Any, splitter: Any, *arguments: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = [test for _, test in splitter.split(np.zeros(len(found)), *arguments)]
    for k, test in enumerate(tests):
        assert np.array_equal(np.flatnonzero(found == k), test)


def test_folds_are_scikit_learns() -> None:
    for rng, n, k, seed in cases(60):
        same_folds(folds.random_folds(n, k, seed), sk.KFold(k, shuffle=True, random_state=seed))
        labels = np.unique(rng.randint(0, rng.randint(1, 9), n) ** 2, return_inverse=True)[1]
        groups = np.unique(rng.randint(0, rng.randint(k, 60) + k, n), return_inverse=True)[1]
        if np.bincount(labels).max() >= k:
            same_folds(
                folds.stratified_folds(labels, k, seed), sk.StratifiedKFold(k, shuffle=True, random_state=seed), labels
            )
        if groups.max() + 1 >= k:
            same_folds(
                folds.grouped_folds(groups, k, seed), sk.GroupKFold(k, shuffle=True, random_state=seed), None, groups
            )
            if np.bincount(labels).max() >= k:
                splitter = sk.StratifiedGroupKFold(k, shuffle=True, random_state=seed)
                same_folds(folds.stratified_grouped_folds(labels, groups, k, seed), splitter, labels, groups)


def test_shares_are_scikit_learns() -> None:
    compared = 0
    for rng, n, _, seed in cases(80, 1):
        share = float(rng.uniform(0.05, 0.6))
        count = folds.share_of(share, n)
        ((_, test),) = sk.ShuffleSplit(1, test_size=share, random_state=seed).split(np.zeros(n))
        assert np.array_equal(np.flatnonzero(folds.random_share(n, count, seed)), np.sort(test))
        groups = np.unique(rng.randint(0, 30, n), return_inverse=True)[1]
        splitter = sk.GroupShuffleSplit(1, test_size=share, random_state=seed)
        ((_, test),) = splitter.split(np.zeros(n), groups=groups)
        assert np.array_equal(np.flatnonzero(folds.grouped_share(groups, share, seed)), test)
        labels = np.unique(rng.randint(0, rng.randint(1, 5), n), return_inverse=True)[1]
        try:
            splitter = sk.StratifiedShuffleSplit(1, test_size=share, random_state=seed)
            ((_, test),) = splitter.split(np.zeros(n), labels)
        except ValueError:
            with pytest.raises(InputError):
                folds.check_strata(labels, [str(i) for i in range(9)], count)
            continue
        compared += 1
        assert np.array_equal(np.flatnonzero(folds.stratified_share(labels, count, seed)), np.sort(test))
    assert compared > 50


ROWS = [{"text": f"text number {i}", "label": "ab"[i % 3 == 0], "topic": f"topic {i % 17}"} for i in range(120)]


def sides_by_text(rows: list[dict[str, Any]], split: Split) -> dict[str, int]:
    return {row["text"]: int(side) for row, side in zip(rows, split.sides, strict=True)}


@pytest.mark.parametrize("by", ["random", "stratified", "grouped"])
def test_the_order_of_the_file_changes_nothing(by: str) -> None:
    group = "topic" if by == "grouped" else None
    config = SplitConfig(validation=0.2, test=0.1, by=by, group=group, seed=3)
    split = divide(surveyed(ROWS, group), config)
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    again = divide(surveyed(shuffled, group), config)
    assert sides_by_text(ROWS, split) == sides_by_text(shuffled, again)
    assert split.record() == again.record()
    other = divide(surveyed(ROWS, group), SplitConfig(validation=0.2, test=0.1, by=by, group=group, seed=4))
    assert sides_by_text(ROWS, other) != sides_by_text(ROWS, split) and other.record() != split.record()
    if by != "grouped":
        assert [len(split.rows(side)) for side in SIDES[:3]] == [84, 24, 12]
    else:
        topics = [{ROWS[i]["topic"] for i in split.rows(side)} for side in SIDES[:3]]
        assert [len(one) for one in topics] == [11, 4, 2] and len(set.union(*topics)) == 17
    folded = fold(surveyed(ROWS, group), 4, by, group=group)
    assert {row["text"]: k for row, k in zip(ROWS, folded, strict=True)} == {
        row["text"]: k for row, k in zip(shuffled, fold(surveyed(shuffled, group), 4, by, group=group), strict=True)
    }


def test_both_shares_are_those_of_two_splitters() -> None:
    """Of the rows sorted by key: the test set first, the validation set from the rest."""
    found = surveyed(ROWS)
    order = np.lexsort((found.keys[:, 1], found.keys[:, 0]))
    ((rest, test),) = sk.ShuffleSplit(1, test_size=0.1, random_state=7).split(order)
    rest = np.sort(rest)
    ((_, validation),) = sk.ShuffleSplit(1, test_size=24, random_state=7).split(rest)
    split = divide(found, SplitConfig(validation=0.2, test=0.1, seed=7))
    assert set(split.rows("test")) == set(order[test])
    assert set(split.rows("validation")) == set(order[rest[validation]])


def test_strata_keep_their_shares() -> None:
    split = divide(surveyed(ROWS), SplitConfig(validation=0.25, by="stratified"))
    labels = [ROWS[i]["label"] for i in split.rows("validation")]
    assert (labels.count("a"), labels.count("b")) == (20, 10)


@pytest.mark.parametrize("by", ["random", "stratified"])
def test_copies_stay_together_where_they_are_a_group(by: str) -> None:
    rows = [*ROWS, *({**row, "text": row["text"].upper() + "  "} for row in ROWS[::2])]
    found = surveyed(rows)
    assert len(np.unique(ids_of(found.keys))) == len(ROWS)
    split = divide(found, SplitConfig(validation=0.3, by=by), duplicates="group")
    for i, row in enumerate(ROWS[::2]):
        assert split.sides[ROWS.index(row)] == split.sides[len(ROWS) + i]
    folded = fold(found, 3, by, duplicates="group")
    assert all(folded[2 * i] == folded[len(ROWS) + i] for i in range(len(ROWS) // 2))
    apart = divide(found, SplitConfig(validation=0.3, by=by))
    assert any(apart.sides[2 * i] != apart.sides[len(ROWS) + i] for i in range(len(ROWS) // 2))


def test_groups_and_copies_together() -> None:
    """A copy ties two groups: a chain of them ends up on one side."""
    rows = [{"text": f"row {i // 2}", "label": "a", "topic": f"{(i + 1) // 2}"} for i in range(20)]
    rows += [{"text": f"other {i}", "label": "a", "topic": f"other {i}"} for i in range(9)]
    split = divide(
        surveyed(rows, "topic"), SplitConfig(by="grouped", group="topic", validation=0.3), duplicates="group"
    )
    assert len(set(split.sides[:20].tolist())) == 1 and len(split.rows("validation")) > 0


def test_parts_of_a_column_as_groups() -> None:
    texts = ["First  paragraph.\n\nmore", "first paragraph.", "Another.\nline\n\nmore"]
    rows = [{"text": f"{i}", "description": text, "file": f"{'ab'[i > 1]}/{i}.py"} for i, text in enumerate(texts)]
    for group in ("description:first_paragraph", "file:folder", "description:first_line"):
        ids = ids_of(surveyed(rows, group).groups)  # type: ignore[arg-type]
        assert ids[0] == ids[1] != ids[2]
    with pytest.raises(UsageError, match="did you mean 'first_paragraph'"):
        surveyed(rows, "description:first_paragraf")
    with pytest.raises(InputError, match=r"line 0 has no 'topic', which data\.split\.group names"):
        surveyed(rows, "topic")


def test_the_record_says_who_is_where() -> None:
    split = divide(surveyed(ROWS), SplitConfig(validation=0.2))
    record = split.record()
    assert record["sides"].keys() == {"train", "validation"}
    assert record["sides"]["train"] == {"rows": 96, "keys": digest(split.keys[split.rows("train")])}
    assert record["seed"] == 0 and record["by"] == "random"


def test_refused() -> None:
    found = surveyed(ROWS)
    with pytest.raises(UsageError, match=r"data\.split\.by='grouped' without data\.split\.group"):
        fold(found, 3, "grouped")
    with pytest.raises(UsageError, match=r"data\.split\.group has no effect with data\.split\.by='random'"):
        fold(surveyed(ROWS, "topic"), 3, group="topic")
    with pytest.raises(InputError, match="1 row cannot give 1 and keep one"):
        divide(surveyed(ROWS[:1]), SplitConfig())
    lonely = [*ROWS, {"text": "x", "label": "rare"}]
    with pytest.raises(InputError, match="1 label has one row alone, such as 'rare'"):
        divide(surveyed(lonely), SplitConfig(by="stratified"))
    with pytest.raises(InputError, match="the label 'rare' has 1 row, fewer than 3 folds"):
        fold(surveyed(lonely), 3, "stratified")
    with pytest.raises(UsageError, match="folds=1 of 120 rows"):
        fold(found, 1)
    unlabelled = survey("train", [DataRow({"text": "a"}, "1")], Columns({"text": "text"}))
    with pytest.raises(UsageError, match="where rows have no label"):
        divide(unlabelled, SplitConfig(by="stratified"))


@pytest.mark.parametrize("by", ["random", "stratified", "grouped"])
def test_the_fold_that_is_held_out_is_scikit_learns(by: str) -> None:
    """Of all rows but the test set, sorted by key; the rest is divided as ever."""
    group = "topic" if by == "grouped" else None
    found = surveyed(ROWS, group)
    config = SplitConfig(validation=0.2, test=0.1, by=by, group=group, seed=5)
    order = np.lexsort((found.keys[:, 1], found.keys[:, 0]))
    test = divide(found, config).rows("test")
    rest = order[~np.isin(order, test)]
    labels = [found.label_texts[i] for i in rest]
    groups = None if found.groups is None else ids_of(found.groups)[rest]
    splitters = {"random": sk.KFold, "stratified": sk.StratifiedKFold, "grouped": sk.GroupKFold}
    splitter = splitters[by](4, shuffle=True, random_state=5)
    held_out = set[int]()
    for number, (_, fold_rows) in enumerate(splitter.split(rest, labels, groups), start=1):
        split = divide(found, replace(config, folds=4, fold=number))
        assert set(split.rows("held_out")) == set(rest[fold_rows]) and np.array_equal(split.rows("test"), test)
        assert sum(len(split.rows(side)) for side in SIDES) == len(ROWS) and len(split.rows("validation"))
        held_out |= set(split.rows("held_out").tolist())
        if groups is not None:
            topics = [{ROWS[i]["topic"] for i in split.rows(side)} for side in SIDES]
            assert sum(map(len, topics)) == len(set.union(*topics))
    assert held_out == set(rest.tolist())


def test_an_outer_fold_is_held_out_of_all_inner_ones() -> None:
    found = surveyed(ROWS)
    config = SplitConfig(validation=0.1, by="stratified", folds=3, fold=2)
    outer = divide(found, config).rows("held_out")
    inner = [
        divide(found, replace(config, folds=4, fold=n, outer=3, outer_fold=2)).rows("held_out") for n in range(1, 5)
    ]
    assert all(np.isin(outer, rows).all() for rows in inner)
    own = [set(rows.tolist()) - set(outer.tolist()) for rows in inner]
    assert sum(map(len, own)) == len(set.union(*own)) == len(ROWS) - len(outer)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"folds": 3}, "folds=3 without fold"),
        ({"fold": 3}, "fold=3 without folds"),
        ({"folds": 3, "fold": 4}, "fold=4 of folds=3"),
        ({"outer": 2, "outer_fold": 1}, "outer has no effect without folds"),
    ],
)
def test_folds_that_cannot_be(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        SplitConfig(**options)
    assert what in str(caught.value)
