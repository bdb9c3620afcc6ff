"""`plainformer explain --attention --lens --nearest --html`: what is printed is what `explain` found, and it fits a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import plainformer
from plainformer.explanation import explain
from tests.support.cli import Cli, done, refused
from tests.support.media import write_wav
from tests.support.models import save, whisper

Tiny = Callable[[str], Path]
PLAIN = ("--backend", "plain")


def test_an_overview(cli: Cli, tiny: Tiny) -> None:
    answer = done(cli("explain", tiny("chat"), "hi", "--attention", *PLAIN))
    found = explain(plainformer.load(tiny("chat"), backend="plain"), "hi", attention=True).attention
    assert found is not None
    at = answer.lines.index("attention, decoder: 2 layers x 4 heads, 2 tokens")
    grid = [line.split() for line in answer.lines[at + 4 : at + 7]]
    assert grid[0] == ["layer", "0", "1", "2", "3"]
    signs = {"first": "F", "previous": "P", "next": "N", "itself": "I", "special": "S"}
    for layer, line in enumerate(grid[1:]):
        for head, cell in enumerate(line[1:]):
            one = found.heads[4 * layer + head]
            share = getattr(one, one.kind, None)
            assert cell == ("·" if one.kind == "spread" else f"{signs[one.kind]}{100 * share:.0f}")
    assert len({one.kind for one in found.heads}) > 1
    clearest = [line for line in answer.lines if re.match(r"decoder\.\d\.\d ", line)]
    assert len(clearest) == len({one.kind for one in found.heads})
    # TEXT may follow the option, whose value can be left out; JSON has the same numbers.
    turned = done(cli("explain", tiny("chat"), "--attention", "hi", *PLAIN, "--json")).json()[0]
    assert (
        turned["attention"]
        == done(cli("explain", tiny("chat"), "hi", "--attention", *PLAIN, "--json")).json()[0]["attention"]
    )
    assert [one["entropy"] for one in turned["attention"]["heads"]] == [one.entropy for one in found.heads]
    assert turned["attention"]["maps"] == [] and "lens" not in turned


def test_maps(cli: Cli, tiny: Tiny) -> None:
    given = ("explain", tiny("embedding"), "the cat sat", *PLAIN)
    answer = done(cli(*given, "--attention", "1.2", "--attention", "encoder.0.0"))
    found = explain(plainformer.load(tiny("embedding"), backend="plain"), "the cat sat", attention="1.2").attention
    assert found is not None
    at = next(i for i, line in enumerate(answer.lines) if line.startswith("attention, encoder.1.2"))
    assert any(line.startswith("attention, encoder.0.0") for line in answer.lines)
    assert answer.lines[at + 1].split() == ["0", "1", "2", "3", "4"]
    for row, line in enumerate(answer.lines[at + 2 : at + 7]):
        cells = line[17:].ljust(20)
        expected = [f"{100 * weight:.0f}" for weight in found.maps[0].weights[row]]
        shown = [cells[4 * i + 1 : 4 * i + 4].strip() for i in range(5)]
        assert shown == ["·" if value == "0" else value for value in expected]
    many = done(cli(*given, "--attention", "all", "--json")).json()[0]["attention"]["maps"]
    assert len(many) == 8 and sum(many[0]["weights"][0]) == pytest.approx(1)


def test_a_map_that_is_too_wide_lists_what_is_largest(cli: Cli, tiny: Tiny) -> None:
    text = "the cat sat on the mat and the dog sat"
    answer = done(cli("explain", tiny("chat"), text, "--attention", "0.3", *PLAIN))
    found = explain(plainformer.load(tiny("chat"), backend="plain"), text, attention="0.3").attention
    assert found is not None
    at = next(i for i, line in enumerate(answer.lines) if line.startswith("attention, decoder.0.3"))
    weights = found.maps[0].weights
    assert f"({len(weights)} columns do not fit: the 3 largest of each row; --json has all)" in answer.lines[at + 1]
    rows = answer.lines[at + 2 : at + 2 + len(weights)]
    for row, line in zip(weights, rows, strict=True):
        best = max(range(len(row)), key=lambda key: row[key])
        assert line[17:].split()[:2] == [f"{100 * row[best]:.0f}", str(best)]
    assert max(len(line) for line in answer.lines[at:]) <= 80


def test_two_sequences(cli: Cli, tiny: Tiny) -> None:
    answer = done(cli("explain", tiny("text2text"), "the cat", "--steps", 3, "--attention", "cross.1.0", *PLAIN))
    at = next(i for i, line in enumerate(answer.lines) if line.startswith("attention, cross.1.0"))
    rows = [line for line in answer.lines[at + 2 :] if re.match(r" +\d+ ", line)]
    assert len(rows) == 4 and answer.lines[at + 6].startswith("columns: 0 t")  # the start and three new tokens
    overview = done(cli("explain", tiny("text2text"), "the cat", "--attention", *PLAIN))
    assert [line.split(":")[0] for line in overview.lines if line.startswith("attention, ")] == [
        "attention, encoder",
        "attention, decoder",
        "attention, cross",
    ]


def test_the_lens_and_the_nearest_words(cli: Cli, tiny: Tiny) -> None:
    answer = done(cli("explain", tiny("chat"), "the cat", "--lens", "--nearest", "--top-k", 3, *PLAIN))
    found = explain(plainformer.load(tiny("chat"), backend="plain"), "the cat", lens=True, nearest="embedding", top_k=3)
    at = next(i for i, line in enumerate(answer.lines) if line.startswith("the lens, at 6"))
    rows = [line.split() for line in answer.lines[at + 3 : at + 6]]
    assert [row[0] for row in rows] == ["embeddings", "0", "1"]
    assert [int(row[1]) for row in rows] == [layer.rank for layer in found.lens[0].layers]
    assert answer.lines[at + 6] == "the last line is the model's own prediction"
    shown = [word.token for word in found.nearest[0].neighbours]
    line = next(line for line in answer.lines[at:] if line.startswith("0 "))
    assert re.findall(r"-?\d\.\d\d", line) == [f"{word.cosine:.2f}" for word in found.nearest[0].neighbours]
    assert all(token in line for token in shown)
    after = done(cli("explain", tiny("chat"), "the cat", "--nearest", "0", *PLAIN, "--json")).json()[0]["nearest"]
    last = done(cli("explain", tiny("chat"), "the cat", "--nearest", "last", *PLAIN, "--json")).json()[0]["nearest"]
    assert after != last and len(after) == 7
    masks = done(cli("explain", tiny("fill-mask"), "the [MASK] sat [MASK]", "--lens", *PLAIN))
    assert sum(line.startswith("the lens, at ") for line in masks.lines) == 2


def test_a_page(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    plain = done(cli("explain", tiny("chat"), "the cat", *PLAIN))
    assert done(cli("explain", tiny("chat"), "the cat", "--html", page, *PLAIN)).out == plain.out
    text = page.read_text(encoding="utf-8")
    assert "<h2>Attention</h2>" in text and "What each layer would predict" in text and "Every step" not in text
    done(cli("explain", tiny("chat"), "the cat", "--html", page, "--steps", 3, "--num-beams", 2, *PLAIN, "--json"))
    text = page.read_text(encoding="utf-8")
    assert "The search as a tree" in text and text.count("<summary>step ") == 3
    for name, given in (("text-classification", "hi"), ("fill-mask", "the [MASK]"), ("embedding", "hi")):
        done(cli("explain", tiny(name), given, "--html", page, *PLAIN))
        has_lens = "What each layer would predict" in page.read_text(encoding="utf-8")
        assert has_lens == (name == "fill-mask")
    lone = done(
        cli("explain", tiny("chat"), "a \udcff b".encode("utf-8", "surrogateescape").decode("latin-1"), "--html", page)
    )
    assert lone.code == 0


@pytest.mark.parametrize("path", ["missing/page.html", "."])
def test_a_page_that_cannot_be_written_is_refused_first(cli: Cli, tmp_path: Path, path: str) -> None:
    """Before the checkpoint is even looked for."""
    refused(cli("explain", "no-such-model", "hi", "--html", path), f"--html '{path}' cannot be written")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chat", "hi --attention 5.0", "layers are 0 to 1, heads 0 to 3"),
        ("chat", "hi --attention encoder.0.0", "this model has no 'encoder'"),
        ("chat", "hi --attention --what-if no-cache", "--attention has no effect with --what-if"),
        ("chat", "hi --steps 2 --lens --json", "--lens has no effect with --steps and --json"),
        ("chat", "hi --html x.html --what-if no-cache", "--html has no effect with --what-if"),
        ("chat", "hi --replay t.json --nearest", "--nearest has no effect with --replay"),
        ("chat", "hi --nearest 7", "--nearest 7 names no layer"),
        ("embedding", "hi --lens", "--lens has no effect in feature-extraction"),
        ("chat", "hi --all-pieces", "--all-pieces has no effect on a text"),
        ("chat", "hi --steps 2 --all-pieces", "--all-pieces has no effect with --steps"),
        ("chat", "--attention 0.0", "explain needs a TEXT"),
    ],
)
def test_options_without_effect(cli: Cli, tiny: Tiny, name: str, options: str, message: str) -> None:
    refused(cli("explain", tiny(name), *options.split()), message)


def test_many_frames_are_not_listed_one_by_one(cli: Cli, tmp_path: Path) -> None:
    whisper(tmp_path / "whisper")
    cli("tasks")  # what the reference said while it saved is read here
    sound = write_wav(tmp_path / "a.wav")
    given = ("explain", tmp_path / "whisper", sound, *PLAIN)
    short, long = done(cli(*given)), done(cli(*given, "--all-pieces"))
    frames = [line for line in long.lines if "mel frames" in line]
    assert len(frames) == 50  # a window of one second
    shown = [line for line in short.lines if "mel frames" in line]
    words = [line.split()[0] for line in shown]
    assert words == [str(i) for i in (*range(16), *range(46, 50))]
    left = next(line for line in short.lines if line.startswith("..."))
    assert "30 more (--all-pieces shows them)" in left
    assert short.lines[: short.lines.index(left)][-16:] == [line.rstrip() for line in frames[:16]] or len(shown) == 20
    assert len(done(cli(*given, "--json")).json()[0]["pieces"]) == 50


def test_few_patches_are_all_listed(cli: Cli, tmp_path: Path) -> None:
    from PIL import Image

    save("image-classification", tmp_path / "vit")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    answer = done(cli("explain", tmp_path / "vit", tmp_path / "a.png", "--attention", *PLAIN))
    assert sum(", columns " in line for line in answer.lines) == 16
    assert any(line.startswith("attention, encoder: 2 layers x 4 heads, 17 tokens") for line in answer.lines)


def test_forty_columns(cli: Cli, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "one two three four five six"
    answer = done(cli("explain", tiny("chat"), text, "--attention", "--lens", "--nearest", *PLAIN))
    assert all(len(line) <= 40 for line in answer.lines)
    grid = done(cli("explain", tiny("chat"), text, "--attention", "0.1", *PLAIN))
    assert "do not fit: the largest of each row" in " ".join(grid.lines)
    at = next(i for i, line in enumerate(grid.lines) if "do not fit" in line)
    assert all(len(line) <= 40 for line in grid.lines[at:])


def test_a_wrong_value_of_an_option_that_needs_none(cli: Cli, tiny: Tiny) -> None:
    given = ("explain", tiny("chat"), "hi")
    refused(cli(*given, "--attention", "0,1"), "--attention does not take '0,1'", "LAYER.HEAD, such as 0.1")
    refused(cli(*given, "--nearest", "first", "--lens"), "--nearest does not take 'first'", "embedding or last")
    refused(cli(*given, "more"), "unexpected 'more'")
