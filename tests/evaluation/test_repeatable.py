"""The same rows and the same model leave the same bytes: in another process, and however many rows are run at a time."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plainformer as pf
from plainformer.evaluate.kept import Kept
from tests.support import ROOT
from tests.support.runs import texts, write_rows

Tiny = Callable[[str], Path]
LABELS = ("negative", "neutral", "positive")
FILES = ("predictions.jsonl", "rows.npy", "units.npy", "keys.npy")
SCRIPT = "import sys, plainformer as pf; pf.evaluate(sys.argv[1], sys.argv[2], output=sys.argv[3], batch_size=7)"


def rows(folder: Path, task: str) -> Path:
    draw = random.Random(4)
    found: list[dict[str, Any]] = []
    for text in texts(40, seed=6):
        words = text.split()
        if task == "text-classification":
            found.append({"text": text, "label": draw.choice(LABELS)})
        elif task == "token-classification":
            found.append({"tokens": words, "tags": [draw.choice(("O", "B-PER", "I-PER")) for _ in words]})
        elif task == "question-answering":
            found.append({"question": "who sat ?", "context": text, "answers": [words[0]]})
        elif task == "text2text":
            found.append({"source": text[:30], "target": text[:9]})
        else:
            found.append({"text": text})
    return write_rows(folder / "rows.jsonl", found)


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PLAINFORMER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def info(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def test_two_processes_leave_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    model, data = tiny("text-classification"), rows(tmp_path, "text-classification")
    for number in (1, 2):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": str(number),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        }
        command = [sys.executable, "-c", SCRIPT, str(model), str(data), str(tmp_path / str(number))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "1", tmp_path / "2"
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()} >= {*FILES}
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    # All of evaluation.json but how long it took.
    written = [
        {key: value for key, value in info(path).items() if key not in ("seconds", "files")} for path in (one, two)
    ]
    assert json.dumps(written[0]) == json.dumps(written[1])


TASKS = ("text-classification", "token-classification", "question-answering", "text2text", "text-generation")


@pytest.mark.parametrize("task", TASKS)
def test_batches_change_no_answer_and_no_digit_that_is_sure(task: str, tiny: Tiny, tmp_path: Path) -> None:
    """Other shapes of matrices are multiplied in another order: probabilities and nats differ in their last digits in fp32,
    by 1e-5 at most of what they are. What is counted - answers, places, units, keys - is the same to the byte.
    """
    options: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 5} if task == "text2text" else {}
    named = {} if task == "text-generation" else options
    data = rows(tmp_path, task)
    found = [pf.evaluate(tiny(task), data, output=tmp_path / str(size), batch_size=size, **named) for size in (1, 7)]
    one, two = (Kept(each.folder) for each in found)
    for name in ("units.npy", "keys.npy"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    assert np.array(one.rows) == pytest.approx(np.array(two.rows), rel=1e-5, abs=1e-6)
    for ours, theirs in zip(one.predictions(), two.predictions(), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"answer"}:
            assert ours[key] == theirs[key]
        assert_near(ours["answer"], theirs["answer"])
    for name, value in found[0].metrics.items():
        assert value.value == pytest.approx(found[1][name], rel=1e-5, abs=1e-7, nan_ok=True), name
    counted = ("task", "scorer", "unit", "counts", "data")
    assert all(info(one.folder)[key] == info(two.folder)[key] for key in counted)
    if task in ("token-classification", "text2text"):  # nothing but what is counted
        for name in FILES:
            assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name


def assert_near(ours: Any, theirs: Any) -> None:
    """The same but for the last digits of numbers that are not whole."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_near(ours[key], theirs[key])
    elif isinstance(ours, float) or (isinstance(ours, list) and ours and isinstance(ours[0], float)):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    else:
        assert ours == theirs
