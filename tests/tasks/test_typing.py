"""Type checkers know a task's options and its answers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
from plainformer.tasks.answering.extractive import QuestionAnswering
from plainformer.tasks.text.classification import TextClassification

def check(classify: TextClassification, ask: QuestionAnswering) -> None:
    reveal_type(classify("a", truncate=True))
    reveal_type(classify(["a"]))
    reveal_type(classify(iter(["a"])))
    reveal_type(ask(("a", "b"), top_k=3).alternatives)
    classify("a", top_k=3)
    ask(("a", "b"), top_k="three")
"""


@pytest.mark.slow
def test_options_and_answers_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "typed.py").write_text(SOURCE)
    options = ["--follow-imports", "silent", "--cache-dir", str(tmp_path / "cache"), "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *options, str(tmp_path / "typed.py")]
    found = subprocess.run(command, capture_output=True, text=True).stdout
    revealed = [re.sub(r"[a-z_]+\.", "", kind) for kind in re.findall(r'Revealed type is "(.*)"', found)]
    assert revealed == ["Classification", "list[Classification]", "Iterator[Classification]", "tuple[Span, ...]"]
    assert sorted(set(re.findall(r"py:(\d+): error", found)), key=int) == ["10", "11"]
