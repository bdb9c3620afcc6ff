"""`plainformer evaluate`: what it prints, refuses and leaves."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plainformer.evaluation import evaluate
from tests.support.cli import ENVIRONMENT, PROGRAM, Cli, done, refused
from tests.support.models import save
from tests.support.runs import classified, write_rows

Tiny = Callable[[str], Path]


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PLAINFORMER_STATE", str(tmp_path / "state"))


def test_a_table_for_people_and_json_for_programs(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    path, model = write_rows(tmp_path / "rows.jsonl", classified()), tiny("text-classification")
    shown = done(cli("evaluate", model, path))
    want = evaluate(model, path)
    assert shown.lines[0].split() == ["metric", "value", "95", "%", "interval"]
    assert any(line.split()[:2] == ["accuracy", f"{want['accuracy']:.4g}"] for line in shown.lines)
    assert any(line.split()[:1] == ["neutral"] for line in shown.lines)
    assert any(line.startswith("f1_macro ") for line in shown.lines)  # as `compare --metric` takes it
    assert "95 % intervals by bootstrap over 40 rows" in shown.out and str(want.folder) in shown.out
    (found,) = done(cli("evaluate", model, path, "--json")).json()
    assert found == want.to_dict() and found["read"] and found["metrics"]["accuracy"]["better"] == "higher"


def test_columns_limits_and_options_of_the_task(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("".join(f"{row['label']},{row['text']}\n" for row in classified()))
    names = ("--columns.text", "1", "--columns.label", "0")
    (found,) = done(cli("evaluate", tiny("text-classification"), table, *names, "--limit", "30", "--json")).json()
    assert found["n"] == 30
    rows = write_rows(tmp_path / "rows.jsonl", [{"source": "the cat", "target": "cat"}])
    asked = ("--num-beams", "2", "--max-new-tokens", "3", "--metric.main", "bleu", "--temperature", "0.5")
    refused(cli("evaluate", tiny("text2text"), rows, *asked), "temperature")
    (found,) = done(cli("evaluate", tiny("text2text"), rows, *asked[:-2], "--json")).json()
    assert found["main"] == "bleu"
    refused(cli("evaluate", tiny("text-classification"), table, *names, "--num-beams", "2"), "--num-beams")


def test_help_is_short_and_all_flags_of_run_are_taken(cli: Cli) -> None:
    shown = done(cli("evaluate", "--help"))
    assert len(shown.lines) <= 110 and "--max-new-tokens" in shown.out and "--mirostat-tau" not in shown.out
    assert "plainformer run --help" in shown.out
    refused(cli("evaluate", "nowhere", "rows.jsonl", "--mirostat-tau", "5"), "nowhere", code=1)  # it is known


def test_errors_name_flags(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    path, model = write_rows(tmp_path / "rows.jsonl", classified()), tiny("text-classification")
    refused(cli("evaluate", model), "no data", "DATA")
    refused(cli("evaluate", model, path, "--columns.text", "txt"), "--columns asks for 'txt'", "did you mean 'text'")
    refused(cli("evaluate", tiny("embedding"), path), "no right answers")
    long = write_rows(tmp_path / "long.jsonl", [{"text": "the cat " * 60, "label": "neutral"}])
    refused(cli("evaluate", model, long), "long.jsonl line 1", "--truncate")
    assert "1 cut, which loses" in done(cli("evaluate", model, long, "--truncate")).out


def test_a_second_look_at_a_test_set(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    path, other = (
        write_rows(tmp_path / "rows.jsonl", classified()),
        save("text-classification", tmp_path / "other", seed=1),
    )
    assert "test set looked at once" in done(cli("evaluate", tiny("text-classification"), path, "--test")).out
    refused(cli("evaluate", other, path, "--test"), "looked at once already", "accuracy", "--look-again")
    shown = done(cli("evaluate", other, path, "--test", "--look-again", "a bug"))
    assert "97.5 % interval" in shown.out and "looked at 2 times" in shown.out and "reason: a bug" in shown.out


def test_a_temperature(cli: Cli, tmp_path: Path) -> None:
    path, model = write_rows(tmp_path / "rows.jsonl", classified()), save("text-classification", tmp_path / "model")
    refused(cli("evaluate", model, path, "--temperature", "stored"), "--calibrate")
    shown = done(cli("evaluate", model, "--calibrate", path))
    assert "ECE" in shown.out and "before" in shown.out and (model / "calibration.json").is_file()
    assert "kept in model/calibration.json" in shown.lines  # as seen from here
    assert "probabilities at temperature" in done(cli("evaluate", model, path, "--temperature", "stored")).out


def test_ctrl_c_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    rows = [{"source": "the cat", "target": "cat"}] * 3000
    command = [
        *PROGRAM,
        "evaluate",
        tiny("text2text"),
        write_rows(tmp_path / "rows.jsonl", rows),
        "--output",
        "out/one",
    ]
    process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("out/.tmp-*/rows.npy")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not list((tmp_path / "out").iterdir())


def test_pictures_and_a_page(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = write_rows(tmp_path / "rows.jsonl", classified())
    shown = done(cli("evaluate", tiny("text-classification"), path, "--plots", "--output", "one"))
    names = {file.name for file in (tmp_path / "one" / "plots").iterdir()}
    assert {"confusion.png", "reliability.png", "roc.png", "answers.html"} <= names and "plots" in shown.out
