"""Plots: what is drawn is what was found. Drawn off screen, and looked at through matplotlib's own objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import plainformer as pf
from plainformer.errors import InputError, MissingDependencyError, UsageError
from plainformer.explanation import Request, explain, explain_steps
from tests.support.close import close
from tests.support.processes import modules_after


@pytest.fixture(scope="module")
def task(tiny: Callable[[str], Path]) -> Any:
    return pf.load(tiny("chat"), backend="plain")


@pytest.fixture(autouse=True)
def off_screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "show", lambda *a, **k: pytest.fail("a plot must not show itself"))
    yield
    pyplot.close("all")


def labels(ticks: Any) -> list[str]:
    return [tick.get_text() for tick in ticks]


def test_attention(task: Any, tmp_path: Path) -> None:
    found = explain(task, "the $cat$ sat", attention="1.2")
    axes = pf.plot_attention(found, "1.2")
    assert found.attention is not None
    (image,) = axes.get_images()
    close(image.get_array().data, found.attention.maps[0].weights)
    assert len(labels(axes.get_xticklabels())) == len(found.pieces) == len(labels(axes.get_yticklabels()))
    assert any(r"\$" in label for label in labels(axes.get_xticklabels()))
    axes.figure.savefig(tmp_path / "map.png")  # every label can be drawn
    from matplotlib import pyplot

    _, mine = pyplot.subplots()
    assert pf.plot_attention(found.attention, "decoder.1.2", axes=mine) is mine
    with pytest.raises(UsageError, match=r"no maps are called '0\.0'"):
        pf.plot_attention(found, "0.0")
    with pytest.raises(UsageError, match="this explanation has no attention"):
        pf.plot_attention(explain(task, "hi"), "0.0")


def test_lens(task: Any, tmp_path: Path) -> None:
    found = explain(task, "the cat", lens=True)
    axes = pf.plot_lens(found)
    assert labels(axes.get_yticklabels()) == ["embeddings", "layer 0", "layer 1"]
    (line,) = axes.get_lines()
    close(line.get_xdata(), [layer.probability for layer in found.lens[0].layers])
    close([bar.get_width() for bar in axes.patches], [layer.tokens[0].probability for layer in found.lens[0].layers])
    axes.figure.savefig(tmp_path / "lens.png")
    assert len(pf.plot_lens(found.lens[0]).get_lines()) == 1
    with pytest.raises(UsageError, match="has no lens"):
        pf.plot_lens(explain(task, "hi"))


def test_embeddings_are_the_principal_components(tiny: Callable[[str], Path]) -> None:
    from sklearn.decomposition import PCA  # type: ignore[import-untyped]

    embed = pf.load(tiny("embedding"), backend="plain")
    words = ["the cat", "sat", "on the", "mat", "the"]
    results = embed(words)
    axes = pf.plot_embeddings(results, words)
    drawn = torch.as_tensor(axes.collections[0].get_offsets().data)
    pca = PCA(2)
    expected = torch.as_tensor(pca.fit_transform(torch.stack([one.vector for one in results]).double().numpy()))
    close(drawn.abs(), expected.abs())
    close((drawn[:, 0] @ expected[:, 0]).abs(), expected[:, 0].norm() ** 2)  # each axis whole, up to its sign
    close((drawn[:, 1] @ expected[:, 1]).abs(), expected[:, 1].norm() ** 2)
    assert f"({100 * pca.explained_variance_ratio_[0]:.0f} % of the variance)" in axes.get_xlabel()
    assert [text.get_text() for text in axes.texts] == [word.replace(" ", "␣") for word in words]
    again = pf.plot_embeddings(torch.stack([one.vector for one in results]), words)
    close(again.collections[0].get_offsets().data, drawn)
    with pytest.raises(InputError, match="a plane needs 3 or more"):
        pf.plot_embeddings(results[:2], words[:2])
    with pytest.raises(UsageError, match="4 labels for 5 vectors"):
        pf.plot_embeddings(results, words[:4])


def test_steps_and_beams(task: Any, tmp_path: Path) -> None:
    steps = explain_steps(task, Request("hi", options={"do_sample": True, "seed": 2, "top_k": 4}), steps=3)
    axes = pf.plot_step(steps, 2)
    ladder = steps.trace.steps[1].ladders[0]
    close([bar.get_width() for bar in axes.patches], [one.probability for one in ladder.final])
    picked = steps.trace.steps[1].picks[0].token_id
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert colors.count(colors[[one.token_id for one in ladder.final].index(picked)]) == 1
    axes.figure.savefig(tmp_path / "step.png")
    with pytest.raises(UsageError, match=r"step=4: row 0 has no such step\n  → it has 1, 2, 3"):
        pf.plot_step(steps, 4)
    with pytest.raises(UsageError, match="generate with num_beams=3"):
        pf.plot_beams(steps)
    beams = explain_steps(task, Request("hi", options={"num_beams": 2}), steps=3)
    axes = pf.plot_beams(beams)
    branches = [branch for step in beams.trace.steps for group in step.groups for branch in group.branches]
    assert len(axes.texts) == len(branches)
    shown = sorted(text.get_text().rsplit(" ", 1)[1] for text in axes.texts)
    assert shown == sorted(f"{branch.log_probability:.2f}" for branch in branches)
    axes.figure.savefig(tmp_path / "beams.png")


def test_without_matplotlib(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = explain(task, "hi", lens=True)

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("plainformer.explanation.plots.import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"plots need matplotlib\n  → pip install matplotlib"):
        pf.plot_lens(found)


def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    assert "matplotlib" not in modules_after("import plainformer.explanation")


def test_a_task_is_no_drawing(task: Any) -> None:
    for draw in (lambda: pf.plot_attention(task, "1.2"), lambda: pf.plot_lens(task)):
        with pytest.raises(InputError, match=r"a TextGeneration cannot be drawn here\n  → give what explain\(task"):
            draw()
    for draw in (lambda: pf.plot_step(task), lambda: pf.plot_beams(explain(task, "the cat"))):  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"cannot be drawn here\n  → give what explain_steps"):
            draw()
