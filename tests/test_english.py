"""Phrases that made readers stop: a sweep has replaced them, and they stay away. CONTRIBUTING lists what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "src").rglob("*.py"))]
PHRASES = {
    r"\bbehind\b": "after, following",
    r"\bin front of\b": "before",
    r"\bso many\b": "this many, that many",
    r"\bto be had\b": "available, supported",
    r"\bof our own\b": "custom",
    r", say(?=[\"')\],.;]|$|\n)": "for example",
    r"\b(?:one|value|object|row|token|file|input) a (?:line|row|frame|step|verb|family)\b": "one per line, for each",
    r"\bstands? (?!for|alone|still|out|between)\w+": "is",
    r"(?<!there )(?<!There )\b(?:is|are) no (?!longer|better|more|such|limit|effect|need|other|room|place)\w+": "is not a ...",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_plain_english(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}, better: {better}"
        for phrase, better in PHRASES.items()
        for match in re.finditer(phrase, text)
    ]
    assert not found, f"{page.relative_to(ROOT)}: {found}"


def test_the_sweep_sees_them() -> None:
    text = 'what stands behind it is no list; one value a line: "give 3, say"'
    assert sum(bool(re.search(phrase, text)) for phrase in PHRASES) == 5
