"""The page of answers: wrong ones on top, marked, escaped, self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plainformer.errors import UsageError
from plainformer.evaluate import make_scorer
from plainformer.evaluate.examples import ranked, to_html
from plainformer.evaluate.marked import MOST_WORDS, Piece, spans, tagged, word_diff
from tests.support.kept import LABELS, hits, keep, labelled

VOID = {"meta", "input", "br", "link"}
EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(2)>&amp;\u2028'
NONE = {"labels": [], "probabilities": [0.4, 0.1]}
TAGS = ("O", "B-PER", "I-PER", "B-LOC")


class Page(HTMLParser):
    """Reads a page; every tag must be closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.articles: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), attrs  # no attribute twice
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "article":
            self.articles.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        if "article" in self.open:
            self.articles[-1] += data

    def marks(self, kind: str) -> int:
        return sum(tag == "mark" and attributes.get("class") == kind for tag, attributes in self.tags)

    @property
    def wrong(self) -> list[bool]:
        return [attributes["class"] == "wrong" for tag, attributes in self.tags if tag == "article"]


def test_wrong_answers_are_on_top_the_surest_first(tmp_path: Path) -> None:
    right = hits(60, 0.7, 0)
    kept = keep(tmp_path / "kept", make_scorer("single-label", labels=LABELS), labelled(right))
    page = Page(to_html(kept))
    wrong = right.count(False)
    assert page.wrong == [True] * wrong + [False] * (60 - wrong)
    sure = [float(re.findall(r"confidence ([\d.]+)", one)[0]) for one in page.articles]
    assert sure[:wrong] == sorted(sure[:wrong], reverse=True) and sure[wrong:] == sorted(sure[wrong:])
    text = to_html(kept)
    assert f"{wrong} wrong" in text and "text-classification: dev.tsv" in text
    assert {attributes.get("data-answer") for tag, attributes in page.tags if tag == "article"} == set(LABELS)
    assert to_html(kept) == text


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    right = hits(60, 0.7, 0)
    kept, wrong = (
        keep(tmp_path / "kept", make_scorer("single-label", labels=LABELS), labelled(right)),
        right.count(False),
    )
    assert f"5 of 60 examples are shown, the worst of {wrong} that are wrong." in to_html(kept, top=5)
    assert f"40 of 60 examples are shown: all that are wrong, and {40 - wrong} of those that are right." in to_html(
        kept, top=40
    )
    assert "are shown" not in to_html(kept) and len(Page(to_html(kept, top=5)).articles) == 5
    with pytest.raises(UsageError, match="top"):
        to_html(kept, top=0)


def test_nothing_of_the_data_is_obeyed(tmp_path: Path) -> None:
    """Scripts in inputs, labels, tags, answers and names are text; the page may load nothing."""
    labels = (EVIL, '"><b onclick="x">')
    pairs = [(labels[0], {"label": labels[1], "probabilities": [0.2, 0.8]})]
    data = {"name": EVIL, "side": ""}
    pages = [to_html(keep(tmp_path / "a", make_scorer("single-label", labels=labels), pairs, inputs=[EVIL], data=data))]
    pages.append(to_html(keep(tmp_path / "b", make_scorer("speech"), [(EVIL, EVIL + " more")], inputs=[EVIL])))
    pages.append(
        to_html(keep(tmp_path / "c", make_scorer("squad"), [([EVIL], {"text": EVIL})], more={"context": EVIL}))
    )
    tags = ("O", "B-<script>")
    pairs = [([tags[1]], [tags[0]])]
    pages.append(
        to_html(
            keep(
                tmp_path / "d",
                make_scorer("entities", labels=tags),
                pairs,
                inputs=["<script>"],
                more={"words": ["<b>"]},
            )
        )
    )
    for text in pages:
        page = Page(text)
        assert [tag for tag, _ in page.tags].count("script") == 1  # its own
        assert not {"img", "b", "iframe", "link"} & {tag for tag, _ in page.tags}
        assert not any(
            name.startswith("on") or name in ("src", "href") for _, attributes in page.tags for name in attributes
        )
        assert "default-src 'none'" in text and "http://" not in text and "https://" not in text
        assert "prefers-color-scheme: dark" in text


def test_tags_are_marked_word_by_word(tmp_path: Path) -> None:
    right, given_ = ["B-PER", "I-PER", "O", "B-LOC", "O"], ["B-PER", "O", "B-LOC", "B-PER", "O"]
    pairs = [(right, right), (right, given_)]
    kept = keep(
        tmp_path / "kept", make_scorer("entities", labels=TAGS), pairs, inputs=["a b c d e", "f g h i j"], task="ner"
    )
    page = Page(to_html(kept))
    assert page.wrong == [True, False]
    assert "f B-PER" in page.articles[0].replace("f" + "B", "f B") and "B-PER, right: B-LOC" in page.articles[0]
    assert [page.marks(kind) - 1 for kind in ("right", "missed", "extra", "confused")] == [4, 1, 1, 1]  # and the legend


