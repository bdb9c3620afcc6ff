"""Entity analysis: tables against counting by hand, the ranking, the page, and the command."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plainformer.cli.main import run_app
from plainformer.entities import Document, Found, analyse, cut, normal_form, read_documents, read_requirements
from plainformer.entities.matching import occurrences
from plainformer.entities.report import to_html
from plainformer.errors import InputError, UsageError
from tests.support import models as tiny


@dataclass(frozen=True)
class Span:
    label: str
    score: float
    text: str
    start: int
    end: int


def capitals(texts: Iterable[str]) -> Iterable[tuple[Span, ...]]:
    """A model that takes capitalised words for entities, persons where they end with "a"."""
    for text in texts:
        found = []
        for match in re.finditer(r"\w+", text):
            word = match[0]
            if word[0].isupper():
                score = 0.5 if word.isupper() else 0.9
                found.append(Span("PER" if word.lower().endswith("a") else "ORG", score, word, *match.span()))
        yield tuple(found)


DOCUMENTS = [
    Document("a", "Anna works at Acme. Later ANNA left ACME."),
    Document("b", "Acme hired Maria.\n\nAnna met Maria and Bit."),
    Document("c", ""),
    Document("d", "nothing of note"),
]


def test_phrases_merge_case_and_count_documents() -> None:
    found = analyse(capitals, DOCUMENTS)
    table = {p.text: p for p in found.phrases}
    assert list(table) == ["Acme", "Anna", "Maria", "Bit", "Later"]
    assert (table["Anna"].count, table["Anna"].documents) == (3, 2)
    assert table["Anna"].variants == (("Anna", 2), ("ANNA", 1))
    assert table["Anna"].labels == (("PER", 3),)
    assert table["Acme"].labels == (("ORG", 3),)
    assert [len(one.mentions) for one in found.found] == [5, 5, 0, 0]
    counts = [p.count for p in found.phrases]
    assert counts == sorted(counts, reverse=True)


def test_white_space_and_composed_accents_are_one_phrase() -> None:
    assert normal_form(" New \n\t York") == normal_form("NEW YORK") == "new york"
    assert normal_form("Caf\u00e9") == normal_form("cafe\u0301".upper())
    assert normal_form("Straße") == normal_form("STRASSE")


@pytest.mark.parametrize(("within", "units"), [("document", 2), ("paragraph", 3), ("line", 3)])
def test_pairs_are_what_counting_gives(within: str, units: int) -> None:
    found = analyse(capitals, DOCUMENTS, within=within)
    made = {(p.first, p.second): p for p in found.pairs}
    apart = within != "document"
    assert made["Acme", "Anna"].count == (1 if apart else 2)
    assert made["Acme", "Maria"].count == 1
    alone = {"Acme": 2, "Anna": 2}  # units with each: a, and one of b's two
    expected = math.log2(made["Acme", "Anna"].count * units / (alone["Acme"] * alone["Anna"]))
    assert made["Acme", "Anna"].information == pytest.approx(expected)
    assert (("Acme", "Bit") in made) is not apart


def test_wrong_units_and_too_many_pairs() -> None:
    with pytest.raises(UsageError, match="'paragraph'"):
        analyse(capitals, DOCUMENTS, within="paragraf")
    many = Document("m", " ".join(f"W{n}" for n in range(2500)))
    with pytest.raises(InputError, match="2,500 phrases in one document"):
        analyse(capitals, [many], within="document")


def test_labels_and_scores_choose() -> None:
    assert {p.text for p in analyse(capitals, DOCUMENTS, labels=["PER"]).phrases} == {"Anna", "Maria"}
    assert dict(analyse(capitals, DOCUMENTS, min_score=0.6).phrases[0].variants).keys().isdisjoint({"ANNA", "ACME"})


@given(st.text(st.sampled_from("Ab é\n\r😀東 .<&"), max_size=40))
def test_pieces_are_the_text(text: str) -> None:
    (mentions,) = capitals([text])
    pieces = cut(text, mentions)
    assert "".join(piece.text for piece in pieces) == text
    assert all(text[piece.start : piece.end] == piece.text != "" for piece in pieces)
    assert [piece.text for piece in pieces if piece.label] == [m.text for m in mentions]


# ---- what is required -----------------------------------------------------------------------------------------------


def test_documents_rank_by_what_they_have() -> None:
    found = analyse(capitals, DOCUMENTS, required=["Anna", "maria", "Globex"])
    assert found.ranking is not None
    assert [(one.place, one.name, one.found) for one in found.ranking] == [
        (1, "b", 2), (2, "a", 1), (3, "c", 0), (4, "d", 0)
    ]  # fmt: skip
    kinds = {m.required: (m.kind, m.text) for m in found.ranking[0].matches}
    assert kinds == {"Anna": ("exact", "Anna"), "maria": ("normalised", "Maria"), "Globex": ("missing", None)}
    for one in found.ranking:
        text = next(d.text for d in DOCUMENTS if d.name == one.name)
        for match in one.matches:
            assert match.text is None or text[match.start : match.end] == match.text


def test_similar_phrases_match_by_their_cosine() -> None:
    def compare(first: Sequence[str], second: Sequence[str]) -> list[list[float]]:
        return [[0.9 if (a, b) == ("Globex", "Acme") else 0.1 for b in second] for a in first]

    found = analyse(capitals, DOCUMENTS, required=["Globex", "Anna"], compare=compare)
    assert found.ranking is not None
    best = found.ranking[0].matches[0]
    assert (best.kind, best.text, best.score) == ("similar", "Acme", 0.9)
    none = analyse(capitals, DOCUMENTS, required=["Globex"], compare=compare, threshold=0.95)
    assert none.ranking is not None and none.ranking[0].matches[0].kind == "missing"
    with pytest.raises(UsageError, match="not a number in"):
        analyse(capitals, DOCUMENTS, required=["x"], compare=compare, threshold=2)


def test_words_outside_entities_count_on_request() -> None:
    asked = dict(required=["Note"], anywhere=True)
    found = analyse(capitals, DOCUMENTS, **asked)  # type: ignore[arg-type]
    assert found.ranking is not None
    assert (found.ranking[0].name, found.ranking[0].matches[0].kind) == ("d", "text")


@pytest.mark.parametrize(
    ("text", "phrase", "hits"),
    [
        ("C and C++ and C#", "C", 1),
        ("C and C++ and C#", "C++", 1),
        ("Java, JavaScript; java", "Java", 2),
        ("machine \n learning", "Machine Learning", 1),
        ("CAFE\u0301", "caf\u00e9", 1),
        ("東京タワー", "東京", 0),
        ("", "x", 0),
    ],
)
def test_occurrences_are_whole_words(text: str, phrase: str, hits: int) -> None:
    assert len(list(occurrences(text, phrase))) == hits


def test_lists_of_requirements(tmp_path: Path) -> None:
    path = tmp_path / "skills.txt"
    path.write_text("# skills\nPython\n\n  python \nC#\n#hashtag\n", encoding="utf-8")
    assert read_requirements(path) == ("Python", "C#", "#hashtag")
    path.write_text("\n# only\n", encoding="utf-8")
    with pytest.raises(InputError, match="names nothing"):
        read_requirements(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="UTF-8"):
        read_requirements(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_requirements(tmp_path / "none.txt")


# ---- documents ------------------------------------------------------------------------------------------------------


def test_documents_of_files_folders_and_lines(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("\ufeffb\r\n", encoding="utf-8", newline="")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.md").write_text("c", encoding="utf-8")
    (tmp_path / "a" / ".hidden.txt").write_text("no", encoding="utf-8")
    (tmp_path / "a" / "p.png").write_bytes(b"\x89")
    (tmp_path / "l.jsonl").write_text('"one"\n\n{"id": 7, "text": "two"}\n{"text": "three"}\n', encoding="utf-8")
    skipped: list[Path] = []
    found = list(read_documents([tmp_path], skipped=skipped.append))
    assert [d.text for d in found] == ["c", "b\r\n", "one", "two", "three"]
    assert [Path(d.name).name for d in found] == ["c.md", "b.txt", "l.jsonl:1", "7", "l.jsonl:4"]
    assert [p.name for p in skipped] == ["p.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"\xff\xfe", "not UTF-8"),
        ("x.jsonl", b"{", "line 1 of .*x.jsonl is not valid JSON"),
        ("x.jsonl", b"3", "is not a document"),
        ("x.jsonl", b'{"id": 1}', "is not a document"),
        ("x.jsonl", b"[" * 100_000, "not valid JSON"),
        (None, b"", "no file or folder"),
    ],
)
def test_bad_documents(tmp_path: Path, name: str | None, content: bytes, message: str) -> None:
    path = tmp_path / (name or "none")
    if name:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_documents([path]))


# ---- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.marks: list[str] = []
        self.texts: list[str] = []
        self._pre = False
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        if tag == "pre":
            self._pre = True
            self.texts.append("")
        if tag == "mark" and self._pre:
            self.marks.append(dict(attributes)["data-label"])

    def handle_endtag(self, tag: str) -> None:
        self._pre = self._pre and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._pre:
            self.texts[-1] += data


def test_the_page_highlights_and_escapes() -> None:
    evil = Document('<b onload="x">', "Anna <script>alert(1)</script> & Acme {{ 7 * 7 }}")
    page = Page(to_html(analyse(capitals, [evil, *DOCUMENTS[:2]], required=["Anna", "<i>"])))
    assert "script" not in page.tags and "b" not in page.tags and "i" not in page.tags
    assert page.texts == [evil.text, *(d.text for d in DOCUMENTS[:2])]
    assert page.marks[:2] == ["PER", "ORG"] and len(page.marks) == 2 + 5 + 5


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save("token-classification", tmp_path_factory.mktemp("ner") / "model"))


@dataclass
class Done:
    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Done:
    code = run_app(["entities", *map(str, arguments)])
    return Done(code, *capsys.readouterr())


def test_the_command(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["the cat sat on the mat", "the dog", "", "the cat " * 60]
    lines = "".join(json.dumps({"id": f"n{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    (tmp_path / "d.jsonl").write_text(lines, encoding="utf-8")
    found = json.loads(run(capsys, checkpoint, tmp_path / "d.jsonl", "--json").out)
    assert [d["name"] for d in found["documents"]] == ["n0", "n1", "n2", "n3"]
    for text, document in zip(texts, found["documents"], strict=True):
        assert "".join(piece["text"] for piece in document["pieces"]) == text
        assert all(text[e["start"] : e["end"]] == e["text"] for e in document["entities"])
    assert sum(p["count"] for p in found["phrases"]) == sum(len(d["entities"]) for d in found["documents"]) > 0
    skills = tmp_path / "skills.txt"
    skills.write_text("the cat\ndog\n", encoding="utf-8")
    page = tmp_path / "page.html"
    arguments = (checkpoint, tmp_path / "d.jsonl", "--require", skills, "--anywhere", "--csv", "--html", page)
    done = run(capsys, *arguments)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert len(rows) == 4 and rows[0]["place"] == "1" and "4 documents" in done.err
    assert Page(page.read_text(encoding="utf-8")).texts == texts
    for view in ("phrases", "pairs", "pieces", "matches", "ranking"):
        shown = run(capsys, checkpoint, tmp_path / "d.jsonl", "--require", skills, "--show", view, "--top", "2")
        assert shown.code == 0 and shown.out.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "at least one PATH"),
        (["none.txt"], "no file or folder 'none.txt'"),
        (["PATH", "--require", "none.txt"], "'none.txt' cannot be read"),
        (["PATH", "--similar", "x"], "--similar has no effect without --require"),
        (["PATH", "--anywhere"], "--anywhere has no effect"),
        (["PATH", "--show", "phrase"], "did you mean 'phrases'"),
        (["PATH", "--show", "ranking"], "without --require"),
        (["PATH", "--csv", "--json"], "--json gives everything"),
        (["PATH", "--label", "XYZ"], "is not a label of this model"),
        (["PATH", "--within", "lines"], "did you mean 'line'"),
        (["PATH", "--aggregation", "none"], "finds no entities"),
        (["PATH", "--scheme", "BILOU"], "BILOU"),
        (["PATH", "--html", "/nowhere/x.html"], "cannot be written: there is no folder '/nowhere'"),
    ],
)
def test_wrong_usage(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "d.txt").write_text("the cat", encoding="utf-8")
    done = run(capsys, checkpoint, *(str(tmp_path / "d.txt") if a == "PATH" else a for a in arguments))
    assert done.code in (1, 2) and message in done.err and "Traceback" not in done.err


def test_another_task_finds_no_entities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.save("fill-mask", tmp_path / "model")
    (tmp_path / "d.txt").write_text("the cat", encoding="utf-8")
    done = run(capsys, folder, tmp_path / "d.txt")
    assert done.code == 2 and "fill-mask" in done.err


def test_found_is_plain_data() -> None:
    one = Found(DOCUMENTS[0], ())
    assert one.document.name == "a"
