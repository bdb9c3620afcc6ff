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
        out.print(f"\n{metric.name}, {metric.better} is better", markup=False)
        out.print(_tested(found, metric))
    others = _others(found)
    if others.rows:
        out.print()
        out.print(others)
    out.print()
    for note in (f"intervals: {100 * found.level:.4g} %", *_methods(found), *found.notes):
        out.print(note, markup=False)


def _methods(found: Comparison) -> list[str]:
    """Return how p-values were found, a line for each test, and why there are none."""
    tests = dict.fromkeys((one.metric, one.tested.method, one.tested.reason) for one in found.differences)
    several = len(found.metrics) > 1
    return [
        "; ".join(part for part in (f"p of {metric}: {method}" if several else f"p: {method}", reason) if part)
        if method
        else f"no p of {metric}: {reason}"
        for metric, method, reason in tests
    ]


def _tested(found: Comparison, metric: Metric) -> Any:
    """Return the table of one metric: systems, then published figures with their sources."""
    own = [one for one in found.figures if one.metric == metric.name]
    pairs, several = bool(found.differences), len(found.differences) > 1
    beside = [f"difference from {shown(found.systems[0].name)}"] * pairs + ["source"] * bool(own)
    columns = ["", metric.name, *([", or ".join(beside)] if beside else []), *["p"] * pairs, *["p (Holm)"] * several]
    made = table(*columns, right=("p", "p (Holm)"))
    for system in found.systems:
        one, cells = found.difference(system.name, metric.name), [value_of(system.values[metric.name])]
        if one is not None:
            cells += [value_of(one.tested, signed=True), p_of(one.tested.p), *[p_of(one.corrected)] * several]
        made.add_row(_name(system), *cells, *[""] * (len(columns) - 1 - len(cells)))
    for figure in own:
        of = f" (n = {figure.n:,})" if figure.n else ""
        made.add_row(shown(figure.name), f"{figure.value:.4g}{of}", shown(figure.source), *[""] * (len(columns) - 3))
    return made


def _others(found: Comparison) -> Any:
    """Return the table of what else was measured, of all answers; metrics of single labels are in the evaluations."""
    tested = {metric.name for metric in found.metrics}
    published = [one for one in found.figures if one.metric not in tested]
    made = table("metric", *(shown(system.name) for system in found.systems), *(["published"] if published else []))
    for metric in found.measured:
        repeated = metric.beside and all(
            one.others[metric.name] == one.others.get(metric.beside) for one in found.systems
        )
        own = [
            f"{one.value:.4g} ({shown(one.name)}; {shown(one.source)})"
            for one in published
            if one.metric == metric.name
        ]
        if metric.name not in tested and (own or not (metric.part or repeated)):
            cells = [_number(system.others[metric.name]) for system in found.systems]
            made.add_row(shown(metric.name), *cells, *(["; ".join(own)] if published else []))
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
