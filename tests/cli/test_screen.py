"""Tables and facts on screens of every width: nothing is lost, no line is too long, words stay whole."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from inspect import cleandoc

import pytest

from plainformer.cli.main import _VERBS, run_app
from plainformer.cli.screen import console, folded, print_facts, table, width
from tests.support.cli import ENVIRONMENT, Cli

WIDE = "a sentence of several words, which a column of text may wrap"


def printed(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, numbers: int = 2
) -> list[str]:
    monkeypatch.setenv("COLUMNS", columns)
    names = [f"number-{place}" for place in range(numbers)]
    made = table("name", "about", *names, right=names)
    made.add_row("first", WIDE, *["1234.5"] * numbers)
    made.add_row(r"second \[x]", "short", *["6"] * numbers)
    console().print(made)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", ["200", "80", "60", "40", "30"])
def test_tables_fit(columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(columns, capsys, monkeypatch)
    assert max(map(len, lines)) <= int(columns)
    for word in [*WIDE.split(), "first", "second", "[x]", "1234.5", "6"]:
        assert any(word in line for line in lines), word  # whole, on one line


def test_a_wide_screen_has_a_line_for_each_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed("200", capsys, monkeypatch)
    assert len(lines) == 4 and re.fullmatch(rf"first +{WIDE} +1234\.5 +1234\.5", lines[2])


def test_a_narrow_screen_has_a_few_lines_for_each_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed("40", capsys, monkeypatch, numbers=4)
    assert lines[0] == "first" and lines[1].startswith("  about a sentence") and "  number-3 1234.5" in lines
    assert "second [x]" in lines


def test_piped_tables_are_as_wide_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert width() is None
    made = table("name", "about")
    made.add_row("x", WIDE * 9)
    console().print(made)
    assert len(capsys.readouterr().out.splitlines()) == 3
    for wrong in ("", "0", "wide", "-3"):
        monkeypatch.setenv("COLUMNS", wrong)
        assert width() is None


def test_facts_wrap_between_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_facts(console(), {"tokenizer": WIDE + " " + WIDE, "labels": "[a], [b]"})
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("tokenizer          a sentence") and second.startswith(" " * 19)
    assert " ".join((first[19:] + " " + second).split()) == f"{WIDE} {WIDE}" and third.endswith("[a], [b]")
    assert folded("", 40) == [""] and folded("one-two three", 9) == ["one-two", "three"]


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("line", ["tasks", "models", "glossary", "glossary attention"])
def test_lists_at_usual_widths(line: str, columns: int, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    answer = cli(*line.split())
    assert answer.code == 0 and max(map(len, answer.lines)) <= columns
    assert not any(re.fullmatch(r" +\S{1,2}", one) for one in answer.lines), "a word is cut to pieces"


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize(
    "line",
    [
        "info REF",
        "explain REF abba",
        "explain REF abba --steps 2 --repetition-penalty 1.2 --no-repeat-ngram-size 2 --frequency-penalty 0.5",
    ],
)
def test_models_at_usual_widths(line: str, columns: int, cli: Cli, tiny, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    folder = tiny("text-generation")
    monkeypatch.setenv("COLUMNS", str(columns))
    answer = cli(*(folder if word == "REF" else word for word in line.split()))
    assert answer.code == 0, answer.err
    long = [one for one in answer.lines if len(one) > columns and str(folder) not in one]
    assert not long
    if "--steps" in line:
        assert "repetition_penalty" in answer.out and re.search(r"\bid\b", answer.out)


def test_one_of_a_thing_is_not_several(cli: Cli, tiny) -> None:  # type: ignore[no-untyped-def]
    out = cli("explain", tiny("text-generation"), "a", "--steps", "1", "--choices", "b").out
    assert "prompt: 1 token" in out and "1 is left" in out and "after 1 new token" in out
    assert not re.search(r"\b1 (\w+ )?(tokens|documents|tensors|positions|steps)\b", out)


def test_families_that_share_a_file_share_a_line(cli: Cli) -> None:
    lines = cli("models").lines
    assert any(re.match(r"gemma, gemma2, gemma3", line) for line in lines)
    assert "" in lines[1:-1]  # between the two tables


def test_tasks_as_json_say_what_users_need(cli: Cli) -> None:
    for row in cli("tasks", "--json").json():
        assert set(row) == {"name", "field", "reads", "answers", "aliases"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, cli: Cli) -> None:
    script = cli("completion", shell)
    assert (
        script.code == 0 and "plainformer" in script.out and "glossary" in script.out and "max-new-tokens" in script.out
    )
    assert cli("completion", "tcsh").code == 2


def test_bash_accepts_its_completion() -> None:
    assert run_app(["completion", "bash"]) == 0
    code = "from plainformer.cli.main import main; main(['completion', 'bash'])"
    script = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=ENVIRONMENT).stdout
    subprocess.run(["bash", "-n"], input=script, check=True)


def test_a_reader_that_has_gone_is_not_an_error() -> None:
    program = f"{sys.executable} -c 'from plainformer.cli.main import main; main()' --help"
    command = f"set -o pipefail; {program} | true; {program} | head -n 1"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert found.returncode == 0 and found.stdout.startswith("Usage:") and found.stderr == ""


@pytest.mark.parametrize("verb", _VERBS)
def test_help_has_no_stray_ends_of_lines(verb: str) -> None:
    """--help keeps the docstring's line breaks, so its lines must fit 80 columns, or they are broken twice."""
    text = getattr(import_module(f"plainformer.cli.{verb}"), verb).__doc__
    assert [line for line in cleandoc(text).splitlines()[1:] if len(line) > 79 and "Example" not in line] == []
