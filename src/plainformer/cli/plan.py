"""`plainformer plan REF`: what memory a model needs, before anything is downloaded or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from plainformer.cli.flags import Flags, as_flag
from plainformer.cli.options import Json, probe_output, restored, write_json
from plainformer.cli.progress import screen
from plainformer.cli.screen import console, print_facts, shown, table
from plainformer.config.loading import LoadOptions
from plainformer.config.options import specs
from plainformer.errors import UsageError, opt
from plainformer.plan.asked import LayoutOptions, ShapeOptions, TargetOptions
from plainformer.plan.workload import Workload

if TYPE_CHECKING:
    from plainformer.measuring import Measured
    from plainformer.plan.fit import Fitted
    from plainformer.plan.planned import Plan

_GROUP = "What else is answered"


class PlanFlags(Flags, kinds=[Workload, LayoutOptions, TargetOptions, ShapeOptions]):
    """What is asked of the model, on which devices."""


class HubFlags(Flags, kinds=[LoadOptions], only=("revision", "token", "family")):
    """Which version of a Hub repository is read, with what right, and as which family."""


def plan(
    ref: Annotated[
        str | None,
        Parameter(
            help="A folder, a config.json, a .gguf file, a bundled name, a Hub id (only its config.json is downloaded), "
            "or a run's YAML file."
        ),
    ] = None,
    /,
    *,
    fit: Annotated[
        Literal["batch", "context", "model", "layout"] | None,
        Parameter(help="What is the largest that fits, or the cheapest layout.", group=_GROUP),
    ] = None,
    measure: Annotated[
        bool, Parameter(negative="", help="Run it here, and show predicted and measured bytes.", group=_GROUP)
    ] = False,
    plot: Annotated[str | None, Parameter(help="Draw the parts into this PNG file.", group=_GROUP)] = None,
    task: Annotated[str | None, Parameter(help="Task; default: what the architecture implies.")] = None,
    hub: HubFlags = HubFlags(),  # noqa: B008
    flags: PlanFlags = PlanFlags(),  # noqa: B008
    json: Json = False,
) -> None:
    """Count the memory that a model needs, phase by phase, and say whether it fits.

    Nothing is loaded: a model is its config.json here. With --for training, one
    step of it; with --tp, --pp, --dp and --zero, what each of many devices holds.
    With the rule of thumb: when it is wrong, and by how much.

    Example: plainformer plan --params 7B --for training --devices 8 --zero 3 --device H100
    """
    if plot is not None:
        if not plot.lower().endswith(".png"):
            raise UsageError(f"{opt('plot', plot)} is not a PNG file", "give a name that ends in .png")
        probe_output("plot", plot)
    options = {**hub.options(), **flags.options(), **({} if task is None else {"task": task})}
    made = _planned(restored(ref), options)
    found = None if fit is None else _fitted(made, fit, options)
    measured = _measured(made) if measure else None
    if plot is not None:
        from plainformer.plan.plots import draw

        draw(made, plot)
    if json:
        answer = made.to_dict()
        answer |= {} if found is None else {"fitted": found.to_dict()}
        answer |= {} if measured is None else {"measured": measured.to_dict()}
        write_json([answer])
        return
    out = console()
    print_plan(out, made)
    if found is not None:
        out.print()
        for line in found.lines():
            out.print(line, markup=False)
    if measured is not None:
        print_measured(out, measured)
    if plot is not None:
        out.print(f"picture: {plot}", markup=False)


def _planned(ref: str | None, options: dict[str, Any]) -> Plan:
    with screen.during("planning"):
        from plainformer.planning import plan as run

        return run(ref, **options)


def _fitted(made: Plan, what: str, options: dict[str, Any]) -> Fitted:
    from plainformer.plan import fit

    if what == "batch":
        return fit.fit_batch(made)
    if what == "context":
        return fit.fit_context(made)
    with screen.during("fitting"):
        if what == "model":
            from plainformer.planning import published_plans

            return fit.fit_models(published_plans(made))
        known = specs(LayoutOptions)
        return fit.fit_layout(made, LayoutOptions(**{name: value for name, value in options.items() if name in known}))


def _measured(made: Plan) -> Measured:
    with screen.during("measuring"):
        import torch

        from plainformer.measuring import measure

        gpu = made.device is not None and made.device.kind == "gpu" and torch.cuda.is_available()
        return measure(made, "cuda" if gpu else "cpu")


def print_plan(out: Any, made: Plan) -> None:
    """Print the table of parts, the phase of the peak, what is left, the time, and the rule of thumb."""
    from plainformer.plan.shown import columns, facts, layout_said, part_rows, title, units

    out.print(title(made), markup=False)
    if made.layout.world > 1:
        out.print(layout_said(made), markup=False)
    (unit, power), (binary, other) = units(made)
    names = [f"{name}, {unit}" if made.layout.world > 1 else unit for name, _ in columns(made)]
    rows = table("part", *names, binary, "note", right=(*names, binary))
    sums = [0] * len(names)
    for part, sizes, note in part_rows(made):
        rows.add_row(
            shown(part), *(f"{size / power:,.3f}" for size in sizes), f"{max(sizes) / other:,.3f}", shown(note)
        )
        sums = [before + size for before, size in zip(sums, sizes, strict=True)]
    rows.add_row("in all", *(f"{size / power:,.3f}" for size in sums), f"{max(sums) / other:,.3f}", "")
    out.print(rows)
    out.print()
    said = facts(made, as_flag)
    notes = said.pop("assumed").split("; ")
    print_facts(out, {name: text for name, text in said.items() if text}, label=15)
    print_facts(out, {"assumed" if not place else "": note for place, note in enumerate(notes[:1])}, label=15)
    for note in notes[1:]:
        print_facts(out, {"": note}, label=15)


def print_measured(out: Any, measured: Measured) -> None:
    """Print predicted and measured bytes by phase."""
    out.print()
    rows = table("phase", "predicted", "measured", "difference", right=("predicted", "measured", "difference"))
    for row in measured.rows():
        rows.add_row(*map(shown, row))
    out.print(rows)
    for note in measured.notes:
        out.print(note, markup=False)
