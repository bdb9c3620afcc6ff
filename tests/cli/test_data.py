"""`plainformer data`: what a run would read, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plainformer.cli.data import histogram, print_report
from plainformer.cli.screen import console
from plainformer.data.columns import Columns
from plainformer.data.report import report
from plainformer.data.rows import DataRow
from plainformer.data.survey import survey
from tests.support.cli import Cli, done, refused

Tiny = Callable[[str], Path]
CONFIG = """objective: causal-lm
folder: run
model: {{ref: {ref}}}
data:
  train: {{path: rows.jsonl}}
  validation: {{path: dev.jsonl}}
  test: {{path: test.jsonl}}
  max_length: 16
batches: {{packed: false}}
"""


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> Path:
    """A run's YAML file, beside data with one leak into each other part, a copy and an empty row."""
    texts = {
        "rows": ["the cat sat", "a dog ran", "the cat sat", "bad dog", "", "a mat on the mat " * 9],
        "dev": ["A  dog RAN", "good"],
        "test": ["bad dog", "good"],
    }
    for name, rows in texts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(ref=tiny("text-generation")))
    return path


def test_the_report_says_what_is_wrong(cli: Cli, config: Path) -> None:
    """Copies are found although training would refuse them; nothing is written."""
    lines = done(cli("data", config)).lines
    assert "train: 6 rows" in lines[0]
    text = "\n".join(lines)
    assert "  1 repeat an earlier one" in lines
    assert "1 dropped: " in text and "rows.jsonl line 5" in text
    assert "leak: 1 row of validation is in train too (50.0 %): dev.jsonl line 1 is rows.jsonl line 2" in text
    assert "leak: 1 row of test is in train too (50.0 %): test.jsonl line 1 is rows.jsonl line 4" in text
    assert "1 row of test is in validation too" in text
    assert "example 1   learns" in text and "\nt           h\n" in text
    assert not Path("run").exists()


def test_the_report_as_json(cli: Cli, config: Path) -> None:
    (found,) = done(cli("data", config, "--data.max-length", 8, "--json")).json()
    assert [part["name"] for part in found["parts"]] == ["train", "validation", "test"]
    assert len(found["overlaps"]) == 3 and len(found["examples"]) == 2
    assert sum(one["examples"] for one in found["histogram"]) >= 5
    assert max(one["to"] for one in found["histogram"]) >= 8


def test_mistakes_are_named(cli: Cli, config: Path) -> None:
    refused(cli("data"), "a CONFIG is missing")
    refused(cli("data", config, "--data.trian.path", "x"), "--data.trian.path", "did you mean")
    refused(cli("data", config, "--data.train.path", "none.jsonl"), "none.jsonl")


def test_what_is_known_is_told_where_rows_cannot_be_encoded(cli: Cli, tiny: Tiny) -> None:
    for name, labels in (("rows", "ab" * 9), ("dev", "abc")):
        lines = [json.dumps({"text": f"{name} {i}", "label": label}) for i, label in enumerate(labels)]
        Path(f"{name}.jsonl").write_text("\n".join(lines))
    text = CONFIG.replace("causal-lm", "text-classification").replace("  test: {{path: test.jsonl}}\n", "")
    Path("run.yaml").write_text(text.format(ref=tiny("embedding")).replace("batches: {packed: false}\n", ""))
    answer = cli("data", "run.yaml")
    assert answer.code != 0 and "dev.jsonl line 3: the model has no label 'c'" in answer.err
    assert "1 label of other parts, not in train: 'c'" in answer.lines
    assert ["c", "0", "1", "rare"] in [line.split() for line in answer.lines]


def test_labels_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    def part(name: str, labels: str) -> object:
        rows = [DataRow({"text": f"{name} {i}", "label": label}, f"{name}:{i}") for i, label in enumerate(labels)]
        return survey(name, rows, Columns({"text": "text", "label": "label"}), ["label"])

    made = report([part("train", "a" * 30 + "b" * 3), part("validation", "aabbc")])  # type: ignore[list-item]
    print_report(console(), made)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "30", "2"] in lines and ["b", "3", "2", "rare"] in lines and ["c", "0", "1", "rare"] in lines


@pytest.mark.parametrize("lengths", [[5], [1, 2, 3], list(range(1, 11)), [3, 50, 51, 1000], [7] * 4])
def test_a_histogram_has_every_example_once(lengths: list[int]) -> None:
    found = histogram(np.array(lengths))
    assert sum(count for _, _, count in found) == len(lengths) and len(found) <= 10
    assert found[0][0] == min(lengths) and found[-1][1] >= max(lengths)
    assert all(found[i][1] + 1 == found[i + 1][0] for i in range(len(found) - 1))
