"""Pictures of evaluations: the same bytes for the same evaluation, and what they show."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from plainformer.errors import MissingDependencyError, PlainformerError
from plainformer.evaluate import make_scorer
from plainformer.evaluate import plots as evaluation_plots
from plainformer.evaluate.base import Table
from plainformer.evaluate.comparison import compare
from plainformer.evaluate.plots import draw_confusion, draw_evaluation, draw_reliability, draw_roc
from tests.support.kept import LABELS, hits, keep, labelled, run

SCORER = make_scorer("single-label", labels=LABELS)
FIGURES = "figures:\n  - {name: BERT-base, metric: accuracy, value: 0.935, source: 'Devlin et al. 2019, $table$ 1'}\n"


def size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_a_classifiers_pictures_are_the_same_bytes(tmp_path: Path) -> None:
    kept = keep(tmp_path / "kept", SCORER, labelled(hits(300, 0.8, 0)))
    first, second = (draw_evaluation(kept, tmp_path / name) for name in ("one", "two"))
    assert [path.name for path in first] == ["confusion.png", "reliability.png", "roc.png"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes() and min(size(one)) > 200
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in first}  # nothing temporary
    other = keep(tmp_path / "other", SCORER, labelled(hits(300, 0.6, 0)))
    assert draw_evaluation(other, tmp_path / "three")[0].read_bytes() != first[0].read_bytes()


def test_a_users_style_changes_nothing(tmp_path: Path) -> None:
    from matplotlib import rc_context

    table = Table("confusion", ("label", "a", "b"), (("a", 3, 1), ("b", 0, 5)))
    draw_confusion(table, tmp_path / "one.png")
    with rc_context({"font.family": "monospace"}):
        draw_confusion(table, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_what_has_no_pictures_draws_none(tmp_path: Path) -> None:
    assert draw_evaluation(keep(tmp_path / "kept", make_scorer("speech"), [("a b", "a c")]), tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()


def test_strange_names_empty_rows_and_undefined_curves(tmp_path: Path) -> None:
    names = ("$x^{", "a" * 200, "\x00\n")
    draw_confusion(Table("confusion", ("label", *names), tuple((name, 0, 0, 0) for name in names)), tmp_path / "a.png")
    rows = (("1", 5.0, 0.6, 0.8), ("2", 0.0, float("nan"), float("nan")))
    draw_reliability(Table("reliability", ("bin", "examples", "confidence", "accuracy"), rows), tmp_path / "b.png")
    curves = {f"label {n}": (np.array([0.0, 1.0]), np.array([0.0, 1.0])) for n in range(20)}
    draw_roc({"none": (np.full(2, np.nan), np.full(2, np.nan)), **curves}, tmp_path / "c.png")
    assert all(size(tmp_path / f"{name}.png") for name in "abc")


def test_a_comparison_is_drawn_alike(tmp_path: Path) -> None:
    folders = [run(tmp_path / name, hits(200, share, 0), rate=share) for name, share in (("a", 0.9), ("b", 0.7))]
    (tmp_path / "figures.yaml").write_text(FIGURES)
    found = compare(
        *folders, metrics=["accuracy", "f1_macro"], figures=tmp_path / "figures.yaml", draws=19, resamples=40
    )
    for name in ("one.png", "two.png"):
        found.plot(tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    lone = compare(folders[0])
    lone.plot(tmp_path / "three.png")
    assert size(tmp_path / "three.png")[1] < size(tmp_path / "one.png")[1]  # fewer panels, fewer lines


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("confusion", ("label", "a"), (("a", 3),))
    (tmp_path / "file").write_text("")
    with pytest.raises(PlainformerError, match="cannot be written"):
        draw_confusion(table, tmp_path / "file" / "plot.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        evaluation_plots.draw_confusion(table, tmp_path / "plot.png")
