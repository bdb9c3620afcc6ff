"""Curves of metrics.jsonl as PNG files, one for each quantity. The same lines give the same bytes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plainformer.replacing import replacing
from plainformer.train.kept_verdict import kept_verdict

PLOTS = "plots"
Curve = list[tuple[int, float]]  # (step, value)
BEST, OVERFITTING = "#2f2f2f", "#dd8452"
COLORS = {"train": "#4878a8", "train rows, evaluated": "#55a868", "validation": "#c44e52"}


def can_plot() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def curves_of(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Return quantity → side (of `COLORS`) → its curve. What is not a finite number has no point."""
    found: dict[str, dict[str, Curve]] = {}

    def add(side: str, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, float | int) and not isinstance(value, bool):
                found.setdefault(name, {}).setdefault(side, []).append((step, value))

    for line in lines:
        if "validation" in line:
            add("validation", line["step"], line["validation"])
            add("train rows, evaluated", line["step"], line.get("probe", {}))
        else:
            add(
                "train",
                line["step"],
                {k: v for k, v in line.items() if k in ("loss", "learning_rate", "gradient_norm")},
            )
    return found


def draw_plots(folder: Path) -> list[Path]:
    """Draw what a run folder's metrics.jsonl has into its `plots/`; return the files: none without matplotlib or lines."""
    metrics = folder / "metrics.jsonl"
    if not can_plot() or not metrics.is_file():
        return []
    lines = [json.loads(line) for line in metrics.read_bytes().split(b"\n")[:-1]]
    best = next((line["step"] for line in reversed(lines) if line.get("best")), None)
    since = (kept_verdict(folder) or {}).get("since") or {}
    drawn = []
    for name, sides in curves_of(lines).items():
        path = folder / PLOTS / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        marks = {} if best is None or "validation" not in sides else {best: (f"best: step {best:,}", BEST, ":")}
        if name == "loss" and since:
            label = f"overfitting since step {since['step']:,} (epoch {since['epoch']:.3g})"
            marks[since["step"]] = (label, OVERFITTING, "--")
        _draw(path, name, sides, marks)
        drawn.append(path)
    return drawn


def _draw(path: Path, name: str, sides: dict[str, Curve], marks: Mapping[int, tuple[str, str, str]]) -> None:
    """Draw the curves of a quantity. `marks`: step → label, color and style of a line there."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.family": "DejaVu Sans"}):  # not the user's style: a run's picture is everywhere the same
        figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for side, curve in sorted(sides.items()):
            steps, values = zip(*curve, strict=True)
            marker = "o" if len(curve) < 60 else ""
            axes.plot(steps, values, label=side, color=COLORS[side], linewidth=1.2, marker=marker, markersize=3)
        for step, (label, color, style) in marks.items():
            axes.axvline(step, color=color, linewidth=0.8, linestyle=style, label=label)
        axes.set_xlabel("step")
        axes.set_ylabel(name.replace("_", " "))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        with replacing(path) as temporary:
            figure.savefig(
                temporary, format="png", metadata={"Software": None}
            )  # else the version of matplotlib is in it