def test_long_sentences_say_that_they_are_cut(tmp_path: Path) -> None:
    kept = keep(
        tmp_path / "kept", make_scorer("entities", labels=TAGS), [(["B-PER"] * 9, ["O"] * 9)], inputs=["a b c…"]
    )
    assert Page(to_html(kept)).articles[0].rstrip().endswith("…")


def test_answers_are_marked_in_their_context(tmp_path: Path) -> None:
    pairs = [(["in Paris", "Paris"], {"text": "Paris, France"}), ([], {"text": ""}), (["x"], {"text": ""})]
    kept = keep(tmp_path / "kept", make_scorer("squad"), pairs, more={"context": "He lived in Paris, France."})
    page = Page(to_html(kept))
    assert page.wrong == [True, True, False]
    first = next(one for one in page.articles if "data line 1" in one)
    assert "in Paris / Paris" in first and "He lived in Paris, France." in first
    assert page.marks("right") == 3 and page.marks("extra") > 1  # "Paris", "no answer", and the legend


def test_texts_are_compared_word_by_word(tmp_path: Path) -> None:
    kept = keep(tmp_path / "kept", make_scorer("speech"), [("one two three", "one too three four"), ("a", "a")])
    page = Page(to_html(kept))
    assert page.wrong == [True, False] and page.marks("left-out") == 2 and page.marks("extra") == 3  # and the legend
    assert "wer 0.667" in page.articles[0]


def test_what_is_neither_right_nor_wrong_is_ordered_by_its_error(tmp_path: Path) -> None:
    kept = keep(
        tmp_path / "kept", make_scorer("language"), [("abc", {"nats": n, "tokens": 3}) for n in (3.0, 9.0, 6.0)]
    )
    page = Page(to_html(kept))
    assert [re.findall(r"line (\d)", one)[0] for one in page.articles] == ["2", "3", "1"]
    assert "wrong" not in "".join(page.articles) and 'id="wrong"' not in to_html(kept)


@pytest.mark.parametrize(
    ("name", "settings", "pairs"),
    [
        ("multi-label", {"labels": LABELS}, [(["bad"], NONE), ([], NONE)]),
        (
            "choice",
            {},
            [(0, {"label": 1, "probabilities": [0.2, 0.8]}), (1, {"label": 1, "probabilities": [0.2, 0.8]})],
        ),
        ("text", {}, [("a cat", "the dog ran"), ("a cat sat", "a cat sat")]),
        ("squad", {}, [(["a"], {"text": "b"}), (["a"], {"text": "a"})]),
        ("entities", {"labels": TAGS}, [(["B-PER"], ["O"]), (["O"], ["O"])]),
    ],
)
def test_every_kind_of_answer_has_a_page(tmp_path: Path, name: str, settings: dict[str, Any], pairs: list[Any]) -> None:
    kept = keep(tmp_path / "kept", make_scorer(name, **settings), pairs)
    found = ranked(kept.scorer, np.asarray(kept.rows))
    assert found.wrong_N is not None and found.wrong_N.tolist() == [True, False]
    assert Page(to_html(kept)).wrong == [True, False]


def test_an_empty_evaluation_has_a_page(tmp_path: Path) -> None:
    assert Page(to_html(keep(tmp_path / "kept", make_scorer("speech"), []))).articles == []


# ---- marks ---------------------------------------------------------------------------------------------------------------


@given(st.text("ab \n", max_size=30), st.text("ab \n", max_size=30))
def test_a_diff_holds_both_texts(right: str, answer: str) -> None:
    pieces = word_diff(right, answer)
    assert "".join(piece.text for piece in pieces if piece.kind != "left-out") == answer
    kept = "".join(piece.text for piece in pieces if piece.kind not in ("extra",))
    assert kept.split() == right.split() or "".join(kept.split()) == "".join(right.split())


@given(st.text("abc", max_size=20), st.lists(st.text("abc", max_size=4), max_size=3), st.text("abc", max_size=4))
def test_spans_hold_the_context(context: str, right: list[str], answer: str) -> None:
    assert "".join(piece.text for piece in spans(context, right, answer)) == context


def test_spans_that_overlap() -> None:
    assert spans("in Paris, France", ["Paris"], "Paris, France") == [
        Piece("in "),
        Piece("Paris", "right"),
        Piece(", France", "extra"),
    ]
    assert spans("abc", [], "") == [Piece("abc")] and spans("", ["a"], "b") == []


def test_very_long_texts_are_not_compared() -> None:
    assert word_diff("a " * MOST_WORDS, "b") == [Piece("b")]


def test_tags_without_words_are_left_out() -> None:
    assert tagged(["a"], ["O", "B-X"], ["O", "O"]) == [Piece("a")]
    assert tagged([], [], []) == []
