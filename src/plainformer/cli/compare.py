"""`plainformer compare RUN ...`: systems side by side, with paired tests and published figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from plainformer.cli.options import WHOLE, Json, probe_output, restored, write_json
from plainformer.cli.progress import screen
from plainformer.cli.screen import console, shown, table
from plainformer.config.values import no_effect
from plainformer.errors import UsageError, opt

if TYPE_CHECKING:
    from plainformer.evaluate.base import Metric
    from plainformer.evaluate.comparison import Comparison, System


def compare(
    *what: Annotated[
        str,
        Parameter(help="Folders of runs or evaluations. NAME=FOLDER names one; NAME=FOLDER,FOLDER are seeds of one."),
    ],
    side: Annotated[str, Parameter(help="Of the runs' data: validation or test.")] = "validation",
    metric: Annotated[
        tuple[str, ...], Parameter(help="Metric to test; may be given again. Default: the main one of the task.")
    ] = (),
    figures: Annotated[
        str | None, Parameter(help="YAML file of published figures: name, metric, value, source.")
    ] = None,
    separate: Annotated[bool, Parameter(negative="", help="Show each task by itself.")] = False,
    plot: Annotated[str | None, Parameter(help="Draw values and intervals into this PNG file.")] = None,
    draws: Annotated[int, WHOLE, Parameter(help="Draws of a permutation test.")] = 10_000,
    resamples: Annotated[int, WHOLE, Parameter(help="Resamples of a bootstrap.")] = 2000,
    seed: Annotated[int, WHOLE, Parameter(help="Seed of draws and resamples.")] = 0,
    json: Json = False,
) -> None:
    """Compare runs or evaluations with the first one, on the same examples.

    Each value has its interval, each difference a paired test over units
    (documents, speakers, or examples); p-values are corrected together (Holm).
    Runs that differ by their seed alone are one thing, with the noise of training.

    Example: plainformer compare runs/full runs/lora --figures published.yaml
    """
    from plainformer.evaluate.comparison import Asked, compare_separately
    from plainformer.evaluate.comparison import compare as compare_all

    given = tuple(map(restored, what))
    if plot is not None:
        no_effect(separate, "plot", f"with {opt('separate')}: tasks have no common scale")
        if not plot.lower().endswith(".png"):
            raise UsageError(f"{opt('plot', plot)} is not a PNG file", "give a name that ends in .png")
        probe_output("plot", plot)
    with screen.during("comparing"):
        asked = Asked(metric, draws, resamples, seed=seed)
        if separate:
            found = compare_separately(*given, side=side, figures=figures, asked=asked)
        else:
            options: Any = {"metrics": metric, "draws": draws, "resamples": resamples, "seed": seed}
            found = [compare_all(*given, side=side, figures=figures, **options)]
        if plot is not None:
            found[0].plot(plot)
    if json:
        write_json(one.to_dict() for one in found)
        return
    for place, one in enumerate(found):
        if place:
            console().print()
        print_comparison(console(), one)


def print_comparison(out: Any, found: Comparison) -> None:
    """Print a table for each tested metric, one of the other metrics, and what a reader must know."""
    over = "" if found.units == found.n else f" in {found.units:,} units ({found.unit})"
    out.print(f"{found.task or 'evaluation'}: {found.n:,} examples{over}", markup=False)
    for metric in found.metrics:
        out.print()
        out.print(_tested(found, metric))
    others = _others(found)
    if others.rows:
        out.print()
        out.print(others)
    out.print()
    for note in (f"intervals: {100 * found.level:.4g} %", *found.notes):
        out.print(note, markup=False)


def _tested(found: Comparison, metric: Metric) -> Any:
    """Return the table of one metric: systems, then published figures."""
    baseline, several = found.systems[0], len(found.differences) > 1
    columns = ["", f"{metric.name} ({metric.better} is better)"]
    columns += [f"difference from {shown(baseline.name)}", "p"] if found.differences else []
    columns += ["p (Holm)"] if several else []
    columns += ["test"] if found.differences else []
    columns += ["source"] if found.figures else []
    made = table(*columns, right=("p", "p (Holm)"))
    for system in found.systems:
        cells = [_name(system), value_of(system.values[metric.name])]
        one = found.difference(system.name, metric.name)
        if found.differences and one is None:
            cells += [""] * (3 + several)
        elif one is not None:
            tested = one.tested
            cells += [value_of(tested, signed=True), p_of(tested.p)] + [p_of(one.corrected)] * several
            cells.append(tested.method or tested.reason)
        made.add_row(*cells, *[""] * bool(found.figures))
    for figure in found.figures:
        if figure.metric == metric.name:
            of = f" (n = {figure.n:,})" if figure.n else ""
            gap = [""] * (len(columns) - 3)
            made.add_row(shown(figure.name), f"{figure.value:.4g}{of}", *gap, shown(figure.source))
    return made


def _others(found: Comparison) -> Any:
    """Return the table of what else was measured, of all answers; metrics of single labels are in the evaluations."""
    tested = {metric.name for metric in found.metrics}
    published = [one for one in found.figures if one.metric not in tested]
    names = [name for name in found.systems[0].others if name not in tested and "/" not in name]
    made = table("metric", *(shown(system.name) for system in found.systems), *(["published"] if published else []))
    for name in names:
        cells = [_number(system.others.get(name, float("nan"))) for system in found.systems]
        own = [f"{one.value:.4g} ({shown(one.name)}; {shown(one.source)})" for one in published if one.metric == name]
        made.add_row(name, *cells, *(["; ".join(own)] if published else []))
    return made


def _name(system: System) -> str:
    more = [f"{system.seeds} seeds"] * (system.seeds > 1) + [f"{system.folds} folds"] * (system.folds > 1)
    return shown(system.name) + (f" ({', '.join(more)})" if more else "")


def _number(value: float) -> str:
    return "undefined" if value != value else f"{value:.4g}"


def value_of(found: Any, *, signed: bool = False) -> str:
    """Return a value, or a difference, with its interval."""
    value = found.difference if signed else found.value
    if value != value:
        return "undefined"
    said = f"{value:+.4g}" if signed else f"{value:.4g}"
    return said if found.low is None else f"{said} ({found.low:.3g} to {found.high:.3g})"


def p_of(p: float | None) -> str:
    """Return a p-value for people."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
