"""A test set is looked at once: the second look with another model needs a reason, and reports say it from then on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from plainformer.errors import PlainformerError, UsageError
from plainformer.evaluate.ledger import NAME
from plainformer.evaluation import evaluate
from tests.support.models import save
from tests.support.runs import classified, write_rows

Tiny = Callable[[str], Path]


def test_looks_of_evaluations(tiny: Tiny, tmp_path: Path) -> None:
    model, other = tiny("text-classification"), save("text-classification", tmp_path / "other", seed=1)
    path = write_rows(tmp_path / "rows.jsonl", classified())
    validation = evaluate(model, path)
    assert not validation.looks.all and not (tmp_path / "state").exists()
    first = evaluate(model, path, test=True)
    assert first.read and len(first.looks.all) == 1 and first.level == 0.95
    written = json.loads((tmp_path / "state" / NAME).read_text())
    assert written["metrics"]["accuracy"] == first["accuracy"]
    # The rows are known by what they hold, wherever they are, in any order, without a word from the caller.
    moved = write_rows(tmp_path / "moved.jsonl", classified()[::-1])
    with pytest.raises(UsageError, match="looked at once already"):
        evaluate(other, moved)
    assert not list((tmp_path / "cache").rglob(".tmp*"))
    again = evaluate(other, moved, look_again="the first model was trained on other labels")
    assert again.level == pytest.approx(0.975)
    printed = evaluate(model, path, test=True)
    assert (
        printed.read
        and printed.level == pytest.approx(0.975)
        and "trained on other labels" in "\n".join(printed.lines())
    )
    wide, narrow = printed.metrics["accuracy"], first.metrics["accuracy"]
    assert wide.low is not None and narrow.low is not None and wide.low <= narrow.low
    with pytest.raises(UsageError, match="fitted on validation rows"):
        evaluate(model, path, calibrate=path, test=True)


def test_a_ledger_that_cannot_be_written_is_found_before_anything_is_seen(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLAINFORMER_STATE", str(tmp_path / "file" / "state"))
    path = write_rows(tmp_path / "rows.jsonl", classified())
    with pytest.raises(PlainformerError, match=r"test-ledger\.jsonl, cannot be (read|written)"):
        evaluate(tiny("text-classification"), path, test=True, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
