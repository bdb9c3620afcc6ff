"""The glossary: its file, its page, and its verb. `python -m tests.cli.test_glossary` writes docs/glossary.md anew."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import plainformer
from plainformer.cli.glossary import Term, find, read_terms
from plainformer.cli.main import run_app
from plainformer.errors import UsageError
from tests.support import ROOT

SOURCE = Path(plainformer.__file__).parent
PAGE = ROOT / "docs" / "glossary.md"
HEAD = """# Glossary

The terms of the field as this project uses them: what each means, where it is in the code, and where it comes from.
`plainformer glossary TERM` says the same in a terminal. This page is made of
[`cli/glossary.toml`](../src/plainformer/cli/glossary.toml) by `make docs`.
"""


def page(terms: list[Term]) -> str:
    """The terms as a page."""
    parts = [HEAD]
    for term in terms:
        also = f"*Also: {', '.join(term.also)}.*\n\n" if term.also else ""
        code = ", ".join(f"[`{file}`](../src/plainformer/{file})" for file in term.code)
        source = "; ".join(f"[{s}]({s.removeprefix('docs/')})" if s.startswith("docs/") else s for s in term.source)
        parts.append(f"## {term.name}\n\n{also}{term.text}\n\nIn {code}. Source: {source}.\n")
    return "\n".join(parts)


def test_the_page_is_made_of_the_file() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(read_terms()), "run `make docs`"


def test_every_term_says_where_it_is_and_where_it_comes_from() -> None:
    terms = read_terms()
    assert len(terms) >= 100
    names = [term.name.casefold() for term in terms]
    assert names == sorted(set(names))
    for term in terms:
        assert term.text.endswith((".", ".)")) and term.source and term.code, term
        missing = [file for file in term.code if not (SOURCE / file).is_file()]
        missing += [source for source in term.source if source.startswith("docs/") and not (ROOT / source).is_file()]
        assert not missing, f"{term.name}: there is no {missing}"
        assert all(" " in source or source.startswith("docs/") for source in term.source), f"{term.name}: unknown key"
    data = tomllib.loads((SOURCE / "cli" / "glossary.toml").read_text(encoding="utf-8"))
    unused = set(data["sources"]) - {key for entry in data["terms"] for key in entry["source"]}
    assert not unused, f"no term has {unused} as its source"


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("beam search", "beam search"),
        ("Beam-Search", "beam search"),
        ("tokens", "token"),
        ("kv cache", "cache"),
        ("top_p", "nucleus sampling"),
        ("GQA", "grouped-query attention"),
        ("bert", "BERT"),
    ],
)
def test_a_term_is_found_by_any_spelling(asked: str, name: str) -> None:
    assert [term.name for term in find(asked, read_terms())] == [name]


def test_a_name_of_two_things_shows_both() -> None:
    assert [term.name for term in find("head", read_terms())] == ["attention head", "task head"]


def test_an_unknown_term_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'nucleus samplin' is not in the glossary\n.*'nucleus sampling'"):
        find("nucleus samplin", read_terms())


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["glossary", "beam", "search"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("beam search (beam, hypothesis)\n") and "Lowerre 1976" in shown

    assert run_app(["glossary", "RoPE", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["code"] == ["model/position.py"]

    assert run_app(["glossary"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(read_terms()) + 2

    assert run_app(["glossary", "xyzzy"]) == 2
    assert "is not in the glossary" in capsys.readouterr().err


def test_the_verb_needs_no_torch() -> None:
    code = (
        "import sys; from plainformer.cli.main import run_app; run_app(['glossary']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


if __name__ == "__main__":
    PAGE.write_text(page(read_terms()), encoding="utf-8")
