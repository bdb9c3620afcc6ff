"""Columns are found by what the configuration says, by name, or by another usual name; never guessed between two."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from plainformer.data.columns import Columns, choose, mapped, value_of
from plainformer.data.counts import Counts
from plainformer.data.rows import DataRow
from plainformer.errors import InputError, UsageError


@dataclass(frozen=True)
class Column:
    name: str
    aliases: tuple[str, ...] = ()
    required: bool = True
    target: bool = False


WANTED = (Column("text", ("sentence", "review")), Column("label", ("y",)), Column("pair", (), required=False))


def names(there: list[str], given: dict[str, str | int] | None = None) -> dict[str, str]:
    return dict(choose(there, WANTED, given or {}, "train.csv").names)


def test_what_is_said_wins_over_names_and_names_over_aliases() -> None:
    assert names(["text", "label", "sentence"]) == {"text": "text", "label": "label"}
    assert names(["sentence", "y", "pair"]) == {"text": "sentence", "label": "y", "pair": "pair"}
    assert names(["text", "label", "sentence"], {"text": "sentence"}) == {"text": "sentence", "label": "label"}
    assert names(["0", "1"], {"text": 0, "label": 1}) == {"text": "0", "label": "1"}
    assert names(["b", "a"], {"text": 1, "label": "b"}) == {"text": "a", "label": "b"}


def test_two_names_that_may_be_meant_are_an_error() -> None:
    with pytest.raises(InputError, match="several that may be it: 'sentence', 'review'"):
        names(["sentence", "review", "label"])
    assert names(["sentence", "review", "label"], {"pair": "review"})["text"] == "sentence"


def test_no_column_is_two() -> None:
    wanted = (Column("text", ("question", "context")), Column("context", required=False))
    assert dict(choose(["context", "question"], wanted, {}, "x").names) == {"text": "question", "context": "context"}
    with pytest.raises(InputError, match="no column 'text'"):
        choose(["context"], wanted, {}, "x")


def test_what_is_missing_is_told_with_what_is_there() -> None:
    with pytest.raises(
        InputError, match=r"no column 'label'\n  → its columns are 'text', 'lable'; did you mean 'lable'"
    ):
        names(["text", "lable"])
    with pytest.raises(InputError, match=r"header: false"):
        names(["a stirring , funny and transporting film", "1"])
    with pytest.raises(UsageError, match="names 'txt', which the objective does not read\n  → did you mean 'text'"):
        names(["text", "label"], {"txt": "text"})
    with pytest.raises(UsageError, match=r"asks for 'body', which is not in train\.csv"):
        names(["text", "label"], {"text": "body"})
    with pytest.raises(UsageError, match=r"asks for column 2 of train\.csv, which has 2"):
        names(["text", "label"], {"text": 2})


def test_paths_into_nested_values() -> None:
    row = DataRow({"t": {"en": "a", "fr": None}, "de": ["kurz", "lang"], "a.b": 3}, "here")
    assert [value_of(row, path) for path in ("t.en", "de.1", "de.2", "t.fr", "a.b", "x.y", "t")] == [
        *("a", "lang", None, None, 3, None),
        {"en": "a", "fr": None},
    ]
    assert dict(choose(["de"], WANTED, {"text": "de.0", "label": "de.1"}, "x", [row]).names)["text"] == "de.0"


def test_rows_without_a_required_value_are_dropped_and_counted() -> None:
    rows = [DataRow({"text": f"t{i}", **({"label": i} if i % 2 else {"label": None})}, f"x line {i}") for i in range(5)]
    columns, again = mapped(rows, WANTED, {}, "x")
    counts = Counts()
    kept = list(columns.rows(again, counts))
    assert [(dict(row), row.place) for row in kept] == [({"text": f"t{i}", "label": i}, f"x line {i}") for i in (1, 3)]
    assert counts.dropped["no value for 'label'"].count == 3
    assert counts.dropped["no value for 'label'"].places == ["x line 0", "x line 2", "x line 4"]


def test_a_column_that_the_first_row_lacks() -> None:
    rows = [DataRow({"text": "a", "label": 0}, "1"), DataRow({"text": "b", "label": 0, "pair": "c"}, "2")]
    columns, again = mapped(iter(rows), WANTED, {}, "x")
    assert isinstance(columns, Columns)
    assert [dict(columns.row(row)) for row in again] == [dict(row) for row in rows]


def test_counters_are_kept_as_json() -> None:
    counts = Counts(rows=7)
    for i in range(5):
        counts.drop("empty", f"line {i}")
    counts.skip("blank line", "line 9")
    counts.shorten(0, "line 1")
    counts.shorten(12, "line 2")
    assert Counts.from_dict(counts.to_dict()) == counts
    assert counts.all_dropped == 5 and counts.cut.count == 1
    total = Counts()
    total.add(counts)
    total.add(counts)
    assert total.dropped["empty"].count == 10 and total.cut_tokens == 24
    assert total.dropped["empty"].places == ["line 0", "line 1", "line 2"]
    assert counts.lines()[1] == "5 dropped: empty (for example line 0, line 1, line 2)"
