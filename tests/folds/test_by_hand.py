"""A cross validation against runs made by hand on scikit-learn's splits, and against what would leak."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, KFold, ShuffleSplit, StratifiedKFold

import plainformer as pf
from plainformer.data.survey import hash_of
from plainformer.evaluate.kept import Kept
from tests.support.runs import WORDS, labelled, texts, write_rows

Tiny = Callable[[str], Path]
Row = dict[str, Any]
COUNT, SHARE = 3, 0.25


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PLAINFORMER_STATE", str(tmp_path / "state"))


def run_of(folder: Path, model: Path, data: Row, **changes: Any) -> Row:
    return {
        "objective": "text-classification",
        "folder": str(folder),
        "model": {"ref": str(model)},
        "data": {"cache": str(folder.parent / "tokenised"), **data},
        "batches": {"size": 8},
        "length": {"steps": 12},
        "optimizer": {"learning_rate": 3e-3},
        "evaluate": {"every": 4},
        **changes,
    }


def answered(folder: Path) -> list[tuple[str, str, np.ndarray[Any, Any]]]:
    """Text, right label and probabilities of each row of a kept evaluation."""
    return [
        (line["input"], line["reference"], np.array(line["answer"]["probabilities"]))
        for line in Kept(folder).predictions()
    ]


@pytest.mark.parametrize("by", ["random", "stratified", "grouped"])
def test_each_fold_is_a_run_on_scikit_learns_split(by: str, tiny: Tiny, tmp_path: Path) -> None:
    rows = list({row["text"]: row for row in labelled(texts(120, seed=3))}.values())[:72]
    for row in rows:
        row["of"] = row["text"].split()[0]
    split = {"validation": SHARE, "by": by, **({"group": "of"} if by == "grouped" else {})}
    data = {"train": {"path": str(write_rows(tmp_path / "rows.jsonl", rows))}, "split": split}
    config = run_of(tmp_path / "series", tiny("text-classification"), data, folds={"count": COUNT}, seed=4)
    result = pf.cross_validate(config)
    kept = [result.folder / str(fold.evaluation) for fold in result.folds]
    keys = {}
    for one in map(Kept, kept):
        keys.update(zip([line["input"] for line in one.predictions()], map(tuple, np.array(one.keys)), strict=True))
    ordered = sorted(rows, key=lambda row: keys[row["text"]])  # the file's order changes nothing
    right, given = [], []
    for number, (learnt, held) in enumerate(splits(ordered, by)):
        found = by_hand(tmp_path / f"hand-{number}", config, rows, learnt, held)
        ours = {text: chances for text, _, chances in answered(kept[number])}
        assert [text for text, _, _ in found] == [text for text, _, _ in answered(kept[number])]
        for text, label, chances in found:
            assert (chances == ours[text]).all(), (text, chances, ours[text])
            right.append(label)
            given.append("no" if chances[0] > chances[1] else "yes")
    assert result.pooled is not None and result.pooled.n == len(right) == len(rows)
    metrics = result.pooled.metrics
    assert metrics["accuracy"].value == pytest.approx(accuracy_score(right, given), rel=1e-12)
    assert metrics["f1_macro"].value == pytest.approx(f1_score(right, given, average="macro"), rel=1e-12)


def splits(rows: list[Row], by: str) -> list[tuple[list[str], list[str]]]:
    """scikit-learn's: the texts that a fold's run learns from, and those held out; the rest is its validation."""
    labels = [row["label"] for row in rows]
    groups = [hash_of(row["of"]) for row in rows]  # groups are numbered in the order of their hashes
    folds: Any = {"random": KFold, "stratified": StratifiedKFold, "grouped": GroupKFold}[by]
    found = []
    for rest, held in folds(COUNT, shuffle=True, random_state=0).split(rows, labels, groups):
        own = [rows[place] for place in rest]
        if by == "grouped":
            share: Any = GroupShuffleSplit(1, test_size=SHARE, random_state=0)
        elif by == "stratified":
            from sklearn.model_selection import StratifiedShuffleSplit

            share = StratifiedShuffleSplit(1, test_size=SHARE, random_state=0)
        else:
            share = ShuffleSplit(1, test_size=SHARE, random_state=0)
        learnt, _ = next(share.split(own, [row["label"] for row in own], [hash_of(row["of"]) for row in own]))
        found.append(([own[place]["text"] for place in learnt], [rows[place]["text"] for place in held]))
    return found


def by_hand(folder: Path, config: Row, rows: list[Row], learnt: list[str], held: list[str]) -> Any:
    """Train on files that hold one split, in the order of the whole; return the answers to what was held out."""
    folder.mkdir()
    sides: dict[str, list[Row]] = {"train": [], "validation": [], "held": []}
    for row in rows:
        sides["train" if row["text"] in learnt else "held" if row["text"] in held else "validation"].append(row)
    files = {side: write_rows(folder / f"{side}.jsonl", own) for side, own in sides.items()}
    data = {side: {"path": str(files[side])} for side in ("train", "validation")}
    own = {name: value for name, value in config.items() if name != "folds"}
    own |= {"folder": str(folder / "run"), "data": {**data, "cache": str(folder / "cache")}}
    run = pf.train(own)
    return answered(pf.evaluate(run.folder, files["held"]).folder)


# ---- leaks


def alike(copies: int) -> list[Row]:
    """Texts with a letter or digit that decides their label, by chance: only who has seen the same letter can know it."""
    draw, found = random.Random(8), []
    keys = "abcdefghijklmnopqrstuvwxyz0123456789"
    labels = ["yes", "no"] * (len(keys) // 2)
    draw.shuffle(labels)
    for key, label in zip(keys, labels, strict=True):
        for _ in range(copies):
            found.append({"text": f"{draw.choice(WORDS)} {key}", "label": label, "of": key})
        found[-1] = dict(found[-2])  # one of them twice
    draw.shuffle(found)
    return found


def share_right(folder: Path, rows: list[Row], model: Path, split: Row, duplicates: str) -> tuple[float, Any]:
    data = {
        "train": {"path": str(write_rows(folder.parent / "rows.jsonl", rows))},
        "split": {"validation": 0.1, **split},
        "duplicates": duplicates,
    }
    changes: Row = {"length": {"epochs": 20}, "evaluate": {"patience": 0, "every": 300, "probe": False}}
    changes |= {"batches": {"size": 24}, "schedule": {"warmup": 0.3}}
    config = run_of(folder, model, data, **changes, folds={"count": COUNT})
    config |= {"optimizer": {"learning_rate": 1e-2}, "checkpoints": {"every": 300}}
    config["model"]["dropout"] = 0.0
    result = pf.cross_validate(config)
    assert result.pooled is not None
    return result.pooled.metrics["accuracy"].value, result


def test_what_only_a_copy_tells_is_known_with_leaks_alone(tiny: Tiny, tmp_path: Path) -> None:
    rows, model = alike(4), tiny("text-classification")
    grouped = {"by": "grouped", "group": "of"}
    leaked, _ = share_right(tmp_path / "leaked", rows, model, {}, "allow")
    fair, result = share_right(tmp_path / "fair", rows, model, grouped, "group")
    # 36 letters by chance: a share of 0.5, with a standard error of 0.083.
    assert leaked > 0.85 and 0.25 < fair < 0.75, (leaked, fair)
    folds = [
        Counter(line["place"] for line in Kept(result.folder / str(f.evaluation)).predictions()) for f in result.folds
    ]
    group_of = {f"rows.jsonl line {number + 1}": row["of"] for number, row in enumerate(rows)}
    groups = [{group_of[place] for place in own} for own in folds]
    assert set.union(*groups) == set(group_of.values()) and sum(map(len, groups)) == 36
