"""Pictures of evaluations as PNG files: confusion matrix, reliability diagram, ROC curves, and systems beside each other.

The same evaluation gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plainformer.errors import MissingDependencyError, PlainformerError, to_install
from plainformer.evaluate.base import Numbers, Table
from plainformer.replacing import replacing

if TYPE_CHECKING:
    from plainformer.evaluate.comparison import Comparison
    from plainformer.evaluate.kept import Kept

MEASURED, PUBLISHED, INK = "#4878a8", "#c44e52", "#2f2f2f"
MOST_LABELS = 30  # of a confusion matrix, and numbers in its cells for half of them
MOST_CURVES = 12
_LONGEST = 28  # characters of a name


def draw_evaluation(kept: Kept, folder: Path) -> list[Path]:
    """Draw what there is to draw of an evaluation into a folder; return the files.

    Raises:
        MissingDependencyError: matplotlib. PlainformerError: a file cannot be written.
    """
    rows_NM = np.asarray(kept.rows)
    drawn = []
    for table in kept.scorer.tables(rows_NM) if len(rows_NM) else ():
        draw = {"confusion": draw_confusion, "reliability": draw_reliability}.get(table.name)
        if draw is not None and len(table.rows) <= MOST_LABELS:
            draw(table, folder / f"{table.name}.png")
            drawn.append(folder / f"{table.name}.png")
    find = getattr(kept.scorer, "roc", None)
    curves: dict[str, tuple[Numbers, Numbers]] = find(rows_NM) if find is not None and len(rows_NM) else {}
    if curves:
        draw_roc(curves, folder / "roc.png")
        drawn.append(folder / "roc.png")
    return drawn


def draw_confusion(table: Table, path: Path) -> None:
    """Draw a confusion matrix: rows are right labels, and shades their shares; counts where there is room."""
    names = [_short(str(row[0])) for row in table.rows]
    counts = np.array([row[1:] for row in table.rows], dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.4 + 0.42 * len(names)
    with _figure(path, (size + 0.8, size)) as (figure, axes):
        shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        places = np.arange(len(names))
        axes.set_xticks(places, names, rotation=45, ha="right")
        axes.set_yticks(places, names)
        axes.set_xlabel("answer")
        axes.set_ylabel("right")
        for row, column in np.ndindex(counts.shape) if len(names) <= MOST_LABELS // 2 else ():
            color = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, f"{int(counts[row, column]):,}", ha="center", va="center", color=color, fontsize=8)
        figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the right label")


def draw_reliability(table: Table, path: Path) -> None:
    """Draw how often answers are right by how sure they are; below the diagonal a model is too sure."""
    columns = {name: place for place, name in enumerate(table.header)}
    rows = [row for row in table.rows if row[columns["confidence"]] == row[columns["confidence"]]]
    sure, right = ([row[columns[name]] for row in rows] for name in ("confidence", "accuracy"))
    with _figure(path, (4.6, 4.4)) as (_, axes):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="calibrated")
        axes.vlines(sure, sure, right, color=PUBLISHED, linewidth=2, alpha=0.35, label="gap")
        axes.plot(sure, right, color=MEASURED, linewidth=1.2, marker="o", markersize=4, label="measured")
        _unit_square(axes, "confidence", "share of right answers")


def draw_roc(curves: dict[str, tuple[Numbers, Numbers]], path: Path) -> None:
    """Draw ROC curves, (false, true positive rates) by label; of many labels the first 12."""
    with _figure(path, (4.6, 4.4)) as (_, axes):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        for name, (false_G, true_G) in list(curves.items())[:MOST_CURVES]:
            if not (np.isnan(false_G).any() or np.isnan(true_G).any()):
                axes.plot(false_G, true_G, linewidth=1.2, label=_short(name))
        if len(curves) > MOST_CURVES:
            axes.plot([], [], " ", label=f"{len(curves) - MOST_CURVES} more are not drawn")
        _unit_square(axes, "false positive rate", "true positive rate")


def draw_comparison(found: Comparison, path: Path) -> None:
    """Draw each tested metric as a panel: systems with their intervals, published figures as hollow diamonds."""
    lines = [len(found.systems) + sum(one.metric == metric.name for one in found.figures) for metric in found.metrics]
    height = 0.9 * len(lines) + 0.34 * sum(lines) + 0.3
    with _figure(path, (7, height), panels=lines) as (_, panels):
        for metric, axes in zip(found.metrics, panels, strict=True):
            names = []
            for place, system in enumerate(found.systems):
                value = system.values[metric.name]
                names.append(_short(system.name) + (f" ({system.seeds} seeds)" if system.seeds > 1 else ""))
                if value.low is not None and value.high is not None:
                    axes.hlines(place, value.low, value.high, color=MEASURED, linewidth=1.6)
                axes.plot(value.value, place, color=MEASURED, marker="o", markersize=6, linestyle="none")
            for figure in found.figures:
                if figure.metric == metric.name:
                    style: Any = {"color": PUBLISHED, "marker": "D", "markersize": 6, "fillstyle": "none"}
                    axes.plot(figure.value, len(names), linestyle="none", **style)
                    names.append(f"{_short(figure.name)}\n{_short(figure.source)}")
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_xlabel(f"{metric.name} ({metric.better} is better), {100 * found.level:.4g} % interval")
            axes.grid(alpha=0.25, axis="x")


def _unit_square(axes: Any, x: str, y: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def _short(name: str) -> str:
    """Return a name that fits, in which no $ begins a formula."""
    plain = "".join(c if c.isprintable() else "·" for c in name)
    return (plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…").replace("$", r"\$")


@contextmanager
def _figure(path: Path, size: tuple[float, float], panels: list[int] | None = None) -> Iterator[tuple[Any, Any]]:
    """Make a figure, and write it if nothing fails. `panels`: their heights, one below the other."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("plots need matplotlib", to_install("plot")) from None
    with rc_context({"font.family": "DejaVu Sans"}):  # not the user's style: a picture is everywhere the same
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        ratios = {"height_ratios": panels} if panels else None
        axes = figure.subplots(len(panels or [1]), squeeze=False, gridspec_kw=ratios)[:, 0]
        yield figure, axes if panels else axes[0]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                figure.savefig(
                    temporary, format="png", metadata={"Software": None}
                )  # else matplotlib's version is in it
        except OSError as error:
            raise PlainformerError(f"{path} cannot be written: {error.strerror or error}", "choose another") from None
