"""`plainformer run` with the options of single tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plainformer.cli.main import run_app
from tests.support import models as tiny
from tests.support.close import close
from tests.support.media import write_png

NLI = {"id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"}}
ONE = {"id2label": {"0": "score"}}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: Any) -> tuple[int, str, str]:
        code = run_app(["run", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


def test_zero_shot(run: Any, tmp_path: Path) -> None:
    folder = tiny.save("text-classification", tmp_path / "nli", **NLI)
    task = ("--task", "zero-shot-classification")
    code, out, _ = run(
        folder, "the cat sat", *task, "--label", "cat", "--label", "dog", "--template", "a {} .", "--json"
    )
    scores = json.loads(out)["scores"]
    assert code == 0 and {s["label"] for s in scores} == {"cat", "dog"}
    close(sum(s["score"] for s in scores), 1)
    code, _, err = run(folder, "the cat sat", *task)
    assert code == 2 and "needs --label\n" in err
    code, _, err = run(folder, "the cat sat", "--label", "cat")
    assert code == 2 and "--label has no effect in text-classification" in err


def test_ranking(run: Any, tmp_path: Path) -> None:
    folder = tiny.save("text-classification", tmp_path / "rank", **ONE)
    documents = ("the cat", "a dog", "the mat")
    code, out, _ = run(folder, *documents, "--task", "text-ranking", "--query", "who sat?", "--top-k", "2")
    assert code == 0 and len(out.splitlines()) == 2 and "[" in out
    code, _, err = run(folder, *documents, "--task", "text-ranking")
    assert code == 2 and "--query" in err


def test_answers(run: Any, tmp_path: Path) -> None:
    folder = tiny.save("question-answering", tmp_path / "qa")
    asked = (folder, "the cat sat on the mat", "--question", "who sat?")
    code, out, _ = run(*asked, "--top-k", "3", "--scoring", "squad", "--align", "tokens", "--no-answer", "--json")
    answer = json.loads(out)
    assert code == 0 and len(answer["alternatives"]) == 2 and "no_answer_score" in answer
    code, out, _ = run(*asked, "--no-answer-threshold", "-100", "--json")
    assert code == 0 and json.loads(out)["text"] == ""
    code, _, err = run(*asked, "--no-answer", "--no-answer-threshold", "1")
    assert code == 2 and "--no-answer has no effect" in err


def test_entities_and_batches(run: Any, tmp_path: Path) -> None:
    folder = tiny.save("token-classification", tmp_path / "ner")
    lines = tmp_path / "in.txt"
    lines.write_text("the cat\n" * 7 + "the cat sat " * 40 + "\n", encoding="utf-8")
    code, every, _ = run(folder, lines, "--aggregation", "none", "--batch-size", "3", "--window", "20", "--stride", "4")
    headings = [line for line in every.splitlines() if line.startswith("==> line ")]
    assert code == 0 and len(headings) == 8 and len(every.split()) > 0
    assert len([line for line in every.splitlines() if line and line not in headings]) == 14 + 120
    assert (
        run(folder, lines, "--aggregation", "none", "--batch-size", "1", "--window", "20", "--stride", "4")[1] == every
    )
    code, _, err = run(folder, "x", "--batch-size", "0")
    assert code == 2 and "--batch-size" in err


def test_image_sizes(run: Any, tmp_path: Path) -> None:
    folder = tiny.save("image-classification", tmp_path / "vit")
    picture = tmp_path / "p.png"
    write_png(picture)
    assert run(folder, picture, "--image-size", "48x64")[0] == 0
    for size, message in (("48*64", "is not a size"), ("49", "49")):
        code, _, err = run(folder, picture, "--image-size", size)
        assert code == 2 and message in err
