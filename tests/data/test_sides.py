"""From a configuration to its sides: every row is on one side, or counted with the reason why it is on none."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plainformer.config.training import DataConfig, SourceConfig, SplitConfig
from plainformer.data.sides import Sides, report_of, sides_of
from plainformer.errors import InputError


@dataclass(frozen=True)
class Column:
    name: str
    aliases: tuple[str, ...] = ()
    required: bool = True
    target: bool = False


WANTED = (Column("text", ("sentence",)), Column("label", target=True))


def write(path: Path, rows: list[dict[str, Any]]) -> SourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path))


def texts(sides: Sides, name: str) -> list[str]:
    return [row["text"] for row in sides.sides[name].mapped()]


ROWS: list[dict[str, Any]] = [{"sentence": f"text number {i}", "label": "ab"[i % 2], "topic": i % 7} for i in range(40)]


def test_rows_are_divided_and_none_is_lost(tmp_path: Path) -> None:
    rows = [*ROWS, {"sentence": "no label", "label": None}]
    source = write(tmp_path / "a.jsonl", rows)
    config = DataConfig(train=source, split=SplitConfig(validation=0.2, test=0.1, by="stratified"))
    found = sides_of(config, WANTED)
    assert list(found.sides) == ["train", "validation", "test"]
    parts = [texts(found, name) for name in found.sides]
    assert [len(part) for part in parts] == [28, 8, 4]
    assert sorted(text for part in parts for text in part) == sorted(row["sentence"] for row in ROWS)
    left = found.sides["train"].left_out.dropped
    assert {reason: one.places for reason, one in left.items()} == {"no value for 'label'": ["a.jsonl line 41"]}
    assert not found.sides["validation"].left_out.dropped
    for number, row in found.sides["validation"]:
        assert dict(row) == rows[number]
    record = found.record()
    assert record is not None and record["sides"]["train"]["rows"] == 28
    # Shuffled, the file gives the same sides.
    again = sides_of(
        DataConfig(train=write(tmp_path / "b.jsonl", random.Random(1).sample(rows, len(rows))), split=config.split),
        WANTED,
    )
    assert [sorted(texts(again, name)) for name in again.sides] == [sorted(part) for part in parts]
    assert again.record() == record
    assert len({side.digest() for side in found.sides.values()}) == 3
    assert found.sides["train"].digest() == sides_of(config, WANTED).sides["train"].digest()


def test_copies_are_refused_dropped_kept_together_or_allowed(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", ROWS)
    validation = write(
        tmp_path / "dev.jsonl", [{"sentence": "TEXT  number 3", "label": "b"}, {"sentence": "x", "label": "a"}]
    )
    with pytest.raises(InputError, match=r"is in train too \(50\.0 %\): dev.jsonl line 1 is train.jsonl line 4"):
        sides_of(DataConfig(train=train, validation=validation), WANTED)
    found = sides_of(DataConfig(train=train, validation=validation, duplicates="drop_train"), WANTED)
    assert len(texts(found, "train")) == 39 and "text number 3" not in texts(found, "train")
    assert found.sides["train"].left_out.dropped["copy of a row of another side"].places == ["train.jsonl line 4"]
    assert not report_of(found).leaks
    found = sides_of(DataConfig(train=train, validation=validation, duplicates="allow"), WANTED)
    assert len(texts(found, "train")) == 40 and len(report_of(found).leaks) == 1
    doubled = write(tmp_path / "doubled.jsonl", ROWS + ROWS)
    split = SplitConfig(validation=0.25)
    with pytest.raises(
        InputError, match=r"give data\.duplicates: drop_train .*, group \(keep copies on one side\), allow"
    ):
        sides_of(DataConfig(train=doubled, split=split), WANTED)
    found = sides_of(DataConfig(train=doubled, split=split, duplicates="group"), WANTED)
    assert sorted(map(len, (texts(found, "train"), texts(found, "validation")))) == [20, 60]
    assert not set(texts(found, "train")) & set(texts(found, "validation"))


def test_a_given_test_set_beside_a_split(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "t.jsonl", ROWS[:2])
    with pytest.raises(InputError, match=r"of test (are|is) in train too"):
        sides_of(DataConfig(train=train, test=test, split=SplitConfig()), WANTED)
    found = sides_of(DataConfig(train=train, test=test, split=SplitConfig(), duplicates="drop_train"), WANTED)
    assert list(found.sides) == ["train", "validation", "test"] and len(texts(found, "test")) == 2
    assert not set(texts(found, "train")) & {row["sentence"] for row in ROWS[:2]}


def test_the_report_of_sides(tmp_path: Path) -> None:
    rows = [
        {"sentence": " ".join(f"w{i}" for i in range(60)), "label": "a", "topic": 8},
        *ROWS,
        {"label": "a", "topic": 1},
    ]
    rows[3] = {**rows[0], "sentence": rows[0]["sentence"].replace("w30", "other")}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    source = SourceConfig(path=str(tmp_path / "a.jsonl"))
    config = DataConfig(train=source, split=SplitConfig(by="grouped", group="topic", validation=0.3, seed=1))
    found = report_of(sides_of(config, WANTED))
    assert found.near is not None and found.near.inside + found.near.across == 1
    said = found.lines()
    assert "split: grouped by topic, seed 1" in said
    assert "  1 dropped: no value for 'text' (for example a.jsonl line 83)" in said
    assert any("passed over: blank line" in line for line in said)
    assert {row.label: sum(row.counts.values()) for row in found.labels} == {"a": 21, "b": 20}


def test_train_may_be_alone(tmp_path: Path) -> None:
    found = sides_of(DataConfig(train=write(tmp_path / "a.jsonl", ROWS)), WANTED)
    assert list(found.sides) == ["train"] and found.record() is None and len(texts(found, "train")) == 40
    assert "no row of train was found in another part" not in report_of(found).lines()
