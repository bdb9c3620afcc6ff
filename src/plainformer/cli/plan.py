"""`plainformer plan REF`: what memory a model needs, before anything is downloaded or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from plainformer.cli.flags import Flags, as_flag
from plainformer.cli.options import Json, probe_output, restored, write_json
from plainformer.cli.progress import screen
from plainformer.cli.screen import console, folded, print_facts, shown, table
from plainformer.config.loading import LoadOptions
from plainformer.config.options import specs
from plainformer.errors import UsageError, opt, spelt
from plainformer.plan.asked import LayoutOptions, ShapeOptions, TargetOptions
from plainformer.plan.workload import Workload

if TYPE_CHECKING:
    from plainformer.measuring import Measured
    from plainformer.plan.fitted import Fitted
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
        print_fitted(out, found)
    if measured is not None:
        print_measured(out, measured)
    if plot is not None:
        out.print(f"picture: {plot}", markup=False)


def _planned(ref: str | None, options: dict[str, Any]) -> Plan:
    with screen.during("planning"):
        from plainformer.planning import plan as run

        return run(ref, **options)


def _fitted(made: Plan, what: str, options: dict[str, Any]) -> Fitted:
    from plainformer.planning import fitted

    known = specs(LayoutOptions)
    with screen.during("fitting"):
        return fitted(made, what, LayoutOptions(**{name: value for name, value in options.items() if name in known}))


def _measured(made: Plan) -> Measured:
    with screen.during("measuring"):
        import torch

        from plainformer.measuring import measure

        gpu = made.device is not None and made.device.kind == "gpu" and torch.cuda.is_available()
        return measure(made, "cuda" if gpu else "cpu")


def print_plan(out: Any, made: Plan) -> None:
    """Print the tables of parts and of a file, then what is to be known besides, a line for each sentence."""
    from plainformer.plan.shown import division_said, facts, file_rows, table_rows, title

    out.print("\n".join(folded(title(made), out.width)), markup=False)
    if made.layout.world > 1:
        out.print(division_said(made.layout), markup=False)
    for (heads, written), texts in (
        (table_rows(made), ("part", "note")),
        (file_rows(made), ("type in the file", "as")),
    ):
        rows = table(*heads, right=[name for name in heads if name not in texts])
        for row in written:
            rows.add_row(*map(shown, row))
        if written:
            out.print(rows)
            out.print()
    for name, sentences in facts(made, as_flag).items():
        print_fact(out, name, sentences)


def print_fact(out: Any, name: str, sentences: Sequence[str]) -> None:
    """Print what there is to say of one thing, each sentence on a line of its own."""
    for place, sentence in enumerate(sentences):
        print_facts(out, {"" if place else name: sentence}, label=15)


def print_fitted(out: Any, found: Fitted) -> None:
    """Print the answer of a search, its best answers, and why the next one does not fit."""
    columns, answers = found.table()
    out.print()
    print_fact(out, f"fit {found.kind}", [spelt(found.answer, as_flag)])
    if answers:
        rows = table(*columns, right=[name for name in columns if name not in ("model", "checkpointing")])
        for row in answers:
            rows.add_row(*map(shown, row))
        out.print(rows)
        out.print()
    if found.why:
        print_fact(out, "does not fit", [spelt(found.why, as_flag)])


def print_measured(out: Any, measured: Measured) -> None:
    """Print predicted and measured bytes by phase."""
    out.print()
    rows = table("phase", "predicted", "measured", "difference", right=("predicted", "measured", "difference"))
    for row in measured.rows():
        rows.add_row(*map(shown, row))
    out.print(rows)
    for note in measured.notes:
        out.print(note, markup=False)
