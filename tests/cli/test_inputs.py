"""`plainformer run`: which input is which - in errors, in rows, under headings - and the files that inputs are in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from plainformer.cli.inputs import Reading, count, read_texts
from tests.support.cli import Answer, Cli, done, refused
from tests.support.media import write_png, write_wav

Tiny = Callable[[str], Path]
LONG = "the cat " * 40
WRITE = ("--max-new-tokens", 3)


def table(answer: Answer) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(answer.out)))


def test_errors_name_the_callers_place(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("text-classification")
    (tmp_path / "big.txt").write_text(f"the cat\n\n{LONG}\n")
    refused(cli("run", folder, "big.txt"), "error: line 3 of big.txt has ", "the limit is", "--on-error 'skip' goes on")
    refused(cli("run", folder, "a", "big.txt"), "error: line 3 of big.txt has ")
    refused(cli("run", folder, "-", stdin=f"the cat\n{LONG}\n".encode()), "error: stdin line 2 has ")
    refused(cli("run", folder, "the cat", LONG), "error: input 2 has ")
    alone = cli("run", folder, LONG)
    refused(alone, "error: the input has ")
    assert "--on-error" not in alone.err
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "the cat"}, {"text": LONG}]))
    refused(cli("run", folder, "rows.json"), "error: item 2 of rows.json has ")
    write_wav(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    refused(cli("run", tiny("speech"), "a.wav", "b.wav"), "error: b.wav")


def test_skipping_keeps_the_others(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("text-classification")
    (tmp_path / "big.txt").write_bytes(f"the cat\n\n{LONG}\n".encode() + b"caf\xe9\nbad dog\n")
    for options in ((), ("--batch-size", 1), ("--batch-size", 100)):
        answer = cli("run", folder, "big.txt", "--on-error", "skip", "--json", *options)
        assert answer.code == 1
        first, blank, long, latin, last = answer.json()
        assert [row["line"] for row in answer.json()] == [1, 2, 3, 4, 5]
        assert blank == {"file": "big.txt", "line": 2, "input": "", "skipped": "a blank line"}
        assert long["input"] == LONG.strip() + " " and "line 3 of big.txt has" in long["skipped"]
        assert "line 4 of big.txt is not UTF-8" in latin["skipped"] and "input" not in latin
        assert (first["input"], last["input"]) == ("the cat", "bad dog")
        *skipped, summary, _ = answer.err.splitlines()
        assert [line.split(" has")[0].split(" is")[0] for line in skipped] == [
            "skipped: line 3 of big.txt",
            "skipped: line 4 of big.txt",
        ]
        assert summary == "error: 2 of 4 inputs were skipped"
    plain = cli("run", folder, "big.txt", "--on-error", "skip")
    assert plain.lines == done(cli("run", folder, "the cat", "bad dog")).lines
    assert done(cli("run", folder, "the cat", "--on-error", "skip")).lines == plain.lines[:1]


def test_stdin_and_files_that_do_not_end_alike(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    """As many rows as lines, however they end."""
    folder = tiny("text-classification")
    for content in (b"", b"\n", b"\n\n", b"a\n\nb", b"\n\na\n\n\n"):
        rows = done(cli("run", folder, "-", "--json", stdin=content)).json()
        assert [row["line"] for row in rows] == list(range(1, len(content.splitlines()) + 1))
        assert [row["input"].encode() for row in rows] == content.splitlines()
        assert done(cli("run", folder, "-", "--csv", stdin=content)).out.count("\n") == len(rows) + bool(rows)


def test_rows_say_where_they_are_from(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "a7", "text": "the cat"}\n{"text": "the dog", "pair": "sat"}\n"x"\n')
    rows = done(cli("run", tiny("text-classification"), "q.jsonl", "--json")).json()
    assert [{name: row.get(name) for name in ("file", "line", "id", "input")} for row in rows] == [
        {"file": "q.jsonl", "line": 1, "id": "a7", "input": "the cat"},
        {"file": "q.jsonl", "line": 2, "id": None, "input": ["the dog", "sat"]},
        {"file": "q.jsonl", "line": 3, "id": None, "input": "x"},
    ]
    sounds = [write_wav(tmp_path / name) for name in ("a.wav", "b.wav")]
    rows = done(cli("run", tiny("speech"), *sounds, "--json")).json()
    assert [row["file"] for row in rows] == [str(sound) for sound in sounds]
    (row,) = done(cli("run", tiny("embedding"), "the cat", "--json")).json()
    assert list(row) == ["input", "vector", "pooling", "normalized"]


# ---- fields and columns -------------------------------------------------------------------------------------------------


def test_fields_and_columns(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    folder, texts = tiny("text-classification"), ["the cat", "bad, dog", "two\nlines"]
    expected = done(cli("run", folder, *texts)).lines
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([["id", "body"], *enumerate(texts)])
        assert done(cli("run", folder, name, "--field", "body")).lines == expected
        rows = done(cli("run", folder, name, "--field", "body", "--json")).json()
        assert [(row["line"], row["id"], row["input"]) for row in rows] == [
            (line, str(place), text) for line, place, text in zip((2, 3, 4), range(3), texts, strict=True)
        ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    assert done(cli("run", folder, "t.jsonl", "--field", "body")).lines == expected
    stdin = (tmp_path / "t.jsonl").read_bytes()
    assert done(cli("run", folder, "-", "--field", "body", stdin=stdin)).lines == expected
    (tmp_path / "text.csv").write_text("text\nthe cat\n\nbad dog\n")  # csv passes over empty lines
    assert done(cli("run", folder, "text.csv")).lines == done(cli("run", folder, "the cat", "bad dog")).lines


def test_fields_that_are_not_there(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("text-classification")
    (tmp_path / "t.csv").write_text("id,body\n1,the cat\n")
    (tmp_path / "t.jsonl").write_text('{"body": "the cat"}\n{"id": 4}\n')
    refused(cli("run", folder, "t.csv"), 'line 2 of t.csv has no field "text"; its fields: id, body', "--field NAME")
    refused(cli("run", folder, "t.csv", "--field", "bodi"), "t.csv has no column 'bodi'", "did you mean 'body'")
    refused(cli("run", folder, "t.jsonl", "--field", "body"), "line 2 of t.jsonl has no field 'body'")
    refused(cli("run", folder, "the cat", "--field", "body"), "--field has no effect: no INPUT has fields")
    refused(cli("run", folder, "t.csv", "--literal", "--field", "body"), "--field has no effect")
    skipping = cli("run", folder, "t.jsonl", "--field", "body", "--on-error", "skip")
    assert skipping.code == 1 and len(skipping.lines) == 1


def test_columns_that_are_the_tasks_own(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    """What else a row holds is not in the way."""
    (tmp_path / "q.csv").write_text("id,question,context,answer\n7,who sat,the cat sat on the mat,cat\n")
    expected = done(cli("run", tiny("question-answering"), "the cat sat on the mat", "--question", "who sat"))
    assert done(cli("run", tiny("question-answering"), "q.csv")).lines == expected.lines
    messages = [{"role": "user", "content": "hi"}]
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (row,) = done(cli("run", tiny("chat"), "m.jsonl", "--json", *WRITE)).json()
    (answered,) = done(cli("run", tiny("chat"), "hi", "--chat", "--json", *WRITE)).json()
    assert row["text"] == answered["text"] and row["input"] == messages


# ---- folders and paths --------------------------------------------------------------------------------------------------


def test_a_folder_is_its_files(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    folder, texts = tiny("text-classification"), tmp_path / "texts"
    (texts / "sub").mkdir(parents=True)
    (texts / "b.md").write_text("bad dog\n")
    (texts / "a.txt").write_text("the cat\n")
    (texts / "sub" / "c.jsonl").write_text('"the mat"\n')
    (texts / ".hidden.txt").write_text("not this\n")
    (texts / "a.bin").write_bytes(b"\xff")
    answer = cli("run", folder, "texts")
    assert (answer.code, answer.err) == (0, "1 file passed over (of another kind: a.bin)\n")
    assert answer.lines == done(cli("run", folder, "the cat", "bad dog", "the mat")).lines
    (tmp_path / "empty").mkdir()
    refused(cli("run", folder, "empty"), "the folder 'empty' has no files of this kind", ".txt")
    done(cli("run", folder, "empty", "--literal"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("b.png", "a.png"):
        write_png(pictures / name)
    rows = done(cli("run", tiny("image-classification"), "pictures", "--json")).json()
    assert [row["file"] for row in rows] == ["pictures/a.png", "pictures/b.png"]
    refused(cli("run", tiny("speech"), "pictures"), "has no files of this kind", ".wav")


@pytest.mark.parametrize("path", ["nope.csv", "nope.jsonl", "./nope", "../nope/", "nope.md", "nope.wav", "nope.png"])
def test_paths_that_lead_nowhere_are_refused_before_the_model_is_loaded(cli: Cli, path: str) -> None:
    refused(cli("run", "./no-model", path), f"there is no file {path!r}")


@pytest.mark.parametrize("text", ["ATG", ".NET", "a/b", "see nope.txt", "3.14", "...", "/set", "e.g."])
def test_texts_that_are_no_paths(cli: Cli, text: str) -> None:
    refused(cli("run", "./no-model", text), "'./no-model'", code=1)


def test_files_of_options_are_read_before_any_weight_is(
    cli: Cli, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plainformer.loading.load_weights", None)
    for option in ("--json-schema", "--grammar"):
        refused(cli("run", tiny("text-generation"), "x", option, "@nope.json"), "there is no file 'nope.json'")
        refused(cli("chat", tiny("chat"), option, "@nope.json", stdin=b"hi"), "there is no file 'nope.json'")


def test_outputs_are_probed_before_the_model_is_loaded(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("the cat")
    for path, message in (
        ("none/r.html", "there is no folder 'none'"),
        (".", "it is a folder"),
        ("x" * 300, "name too long"),
    ):
        refused(cli("entities", "./no-model", "d.txt", "--html", path), f"--html '{path[:20]}", message)
    refused(cli("entities", "./no-model", "none"), "there is no file or folder 'none'")
    (tmp_path / "empty").mkdir()
    refused(cli("entities", "./no-model", "empty"), "the folder 'empty' has no documents", ".txt")


def test_inputs_are_counted_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("1\n\n2\n \n3")
    Path("b.csv").write_text('text\n"two\nlines"\nx\n')
    Path("c.json").write_text('["a", "b"]')
    for values, reading in ((["a.txt", "word", "b.csv", "c.json"], Reading()), (["a.txt"], Reading(whole=True))):
        assert count(values, reading) == sum(not item.blank for item in read_texts(values, reading, []))
    assert count(["\0stdin", "a.txt"], Reading()) is None


# ---- headings and tables ------------------------------------------------------------------------------------------------


def test_answers_of_several_inputs_are_told_apart(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("text-generation")
    (tmp_path / "in.txt").write_text("the cat\n\nthe dog\n")
    answers = [done(cli("run", folder, text, *WRITE)).out for text in ("the cat", "the dog")]
    expected = f"==> line 1 of in.txt: the cat <==\n{answers[0]}\n==> line 3 of in.txt: the dog <==\n{answers[1]}"
    assert done(cli("run", folder, "in.txt", *WRITE)).out == expected
    assert done(cli("run", folder, "-", *WRITE, stdin=b"the cat\n")).out == answers[0]
    two = done(cli("run", tiny("token-classification"), "the cat", "a dog")).lines
    assert two[0] == "==> input 1: the cat <==" and "==> input 2: a dog <==" in two


def test_tables(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text('\nthe cat\n"bad", dog\n')
    rows = table(done(cli("run", tiny("text-classification"), "in.txt", "--csv")))
    plain = done(cli("run", tiny("text-classification"), "in.txt", "--json")).json()
    labels = [score["label"] for score in plain[1]["scores"]]
    assert list(rows[0]) == ["file", "line", "input", "label", "score", *(f"scores.{one}" for one in labels), "skipped"]
    assert [row["skipped"] for row in rows] == ["a blank line", "", ""] and rows[2]["input"] == '"bad", dog'
    for row, same in zip(rows[1:], plain[1:], strict=True):
        assert row["label"] == same["label"] and float(row["score"]) == same["score"]
    entities = table(done(cli("run", tiny("token-classification"), "the cat", "dog", "--csv")))
    assert [(row["input"], row["text"], row["start"]) for row in entities] == [
        ("the cat", "the", "0"),
        ("the cat", "cat", "4"),
        ("dog", "dog", "0"),
    ]
    (vector,) = table(done(cli("run", tiny("embedding"), "the cat", "--csv")))
    (exact,) = done(cli("run", tiny("embedding"), "the cat", "--json")).json()
    assert [float(vector[str(place)]) for place in range(32)] == exact["vector"]
    written = table(done(cli("run", tiny("text-generation"), "the cat", "--csv", "--output-scores", *WRITE)))
    assert json.loads(written[0]["log_probabilities"]) and written[0]["stop_string"] == ""
    refused(cli("run", tiny("embedding"), "x", "--csv", "--json"), "--csv has no effect with --json")


def test_ranked_documents_are_rows(cli: Cli, tmp_path: Path) -> None:
    from tests.support.models import save

    folder = save("text-classification", tmp_path / "rank", id2label={"0": "score"})
    asked = ("run", folder, "the cat", "a dog", "--task", "text-ranking", "--query", "who sat?")
    rows = table(done(cli(*asked, "--csv")))
    assert {row["text"] for row in rows} == {"the cat", "a dog"} and {row["query"] for row in rows} == {"who sat?"}


# ---- entities -----------------------------------------------------------------------------------------------------------


def test_documents_that_are_skipped(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("token-classification")
    (tmp_path / "d.jsonl").write_bytes(b'"the cat"\n{"text": 3}\n{"id": "x", "text": "half \\ud83d"}\n"a dog"\n')
    refused(cli("entities", folder, "d.jsonl"), "line 2 of d.jsonl is not a document")
    answer = cli("entities", folder, "d.jsonl", "--on-error", "skip", "--json")
    assert answer.code == 1 and "error: 2 of 4 documents were skipped" in answer.err
    assert "skipped: line 2 of d.jsonl is not a document" in answer.err and "skipped: x" in answer.err
    assert [one["name"] for one in answer.json()[0]["documents"]] == ["d.jsonl:1", "d.jsonl:4"]
    (tmp_path / "bad.jsonl").write_bytes(b'"the cat"\n{"id": "x", "text": "half \\ud83d"}\n')
    refused(cli("entities", folder, "bad.jsonl"), "error: x")
