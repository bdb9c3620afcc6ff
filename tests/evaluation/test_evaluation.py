"""An evaluation depends on neither batches nor the order of rows, keeps its answers, counts what it leaves out, and says what is
wrong in the user's words."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plainformer as pf
from plainformer.checkpoint.opened import open_checkpoint
from plainformer.errors import InputError, PlainformerError, UsageError
from plainformer.evaluate.kept import Kept
from plainformer.evaluation import Evaluation, evaluate
from plainformer.evaluation.identity import checkpoint_digest
from tests.support import ROOT
from tests.support.models import save
from tests.support.runs import classified, texts, write_rows

Tiny = Callable[[str], Path]


def values(found: Evaluation) -> dict[str, float]:
    return {name: value.value for name, value in found.metrics.items() if value.value == value.value}


@pytest.mark.parametrize(
    ("model", "rows", "options"),
    [
        ("text-classification", classified(), {}),
        ("text-generation", [{"text": text} for text in texts(14)], {}),
        ("text2text", [{"source": text[:30], "target": text[:9]} for text in texts(10)], {"max_new_tokens": 4}),
    ],
)
def test_neither_batches_nor_order_matter(tiny: Tiny, tmp_path: Path, model: str, rows: Any, options: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    want = values(evaluate(tiny(model), path, batch_size=1, again=True, **options))
    for size in (3, 32):
        assert values(evaluate(tiny(model), path, batch_size=size, again=True, **options)) == pytest.approx(
            want, rel=1e-6
        )
    mixed = random.Random(0).sample(rows, len(rows))
    found = evaluate(tiny(model), write_rows(tmp_path / "mixed.jsonl", mixed), **options)
    assert values(found) == pytest.approx(want, rel=1e-6) and not found.read


def test_intervals_do_not_depend_on_the_order_either(tiny: Tiny, tmp_path: Path) -> None:
    rows, model = classified(), tiny("text-classification")
    first = evaluate(model, write_rows(tmp_path / "a.jsonl", rows)).metrics["accuracy"]
    second = evaluate(model, write_rows(tmp_path / "b.jsonl", rows[::-1])).metrics["accuracy"]
    assert (first.low, first.high) == (second.low, second.high)


def test_what_was_answered_is_read(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = write_rows(tmp_path / "rows.jsonl", classified()), tiny("text-classification")
    first = evaluate(model, path)
    with monkeypatch.context() as patched:
        patched.setattr("plainformer.loading.build_model", lambda *_: pytest.fail("weights were read"))
        again = evaluate(model, path, batch_size=2)
    assert again.read and not first.read and again.to_dict() == {**first.to_dict(), "read": True}
    assert not evaluate(model, path, again=True).read
    assert not evaluate(model, path, limit=30).read
    assert not evaluate(model, path, max_length=40).read
    (tmp_path / "rows.jsonl").write_text(path.read_text() + json.dumps({"text": "more", "label": "neutral"}) + "\n")
    assert evaluate(model, path).n == 41


def test_the_checkpoint_is_known_by_its_bytes(tiny: Tiny, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        with open_checkpoint(path) as checkpoint:
            return checkpoint_digest(checkpoint)

    one, same = save("text-classification", tmp_path / "one"), save("text-classification", tmp_path / "same")
    other = save("text-classification", tmp_path / "other", seed=1)
    assert digest(one) == digest(same) != digest(other)
    (one / "README.md").write_text("a card")
    (one / "calibration.json").write_text("{}")
    assert digest(one) == digest(same)
    (same / "tokenizer_config.json").write_text('{"model_max_length": 9}')
    assert digest(one) != digest(same)


def test_units_are_a_column_or_a_part_of_one(tiny: Tiny, tmp_path: Path) -> None:
    path, model = write_rows(tmp_path / "rows.jsonl", classified()), tiny("text-classification")
    whole = evaluate(model, path)
    found = evaluate(model, path, unit="of")
    assert found.unit == "of" and found.units == len({row["of"] for row in classified()}) < whole.units == 40
    assert values(found) == values(whole)
    with pytest.raises(UsageError, match=r"(?s)no 'off'.*did you mean 'of'"):
        evaluate(model, path, unit="off")
    with pytest.raises(UsageError, match=r"part 'first' of a column"):
        evaluate(model, path, unit="text:first")


def test_output_is_a_folder_of_the_callers(tiny: Tiny, tmp_path: Path) -> None:
    path, model = write_rows(tmp_path / "rows.jsonl", classified()), tiny("text-classification")
    assert evaluate(model, path, output=tmp_path / "mine").folder == tmp_path / "mine"
    assert evaluate(model, path, output=tmp_path / "mine").read
    with pytest.raises(UsageError, match="keeps another evaluation"):
        evaluate(model, path, output=tmp_path / "mine", limit=20)
    assert evaluate(model, path, output=tmp_path / "mine", limit=20, again=True).n == 20
    with pytest.raises(UsageError, match="is not an evaluation"):
        evaluate(model, path, output=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written(tiny: Tiny, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", classified())
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PlainformerError, match="cannot be written"):
        evaluate(tiny("text-classification"), path, output=tmp_path / "locked" / "one")


def test_rows_without_a_value_are_counted(tiny: Tiny, tmp_path: Path) -> None:
    rows = [*classified(20), {"text": "a"}, {"text": "", "label": "neutral"}, {"label": "neutral"}]
    found = evaluate(tiny("text-classification"), write_rows(tmp_path / "rows.jsonl", rows))
    said = "\n".join(found.lines())
    assert found.n == 20 and found.counts.rows == 23
    for reason in ("no value for 'label'", "no text", "no value for 'text'"):
        assert f"1 dropped: {reason} (for example rows.jsonl line 2" in said


def test_nothing_is_cut_silently(tiny: Tiny, tmp_path: Path) -> None:
    rows = [*classified(20), {"text": "the cat " * 60, "label": "neutral"}]
    path, model = write_rows(tmp_path / "rows.jsonl", rows), tiny("text-classification")
    with pytest.raises(InputError, match=r"(?s)rows.jsonl line 21.*tokens.*truncate"):
        evaluate(model, path)
    assert not list((tmp_path / "cache").rglob("evaluation.json")) and not list((tmp_path / "cache").rglob(".tmp-*"))
    found = evaluate(model, path, truncate=True)
    tokens = len(pf.load_tokenizer(model).encode("the cat " * 60, max_length=None))
    assert found.n == 21
    limit = pf.load(model).config.main_stack.max_positions
    assert limit is not None
    assert f"1 cut, which loses {tokens - limit} tokens (for example rows.jsonl line 21)" in "\n".join(found.lines())
    skipped = evaluate(model, path, on_error="skip")
    assert skipped.n == 20 and "1 dropped: the input" in "\n".join(skipped.lines())


def test_what_is_wrong_is_said(tiny: Tiny, tmp_path: Path) -> None:
    path, model = write_rows(tmp_path / "rows.jsonl", classified()), tiny("text-classification")
    empty = write_rows(tmp_path / "empty.jsonl", [])
    gaps = write_rows(tmp_path / "gaps.jsonl", [{"text": "a", "label": None}, {"text": "b", "label": ""}])
    for call, said in (
        (lambda: evaluate(model), "no data to evaluate on"),
        (
            lambda: evaluate(model, path, columns={"text": "txt"}),
            r"^columns asks for 'txt'(.|\n)*did you mean 'text'",
        ),
        (lambda: evaluate(model, path, columns={"txt": "text"}), r"^columns names 'txt'(.|\n)*did you mean 'text'"),
        (lambda: evaluate(model, empty), "has no rows"),
        (lambda: evaluate(model, gaps), r"no row of .*gaps.jsonl"),
        (lambda: evaluate(model, path, side="test"), "side has no effect with DATA"),
        (lambda: evaluate(model, path, max_new_tokens=3), "max_new_tokens has no effect in an evaluation"),
        (lambda: evaluate(model, path, max_lenth=3), "did you mean 'max_length'"),
        (lambda: evaluate(model, path, look_again="why"), "look_again.* has no effect"),
        (lambda: evaluate(model, path, look_again=" ", test=True), "says nothing"),
        (lambda: evaluate(model, path, temperature="hot"), "'hot'.* is not a number"),
        (lambda: evaluate(model, path, temperature=0), "not between"),
        (lambda: evaluate(model, ""), "the path of the data is ''"),
        (lambda: evaluate(model, path, output=" "), "output=' ' is not the name of a folder"),
        (lambda: evaluate(model, path, output="a\0b"), "is not the name of a folder"),
        (lambda: evaluate(model, path, output="x" * 300), "too long"),
        (lambda: evaluate(model, path, metric={"labels": ["a"]}), "'labels', which the scores .* do not know"),
        (lambda: evaluate(model, path, task="question-answering"), "cannot do 'question-answering'"),
    ):
        with pytest.raises(UsageError, match=said):
            call()


def test_an_interrupted_evaluation_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 40
        if done == 10:
            raise KeyboardInterrupt

    path = write_rows(tmp_path / "rows.jsonl", classified())
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny("text-classification"), path, on_progress=stop, output=tmp_path / "out" / "one")
    assert not list((tmp_path / "out").iterdir())


def test_columns_by_number_and_other_formats(tiny: Tiny, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("".join(f"{row['label']},{row['text']}\n" for row in classified()))
    found = evaluate(tiny("text-classification"), table, columns={"text": 1, "label": 0})
    want = evaluate(tiny("text-classification"), write_rows(tmp_path / "rows.jsonl", classified()))
    assert values(found) == values(want)
    assert Kept(found.folder).info["data"]["identity"] == Kept(want.folder).info["data"]["identity"]


MEMORY = """
import os, sys, threading, time
import plainformer as pf
from plainformer.evaluation import examine
peak = 0
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def at(done, total):
    global peak
    if done % 100 == 0:
        peak = max(peak, rss())
pf.evaluate(sys.argv[1], sys.argv[2], on_progress=at, limit=1000)
first, peak = peak, 0
pf.evaluate(sys.argv[1], sys.argv[2], on_progress=at)
print((peak - first) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_is_flat(tiny: Tiny, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", classified(2500))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY, str(tiny("text-classification")), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20
