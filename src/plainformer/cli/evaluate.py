"""`plainformer evaluate REF DATA`: how good a checkpoint's answers are."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from plainformer.cli.flags import Flags, LoadFlags
from plainformer.cli.options import WHOLE, Json, Ref, restored, write_json
from plainformer.cli.progress import Count, screen
from plainformer.cli.screen import console, shown, table
from plainformer.cli.several import meet
from plainformer.config.training import FORMATS
from plainformer.config.yaml import resolved_scalar
from plainformer.tasks import option_classes

if TYPE_CHECKING:
    from plainformer.evaluate import Table
    from plainformer.evaluation import Evaluation

MOST_ROWS = 50  # of a table; --json has all
MOST_COLUMNS = 12  # of a table: a confusion matrix of more labels is for --json and the picture
_GROUP = "The data"


# What decides an evaluation most often; `run --help` explains all.
_SHOWN = (
    *("batch_size", "on_error", "truncate", "max_length", "aggregation", "scheme", "label", "template"),
    *("max_new_tokens", "num_beams", "do_sample", "seed", "src_lang", "tgt_lang", "ngram", "language"),
)


class TaskFlags(Flags, kinds=option_classes(), group="What a task does", without=("temperature",), shown=_SHOWN):
    """The options of every task; `temperature` is a classifier's as well."""


@Parameter(name="*")
@dataclass(frozen=True)
class DataFlags:
    """Which rows, and how they are read."""

    side: Annotated[str | None, Parameter(help="Of a run: validation (default), test or train.", group=_GROUP)] = None
    columns: Annotated[
        dict[str, str] | None,
        Parameter(help="--columns.NAME: the data's column, its name or number from 0.", group=_GROUP),
    ] = None
    unit: Annotated[
        str | None,
        Parameter(help="Column whose equal values intervals are drawn over: speaker, file:folder.", group=_GROUP),
    ] = None
    format: Annotated[str | None, Parameter(help=f"{', '.join(FORMATS)}; default: by the name.", group=_GROUP)] = None
    name: Annotated[str | None, Parameter(help="Configuration of a Hub data set.", group=_GROUP)] = None
    split: Annotated[str | None, Parameter(help="Split of a Hub data set, or of an npz file.", group=_GROUP)] = None
    limit: Annotated[int | None, WHOLE, Parameter(help="Use only this many rows, the first.", group=_GROUP)] = None
    test: Annotated[
        bool,
        Parameter(
            negative="", help="It is a test set: the look is written down, and no second one allowed.", group=_GROUP
        ),
    ] = False
    look_again: Annotated[
        str | None, Parameter(help="Why a test set has to be looked at again; every report will say it.", group=_GROUP)
    ] = None

    def asked(self) -> dict[str, Any]:
        """Return those that were given."""
        found = {f.name: _restored(getattr(self, f.name)) for f in fields(self)}
        found["columns"] = {name: _column(value) for name, value in (self.columns or {}).items()}
        return {name: value for name, value in found.items() if value is not None}


def evaluate(
    ref: Ref,
    data: Annotated[
        str | None, Parameter(help="File, folder, pattern or Hub data set; a run has rows of its own.")
    ] = None,
    /,
    *,
    output: Annotated[
        str | None, Parameter(help="Folder that keeps the answers; default: the run's, else the user's cache.")
    ] = None,
    again: Annotated[bool, Parameter(negative="", help="Run what is kept already.")] = False,
    plots: Annotated[
        bool, Parameter(negative="", help="Draw pictures, and a page of the answers, the wrong ones on top.")
    ] = False,
    calibrate: Annotated[
        str | None, Parameter(help="Rows to fit a classifier's temperature on; validation: the run's own.")
    ] = None,
    temperature: Annotated[
        str | None, Parameter(help="Of a classifier's logits, a number or stored; of generation, of sampling.")
    ] = None,
    metric: Annotated[
        dict[str, str] | None,
        Parameter(help="--metric.NAME: setting of the scores: normalize words (speech); main, tokenize ... (texts)."),
    ] = None,
    source: DataFlags = DataFlags(),
    load: LoadFlags = LoadFlags(),  # noqa: B008
    flags: TaskFlags = TaskFlags(),  # noqa: B008
    json: Json = False,
) -> None:
    """Measure a checkpoint's answers to rows that say what is right.

    REF is a checkpoint, or the folder of a run: its best model on its own
    validation rows. Metrics have 95 % intervals. Answers are kept: the same
    command again prints the same numbers, and runs nothing.

    Any flag by which `plainformer run` decides what a model answers is one here,
    too, and `plainformer run --help` explains it. Listed are the most frequent.

    Example: plainformer evaluate runs/sst2
    """
    mesh = meet(load, ())
    settings = {key: resolved_scalar(restored(value)) for key, value in (metric or {}).items()}
    own = {"output": output, "calibrate": calibrate, "temperature": temperature, "task": load.task}
    asked = {**{key: _restored(value) for key, value in own.items()}, "again": again, "plots": plots, **source.asked()}
    asked |= {**load.options(), **flags.options(), "metric": settings, "mesh": mesh}
    found = _run(restored(ref), restored(data), asked)
    if json:
        write_json([found.to_dict()])
    else:
        print_evaluation(found, drawn=plots)


@contextmanager
def _nothing_left() -> Iterator[None]:
    """Within, Ctrl-C ends the program at once, and what it has not finished is removed."""
    from plainformer.evaluate.kept import remove_unfinished

    def heard(number: int, frame: Any) -> None:
        remove_unfinished()
        screen.interrupted()
        os._exit(130)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _restored(value: Any) -> Any:
    return restored(value) if isinstance(value, str) else value


def _column(value: str) -> str | int:
    """Return a column's name, or its place."""
    return int(value) if value.isdecimal() else restored(value)


def _run(ref: str, data: str | None, asked: dict[str, Any]) -> Evaluation:
    count = Count(None)
    done = 0

    def advance(now: int, total: int) -> None:
        nonlocal done
        count.total = total
        count.advance(now - done)
        done = now

    with screen.during("evaluating"):
        from plainformer.evaluation import evaluate as run
    with screen.during(count), _nothing_left():
        return run(ref, data, on_progress=advance, **asked)


def print_evaluation(found: Evaluation, *, drawn: bool = False) -> None:
    """Print metrics with intervals, tables, and what has to be known of them."""
    out = console()
    metrics = table("metric", "value", f"{100 * found.level:.4g} % interval", right=("value",))
    for name, _ in found.shown():
        metrics.add_row(shown(name), *found.said(name))
    out.print(metrics)
    for one in found.tables:
        if one.name != "reliability" and one.rows and len(one.header) <= MOST_COLUMNS:
            _print_table(out, found, one)
    if found.calibration is not None:
        out.print()
        for line in found.calibration.lines():
            out.print(line, markup=False)
    out.print()
    for line in found.notes():
        out.print(line, markup=False)
    out.print(f"every answer: {found.folder}", markup=False)
    if drawn:
        out.print(f"pictures, and a page of answers: {found.folder / 'plots'}", markup=False)


def _print_table(out: Any, found: Evaluation, one: Table) -> None:
    rows = table(*map(shown, one.header), right=one.header[1:])
    for row in one.rows[:MOST_ROWS]:
        rows.add_row(*(shown(_cell(cell)) for cell in row))
    out.print()
    if one.note:
        out.print(one.note, markup=False)
    out.print(rows)
    if len(one.rows) > MOST_ROWS:
        out.print(f"... and {len(one.rows) - MOST_ROWS:,} more lines, in --json")


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
