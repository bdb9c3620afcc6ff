"""What people are shown of an example besides its input: words of tags, and the part of a context with its answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import plainformer as pf
from plainformer.evaluate.examples import to_html
from plainformer.evaluate.kept import Kept
from plainformer.evaluation.exams.base import SHORT, excerpt
from tests.support.runs import write_rows


def test_an_excerpt_holds_the_answers() -> None:
    text = "a" * 999 + "Paris" + "b" * 30 + "France" + "c" * 999
    found = excerpt(text, ["France", "", "Rome", "Paris"])
    assert found == "…" + "a" * SHORT + "Paris" + "b" * 30 + "France" + "c" * SHORT + "…"
    assert excerpt("in Paris", ["Paris"]) == "in Paris" and excerpt("x" * 300, ["y"]) == "x" * SHORT + "…"
    assert len(excerpt("a" + "b" * 9999 + "c", ["a", "c"])) <= 10 * SHORT + 1


def test_answers_have_their_context(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    rows = [{"question": "where ?", "context": "he lived in a town", "answers": ["a town"]}]
    done = pf.evaluate(
        str(tiny("question-answering")), write_rows(tmp_path / "rows.jsonl", rows), output=tmp_path / "kept"
    )
    assert [one["context"] for one in Kept(done.folder).predictions()] == ["he lived in a town"]
    assert "<dt>context</dt>" in to_html(Kept(done.folder))


def test_tags_have_their_words(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    task = pf.load(tiny("token-classification"))
    words, labels = ["he"] * 150, task.config.labels
    rows = [{"tokens": words, "tags": [labels[0]] * 150}]
    done = pf.evaluate(task.ref, write_rows(tmp_path / "rows.jsonl", rows), output=tmp_path / "kept")
    assert [one["words"] for one in Kept(done.folder).predictions()] == [words]
