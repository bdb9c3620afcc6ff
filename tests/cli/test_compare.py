"""`plainformer compare`: tables, JSON, a plot, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from plainformer.evaluate import make_scorer
from tests.support.cli import Cli, done, refused
from tests.support.kept import hits, keep, run

FIGURES = "figures:\n  - {name: BERT-base, metric: accuracy, value: 0.935, source: 'Devlin et al. 2019', n: 1821}\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs of 120 rows, of which one configuration has two seeds, and the figures."""
    for name, share, rate, seed in (("full-0", 0.9, 1e-4, 0), ("full-1", 0.9, 1e-4, 1), ("lora", 0.6, 1e-3, 0)):
        run(tmp_path / name, hits(120, share, seed), rate=rate, seed=seed)
    (tmp_path / "figures.yaml").write_text(FIGURES)
    return tmp_path


def test_a_table_for_people(cli: Cli, runs: Path) -> None:
    found = done(cli("compare", "lora", "full-0", "full-1", "--figures", "figures.yaml"))
    lines = found.lines
    assert lines[0] == "text-classification: 120 examples"
    head = next(line for line in lines if "p" in line.split())
    assert "difference from lora, or source" in head
    row = next(line for line in lines if line.startswith("full (2 seeds)"))
    assert row.endswith("0.0032") and "+0.3667" in row and "to 1)" in row  # not more than all
    figure = next(line for line in lines if line.startswith("BERT-base"))
    assert "0.935 (n = 1,821)" in figure and figure.endswith("Devlin et al. 2019")
    assert "published figures are not tested" in found.out and "of lora there is one seed" in found.out
    assert "p: t over seeds and units" in lines
    assert any(line.startswith("mcc") for line in lines)
    assert not any(line.startswith(("precision_micro", "f1/")) for line in lines)  # repeats accuracy; of one label


def test_json_is_what_python_says(cli: Cli, runs: Path) -> None:
    from plainformer.evaluate.comparison import compare

    (found,) = done(
        cli("compare", "full-0", "lora", "--metric", "mcc", "--draws", "99", "--resamples", "50", "--json")
    ).json()
    expected = compare("full-0", "lora", metrics=["mcc"], draws=99, resamples=50)
    assert found == expected.to_dict()
    refused(
        cli("compare", "full-0", "lora", "--resamples", "1"), "--resamples 1", "an interval of 95 % needs 40 at least"
    )
    refused(cli("compare", "full-0", "lora", "--draws", "5"), "--draws 5", "19 at least")
    assert found["differences"][0]["p"] == 0.01 and found["metrics"] == [{"name": "mcc", "better": "higher"}]


def test_several_metrics(cli: Cli, runs: Path) -> None:
    out = done(cli("compare", "full-0", "lora", "--metric", "accuracy", "--metric", "nll", "--draws", "99")).out
    assert "\naccuracy, higher is better\n" in out and "\nnll, lower is better\n" in out
    assert "p of accuracy: sign-flip permutation" in out and "p (Holm) is corrected for 2 comparisons" in out


def test_one_run_alone(cli: Cli, runs: Path) -> None:
    out = done(cli("compare", "full-0")).out
    assert "difference" not in out and "p:" not in out and "full-0" in out
    out = done(cli("compare", "full-0", "--figures", "figures.yaml")).out
    assert "source" in out and "Devlin" in out


def test_names_and_seeds_by_hand(cli: Cli, runs: Path) -> None:
    out = done(cli("compare", "ours=full-0,full-1", "theirs=lora")).out
    assert "ours (2 seeds)" in out and "theirs" in out and "as given" in out


def test_a_plot(cli: Cli, runs: Path) -> None:
    done(cli("compare", "full-0", "lora", "--plot", "plot.png"))
    assert (runs / "plot.png").read_bytes()[:4] == b"\x89PNG"
    refused(cli("compare", "full-0", "lora", "--plot", "plot.svg"), "--plot 'plot.svg' is not a PNG file")
    refused(cli("compare", "full-0", "lora", "--plot", "none/plot.png"), "--plot", "none")


def test_tasks_one_by_one(cli: Cli, runs: Path) -> None:
    pairs = [(["Paris"], {"text": "Paris" if number % 4 else "Rome"}) for number in range(40)]
    keep(runs / "answers", make_scorer("squad"), pairs, task="question-answering")
    out = done(cli("compare", "full-0", "answers", "lora", "--separate")).out
    assert out.index("text-classification: 120 examples") < out.index("question-answering: 40 examples")
    assert [one["task"] for one in done(cli("compare", "full-0", "answers", "--separate", "--json")).json()] == [
        "text-classification",
        "question-answering",
    ]
    refused(cli("compare", "full-0", "answers"), "different tasks", "--separate")
    refused(cli("compare", "full-0", "answers", "--separate", "--plot", "a.png"), "--plot has no effect", "--separate")


def test_what_is_refused(cli: Cli, runs: Path) -> None:
    refused(cli("compare"), "nothing to compare")
    refused(cli("compare", "none"), "'none' is not there")
    refused(cli("compare", "full-0", "--side", "test"), "no evaluation of the test side", "plainformer evaluate full-0")
    refused(cli("compare", "full-0", "--side", "train"), "--side 'train'", "validation or test")
    refused(cli("compare", "full-0", "--metric", "acuracy"), "--metric 'acuracy' was not measured", "accuracy")
    refused(cli("compare", "full-0", "--draws", "0"), "--draws 0")
    refused(cli("compare", "full-0", "--draws", "2.5"), "2.5")
    refused(cli("compare", "full-0", "--figures", "none.yaml"), "none.yaml")
    (runs / "figures.yaml").write_text(FIGURES.replace("0.935", "93.5"))
    refused(cli("compare", "full-0", "--figures", "figures.yaml"), "figures.yaml line 2", "93.5", "write 0.935")
    run(runs / "short", hits(119, 0.9, 0), rate=3)
    refused(cli("compare", "full-0", "short"), "different data", "1 example only in full-0", "data line 120")
    (runs / "lora" / "evaluations" / "validation-best-1" / "evaluation.json").write_text("{")
    refused(cli("compare", "full-0", "lora"), "damaged")


def test_names_are_escaped(cli: Cli, runs: Path) -> None:
    """What rich would read as markup, and what a terminal would obey."""
    found = done(cli("compare", "[red]\x1b=full-0", "b=lora"))
    assert "[red]" in found.out and "\x1b" not in found.out
