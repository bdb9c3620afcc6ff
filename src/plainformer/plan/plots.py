"""A picture of a plan: a bar for each phase of the device that needs most, of the parts that are alive in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.errors import MissingDependencyError, PlainformerError, to_install
from plainformer.plan.devices import GB, short
from plainformer.plan.result import PARTS
from plainformer.replacing import replacing

if TYPE_CHECKING:
    from plainformer.plan.planned import Plan

COLORS = (
    *("#4878a8", "#8fb4d6", "#c44e52", "#8172b2", "#b8a9d9", "#55a868", "#9fd0a8", "#dd8452", "#f0c29c"),
    *("#937860", "#c4b09f", "#da8bc3", "#64b5cd"),
)
BESIDE, INK = "#8c8c8c", "#2f2f2f"


def draw(plan: Plan, path: str | Path) -> None:
    """Draw a plan into a PNG file; the same plan gives the same bytes.

    Raises:
        MissingDependencyError: matplotlib. PlainformerError: the file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("plots need matplotlib", to_install("plot")) from None
    with rc_context({"font.family": "DejaVu Sans"}):
        phases = plan.worst.phases
        figure = Figure(figsize=(8, 1.6 + 0.42 * len(phases)), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        _bars(plan, figure.subplots())
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(Path(path)) as temporary:
                figure.savefig(temporary, format="png", metadata={"Software": None})
        except OSError as error:
            raise PlainformerError(f"{path} cannot be written: {error.strerror or error}", "choose another") from None


def _bars(plan: Plan, axes: Any) -> None:
    phases = plan.worst.phases
    parts = [phase.parts() for phase in phases]
    names = dict.fromkeys([*PARTS, *(name for one in parts for name in one)])
    left = [0.0] * len(phases)
    for place, name in enumerate(names):
        sizes = [one.get(name, 0) / GB for one in parts]
        if any(sizes):
            axes.barh(range(len(phases)), sizes, left=left, color=COLORS[place % len(COLORS)], label=name)
            left = [before + size for before, size in zip(left, sizes, strict=True)]
    beside = sum(item.bytes for item in plan.beside) / GB
    if beside:
        axes.barh(range(len(phases)), [beside] * len(phases), left=left, color=BESIDE, label="besides tensors")
    if plan.device is not None:
        axes.axvline(plan.device.memory / GB, color=INK, linestyle="--", linewidth=1)
        axes.set_title(
            f"{plan.name}; the line: {plan.device.name}, {short(plan.device.memory)}".replace("$", r"\$"), fontsize=9
        )
    else:
        axes.set_title(plan.name.replace("$", r"\$"), fontsize=9)
    axes.set_yticks(range(len(phases)), [phase.name for phase in phases], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("GB")
    axes.grid(alpha=0.25, axis="x")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
