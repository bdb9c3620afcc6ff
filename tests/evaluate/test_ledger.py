"""The ledger: a second look with another model needs a reason; several processes may write it; damage is an error."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from plainformer.errors import PlainformerError, UsageError
from plainformer.evaluate.ledger import Ledger, Look, state_folder


def look(model: str, data: str = "d") -> Look:
    return Look("2026-01-01 00:00:00", data, "rows", f"run of {model}", model, "config", {"accuracy": 0.5})


def test_a_second_model_needs_a_reason(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert len(ledger.add(look("a"), None).all) == 1
    assert len(ledger.add(look("a"), None).all) == 1  # printed again: not a look
    assert len(ledger.add(look("b", data="other"), None).all) == 1
    with pytest.raises(UsageError, match=r"(?s)looked at once already.*run of a: accuracy 0.5.*look_again"):
        ledger.check(look("b"), None)
    with pytest.raises(UsageError, match="already"):
        ledger.add(look("b"), None)
    looks = ledger.add(look("b"), "a bug in the reader")
    assert looks.level == pytest.approx(0.975) and looks.to_dict() == {"count": 2, "reasons": ["a bug in the reader"]}
    assert "looked at 2 times" in looks.lines()[0] and "a bug in the reader" in looks.lines()[1]
    assert ledger.check(look("a"), None).level == pytest.approx(0.975)


GOOD = dict.fromkeys(("time", "data", "name", "run", "checkpoint", "config"), "d")
DAMAGE = [
    *('{"time": 1}', "not JSON", "5", "[]", "", "\0\0"),
    *(
        json.dumps({**GOOD, **more})
        for more in ({}, {"metrics": [1]}, {"metrics": {}, "reason": 5}, {"metrics": {}, "x": 1})
    ),
]


@pytest.mark.parametrize("damage", [*(f"{line}\n" for line in DAMAGE), '{"time": "2026'])
def test_a_damaged_ledger_is_an_error(tmp_path: Path, damage: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(look("a"), None)
    with ledger.path.open("a") as file:
        file.write(damage)
    for call in (lambda: ledger.looks("d"), lambda: ledger.add(look("a"), None)):
        with pytest.raises(PlainformerError, match=r"line 2 of the ledger.*damaged"):
            call()


def _write(folder: Path, number: int) -> None:
    for again in range(20):
        Ledger(folder).add(look(f"{number} {again}"), "because")


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len({one.checkpoint for one in Ledger(tmp_path).looks("d").all}) == 60


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLAINFORMER_STATE", str(tmp_path))
    assert state_folder() == tmp_path
    monkeypatch.delenv("PLAINFORMER_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state_folder() == tmp_path / "xdg" / "plainformer"
