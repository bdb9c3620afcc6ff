"""The data of the model of code: what is left out, what is held out, and lines to complete."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from code_data import side_of, text_of, without_near_copies, write
from code_scores import choose_lines, interval, parses, places_in, similarity

BODY = "\n".join(f"def function_{i}(value, other):\n    return value * {i} + other" for i in range(40))


def test_tests_tables_and_what_does_not_parse_are_left_out() -> None:
    assert text_of("pandas/core/frame.py", b"import os\r\n") == ("import os\n", "")
    assert text_of("pandas/tests/test_frame.py", b"import os")[1] == "test"
    assert text_of("pandas/tests/test_frame.py", b"import os", tests=True) == ("import os", "")
    assert text_of("sklearn/cluster/tests/test_it.py", b"import os", tests=True)[1] == "test"  # of a held-out folder
    assert text_of("stdlib/ensurepip/_bundled/x.py", b"import os")[1].startswith("vendored")
    assert "parse" in text_of("a/b.py", b"print 'old'")[1] and "UTF-8" in text_of("a/b.py", b"# \xff")[1]
    assert text_of("a/b.py", b"x = [12345, 67890, 12345]")[1] == "table" and text_of("a/b.py", b"\n")[1] == "empty"


def test_near_copies_go_from_train_and_never_from_what_is_held_out() -> None:
    changed = BODY.replace("function_7", "another")
    texts = {
        "pandas/a.py": changed,
        "sklearn/cluster/b.py": BODY,
        "stdlib/c.py": "import os\nprint(os.name)",
        "stdlib/d.py": "\n".join(f"class Other{i}: size = {i}" for i in range(40)),
    }
    assert side_of("sklearn/cluster/b.py") == "test" and side_of("sklearn/clusters.py") == "train"
    kept, copies = without_near_copies(texts)
    assert set(kept) == {"sklearn/cluster/b.py", "stdlib/c.py", "stdlib/d.py"}
    assert copies == [("pandas/a.py", "sklearn/cluster/b.py")]


def test_files_are_the_same_each_time_and_sides_share_nothing(tmp_path: Path) -> None:
    texts = {"pandas/a.py": "é = 1\n", "stdlib/json/b.py": "x = 2\n", "stdlib/email/c.py": "y = 3\n"}
    counts = write(tmp_path, texts)
    assert [counts[side]["files"] for side in ("train", "validation", "test")] == [1, 1, 1]
    assert counts["train"]["bytes"] == 7
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path, dict(reversed(texts.items())))
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with gzip.open(tmp_path / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        assert json.loads(file.read()) == {"text": "é = 1\n", "file": "pandas/a.py"}


CODE = '''"""A text
of several lines."""
import os

# a comment
value = os.path.join("a", "b")
text = f"""
{value} and more
"""
'''


def test_lines_to_complete_are_lines_of_code() -> None:
    assert [line for _, line in places_in("a.py", CODE)] == ["import os", 'value = os.path.join("a", "b")']


def test_a_place_puts_the_file_together_again() -> None:
    places = choose_lines({"a.py": CODE}, 10)
    assert 1 <= len(places) <= 2
    for place in places:
        assert place.before + place.kept + place.wanted + place.after == CODE
        assert place.kept and place.wanted
    assert places == choose_lines({"a.py": CODE}, 10)


@pytest.mark.parametrize(
    ("one", "other", "edits"), [("", "", 0), ("abc", "abc", 0), ("kitten", "sitting", 3), ("a", "", 1)]
)
def test_similarity_counts_edits(one: str, other: str, edits: int) -> None:
    assert similarity(one, other) == pytest.approx(1 - edits / max(len(one), len(other), 1))


def test_parses_says_whether_it_is_python() -> None:
    assert parses("x = 1") and not parses("x = (1") and not parses("x = \0")


def test_the_interval_is_of_the_ratio() -> None:
    bits, sizes = np.arange(100.0), np.full(100, 50.0)
    ratio, low, high = interval(bits, sizes)
    assert ratio == bits.sum() / sizes.sum() and low < ratio < high
    assert high - low == pytest.approx(2 * 1.96 * bits.std() / 50 / 10, rel=0.1)
