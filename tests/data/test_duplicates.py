"""Planted copies are found, unrelated texts are not; the policy decides what becomes of them; the report tells it all."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plainformer.config.training import SourceConfig, SplitConfig
from plainformer.data.alike import Near, near_copies, texts_of
from plainformer.data.cache import cached
from plainformer.data.columns import Columns
from plainformer.data.counts import Counts
from plainformer.data.duplicates import conflicts, inside, kept_rows, overlap, overlaps, window_share
from plainformer.data.read import read
from plainformer.data.report import report
from plainformer.data.rows import DataRow, MediaPath
from plainformer.data.split import divide
from plainformer.data.store import Store, StoreWriter
from plainformer.data.survey import Survey, normalised, plain, survey
from plainformer.errors import InputError, UsageError

COLUMNS = Columns({"text": "text", "label": "label"}, frozenset({"text"}))
WORDS = [f"word{i}" for i in range(5000)]


def part(name: str, rows: Iterable[tuple[str, Any]]) -> Survey:
    placed = [DataRow({"text": text, "label": label}, f"{name} line {i + 1}") for i, (text, label) in enumerate(rows)]
    return survey(name, placed, COLUMNS, targets=("label",))


def unrelated(count: int, length: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(length)) for _ in range(count)]


# Same after NFKC, casefold and collapsed white space: full width, ligature, sharp s, no-break space.
COPIES = [
    ("The cat sat.", "  the CAT\u00a0sat.\n"),
    ("ABC \ufb01ne", "\uff21\uff22\uff23 fine"),
    ("STRASSE", "straße"),
    ("caf\u00e9", "cafe\u0301"),
]


@pytest.mark.parametrize(("text", "copy"), COPIES)
def test_copies_have_one_key(text: str, copy: str) -> None:
    assert normalised(text) == normalised(copy)
    found = overlap(part("validation", [(copy, 1), ("other", 0)]), part("train", [("first", 1), (text, 1)]))
    assert (found.rows, found.originals, found.share) == (1, 1, 0.5)
    assert found.examples == (("validation line 1", "train line 2"),)


def test_different_rows_have_different_keys(tmp_path: Path) -> None:
    texts = ["cat", "cats", "the cat", "thecat", "c at", "café", "cafe", "1", ""]
    assert inside(part("train", [(text, 0) for text in texts])) == 0
    pairs = Columns({"a": "a", "b": "b"})
    rows = [DataRow({"a": a, "b": b}, "") for a, b in (("x y", "z"), ("x", "y z"), ("", "x y z"), ("x y z", ""))]
    assert inside(survey("train", rows, pairs)) == 0
    for name in "ab":
        (tmp_path / name).write_bytes(b"same")
    assert plain(MediaPath(tmp_path / "a")) == plain(MediaPath(tmp_path / "b")) != plain(str(tmp_path / "a"))
    assert plain(np.zeros((2, 3))) != plain(np.zeros((3, 2))) and plain(["a", "b"]) == plain("A  b")


TRAIN = part("train", [("a", 1), ("b", 0), ("A ", 1), ("c", 1), ("d", 0)])
VALIDATION = part("validation", [("a", 1), ("x", 0), ("D", 1)])


def test_policies() -> None:
    assert inside(TRAIN) == 1
    with pytest.raises(
        InputError, match=r"2 rows of validation are in train too \(66\.7 %\): validation line 1 is train line 1; "
    ) as caught:
        kept_rows(TRAIN, [VALIDATION], "refuse", divided=False)
    assert "give data.duplicates: drop_train (leave them out of train), allow" in str(caught.value)
    assert "group (keep" not in str(caught.value)
    with pytest.raises(InputError, match="group \\(keep copies on one side\\)"):
        kept_rows(TRAIN, [VALIDATION], "refuse", divided=True)
    assert kept_rows(TRAIN, [VALIDATION], "drop_train", divided=False).tolist() == [False, True, False, True, False]
    assert kept_rows(TRAIN, [VALIDATION], "allow", divided=False).all()
    with pytest.raises(UsageError, match=r"data\.duplicates='group' has no effect on parts that are given"):
        kept_rows(TRAIN, [VALIDATION], "group", divided=False)
    assert kept_rows(TRAIN, [part("validation", [("x", 1)])], "refuse", divided=False).all()
    assert kept_rows(TRAIN, [], "refuse", divided=False).all()


def test_a_group_split_leaves_no_copies() -> None:
    rows = [(f"text {i % 40}", i % 2) for i in range(100)]
    whole = part("train", rows)
    split = divide(whole, SplitConfig(validation=0.25), duplicates="group")
    sides = [whole.taken(split.rows(side), side) for side in ("train", "validation")]
    assert not overlaps(sides) and kept_rows(sides[0], sides[1:], "group", divided=True).all()


def test_conflicts() -> None:
    found = conflicts([TRAIN, VALIDATION])
    assert (found.inputs, found.rows) == (1, 2)
    assert found.examples == ("0 (train line 5), 1 (validation line 3)",)
    assert conflicts([TRAIN]).inputs == 0


def test_near_copies_are_found_and_unrelated_texts_are_not() -> None:
    texts = unrelated(1500, 60, 0)
    changed = []
    for i, text in enumerate(texts[:200]):
        words = text.split()
        words[10 + i % 40] = "changed"
        changed.append(" ".join(words))
    punctuated = [text.replace(" ", ", ") for text in texts[200:220]]
    near = near_copies(
        [(f"t{i}", text) for i, text in enumerate(texts)],
        [
            (f"v{i}", text)
            for i, text in enumerate([*changed, *punctuated, *unrelated(1000, 60, 1), texts[300].upper()])
        ],
    )
    assert (near.compared, near.inside, near.across) == (2721, 0, 220)
    place, other, like = near.examples[0]
    assert (place, other) == ("v0", "t0") and like == pytest.approx(51 / 61)  # 56 runs each, 5 of them changed
    assert "v0 and t0 (84 % alike)" in near.lines()[0]


def test_near_copies_inside_and_in_crowds() -> None:
    """Hundreds of texts that are alike in one way do not hide the one of another part."""
    base = unrelated(1, 80, 3)[0].split()
    crowd = [" ".join([*base[:40], f"n{i}", *base[40:]]) for i in range(300)]
    near = near_copies([(f"t{i}", text) for i, text in enumerate(crowd)], [("v", " ".join(base))])
    assert near.inside == 299 and near.across == 1


def test_short_and_empty_texts_are_compared_whole() -> None:
    near = near_copies([("t0", "cool"), ("t1", ""), ("t2", "?!")], [("v0", "cool ?"), ("v1", ""), ("v2", "cold")])
    assert near.across == 1 and near.examples == (("v0", "t0", 1.0),)
    assert near_copies([]).compared == 0


def store_of(folder: Path, examples: list[list[int]]) -> Store:
    def fill(writer: StoreWriter) -> None:
        for i, ids in enumerate(examples):
            writer.add({"input_ids": np.array(ids, np.int64)}, len(ids), i)

    return cached("k", fill, folder)


def test_windows_of_validation_in_train(tmp_path: Path) -> None:
    """Equal to comparing tuples, wherever a window begins in train."""
    rng = random.Random(0)
    train = [[rng.randrange(3) for _ in range(rng.randrange(120))] for _ in range(60)]
    validation = [[rng.randrange(3) for _ in range(rng.randrange(60))] for _ in range(60)]
    validation[7][:0] = train[3][5:37]
    validation += [train[50][1:], []]
    size = 4
    there = {tuple(ids[i : i + size]) for ids in train for i in range(len(ids) - size + 1)}
    wanted = [tuple(ids[i : i + size]) for ids in validation for i in range(0, len(ids) - size + 1, size)]
    found = window_share(store_of(tmp_path / "t", train), store_of(tmp_path / "v", validation), size=size)
    assert (found.windows, found.found) == (len(wanted), sum(window in there for window in wanted))
    size = 30
    found = window_share(store_of(tmp_path / "t", train), store_of(tmp_path / "v", validation), size=size)
    assert 7 in found.examples and len(validation) - 2 in found.examples and 0 < found.share < 0.5
    assert window_share(store_of(tmp_path / "t", train), store_of(tmp_path / "e", []), size=4).share == 0


def test_the_report(tmp_path: Path) -> None:
    rows = [(f"text {i}", "common" if i < 190 else "seldom" if i < 199 else "lonely") for i in range(200)]
    train = part("train", [*rows, ("text 0", "common")])
    validation = part("validation", [("text 3", "seldom"), ("new", "other")])
    counts = Counts(rows=203)
    counts.drop("answer outside text", "train line 4")
    counts.shorten(7, "train line 9")
    lengths = {"train": np.arange(1, 202), "validation": np.array([5, 7])}
    found = report(
        [train, validation], counts={"train": counts}, lengths=lengths, max_length=150, near=Near(203, 4), split=None
    )
    said = "\n".join(found.lines())
    for line in (
        "train: 201 rows",
        "  1 repeat an earlier one",
        "  tokens: shortest 1, 5 % 11, median 101, 95 % 191, 99 % 199, longest 201; 20,301 in all; 51 longer than 150",
        "  1 dropped: answer outside text (for example train line 4)",
        "  1 cut, which loses 7 tokens (for example train line 9)",
        "label 'common': 191 train, 0 validation",
        "label 'seldom': 9 train, 1 validation (rare)",
        "1 label of other parts, not in train: 'other'",
        "1 input has several targets, 2 rows in all: common (train line 4), seldom (validation line 1)",
        "leak: 1 row of validation is in train too (50.0 %): validation line 1 is train line 4",
        "4 rows of train nearly equal an earlier one",
    ):
        assert line in said.splitlines(), line
    assert [row.label for row in found.rare] == ["seldom", "lonely", "other"]
    assert json.loads(json.dumps(found.to_dict()))["overlaps"][0]["rows"] == 1


def test_targets_that_are_texts_have_no_table() -> None:
    train = part("train", [(f"text {i}", f"summary {i}") for i in range(200)])
    found = report([train, part("validation", [("x", "y")])])
    assert not found.labels and not found.unseen
    assert found.lines()[-1] == "no row of train was found in another part"


def test_from_files_to_the_report(tmp_path: Path) -> None:
    """The same words, in the order in which training will ask."""
    lines = [f"en:{word}\tO\nen:x\tB-LOC\n\t\n" for word in "abcdef"]
    (tmp_path / "train.conll").write_text("".join([*lines, lines[0]]))
    (tmp_path / "dev.conll").write_text("".join([lines[2], "en:new\tO\n"]))
    columns = Columns({"tokens": "tokens", "tags": "tags"}, frozenset({"tokens", "tags"}))
    sources = {name: read(SourceConfig(path=str(tmp_path / f"{name}.conll"))) for name in ("train", "dev")}
    surveys = [survey(name, rows, columns, targets=("tags",)) for name, rows in sources.items()]
    near = near_copies(*(texts_of(rows, columns, ("tags",)) for rows in sources.values()))
    found = report(surveys, near=near)
    assert [part.repeats for part in found.parts] == [1, 0] and found.overlaps[0].rows == 1
    assert found.near is not None and (found.near.across, found.near.inside) == (0, 0)
    assert {row.label: dict(row.counts) for row in found.labels} == {
        "O": {"train": 7, "dev": 2},
        "B-LOC": {"train": 7, "dev": 1},
    }
