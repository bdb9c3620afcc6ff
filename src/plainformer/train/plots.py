"""Curves of metrics.jsonl as PNG files, one for each quantity. The same lines give the same bytes."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLOTS = "plots"
Curve = list[tuple[int, float]]  # (step, value)
TRAINED, VALIDATED, BEST = "#4878a8", "#c44e52", "#2f2f2f"


def can_plot() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def curves_of(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Return quantity → side ("train" or "validation") → its curve. What is not a finite number has no point."""
    found: dict[str, dict[str, Curve]] = {}

    def add(side: str, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, float | int) and not isinstance(value, bool):
                found.setdefault(name, {}).setdefault(side, []).append((step, value))

    for line in lines:
        if "validation" in line:
            add("validation", line["step"], line["validation"])
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
    drawn = []
    for name, sides in curves_of(lines).items():
        path = folder / PLOTS / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        _draw(path, name, sides, best if "validation" in sides else None)
        drawn.append(path)
    return drawn


def _draw(path: Path, name: str, sides: dict[str, Curve], best: int | None) -> None:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.family": "DejaVu Sans"}):  # not the user's style: a run's picture is everywhere the same
        figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for side, curve in sorted(sides.items()):
            steps, values = zip(*curve, strict=True)
            marker, color = "o" if len(curve) < 60 else "", TRAINED if side == "train" else VALIDATED
            axes.plot(steps, values, label=side, color=color, linewidth=1.2, marker=marker, markersize=3)
        if best is not None:
            axes.axvline(best, color=BEST, linewidth=0.8, linestyle=":", label=f"best: step {best:,}")
        axes.set_xlabel("step")
        axes.set_ylabel(name.replace("_", " "))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        temporary = path.with_name(f".tmp-{path.name}")
        figure.savefig(temporary, format="png", metadata={"Software": None})  # else the version of matplotlib is in it
    os.replace(temporary, path)
