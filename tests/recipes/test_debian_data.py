"""The data of the recipes on packages: no paragraph on two sides, pairs in French, one row of each group."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import debian_data
import pytest


def package(i: int, **more: Any) -> dict[str, Any]:
    described = f"A library of kind {i // 3} for trees.\n\nThis package holds part {i % 3}."
    return {
        "package": f"lib{i}",
        "section": ("libs", "doc")[i // 3 % 2],
        "synopsis": f"trees {i}",
        "description": described,
        "fr": None,
    } | more


def rows_of(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    french = ["arbres", "Une bibliothèque\nd'arbres.\n\nUne partie."]
    rows = [package(i, fr=french if i % 2 else None) for i in range(600)]
    with gzip.open(tmp_path / "packages.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr(sys, "argv", ["debian_data", str(tmp_path / "packages.jsonl.gz"), str(tmp_path / "made")])
    debian_data.main()
    return tmp_path / "made"


def test_a_first_paragraph_is_on_one_side(made: Path) -> None:
    sides = {side: rows_of(made / f"{side}.jsonl.gz") for side in debian_data.SIDES}
    groups = [{row["description"].split("\n\n")[0] for row in rows} for rows in sides.values()]
    assert sum(map(len, sides.values())) == 600 and sum(map(len, groups)) == 200 == len(set.union(*groups))
    assert all(rows for rows in sides.values()) and len(sides["train"]) > 480


def test_one_row_of_each_group_has_a_section(made: Path) -> None:
    for side in debian_data.SIDES:
        rows = rows_of(made / f"sections-{side}.jsonl.gz")
        assert len({row["text"].split("\n\n")[0] for row in rows}) == len(rows) > 0
        chats = rows_of(made / f"chats-{side}.jsonl.gz")
        assert len(chats) == len(rows) and all(row["prompt"].startswith("Write") for row in chats)


def test_paragraphs_are_pairs_where_both_texts_have_as_many() -> None:
    rows = [
        package(0, fr=["arbres", "Une bibliothèque\nd'arbres.\n\nUne partie."]),
        package(1, fr=["arbres 1", "Un seul paragraphe."]),
        package(2),
    ]
    found = [(pair["source"], pair["target"]) for pair in debian_data.in_french(rows)]
    assert found == [
        ("trees 0", "arbres"),
        ("A library of kind 0 for trees.", "Une bibliothèque d'arbres."),
        ("This package holds part 0.", "Une partie."),
        ("trees 1", "arbres 1"),
    ]
