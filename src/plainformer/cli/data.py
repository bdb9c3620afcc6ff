"""`plainformer data CONFIG`: what a run would read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from plainformer.cli.options import Json, write_json
from plainformer.cli.prepared import first_examples, print_example
from plainformer.cli.progress import screen
from plainformer.cli.screen import console, shown, table
from plainformer.cli.train import read_run

if TYPE_CHECKING:
    from plainformer.data.report import DataReport

BINS, WIDTH = 10, 40  # of a histogram: lines, and columns of its longest bar
MOST_LABELS = 50  # lines of the table; --json has all


def data(
    config: Annotated[
        str | None, Parameter(help="YAML file, or the folder of a run.", allow_leading_hyphen=True)
    ] = None,
    /,
    *overrides: Annotated[
        str,
        Parameter(help="--SECTION.OPTION VALUE changes an option of CONFIG.", allow_leading_hyphen=True),
    ],
    json: Json = False,
) -> None:
    """Show what a run would read, and what is wrong with it.

    How many rows and examples, what is left out and why, which labels are rare,
    how long examples are, copies within the data and across its parts, and the
    first two examples token by token.

    Example: plainformer data sst2.yaml --data.max-length 128
    """
    asked = read_run(config, overrides)
    with screen.during("reading"):
        from plainformer.training.data_report import describe_data

        if asked.folds is not None:
            from plainformer.folds import first_fold

            asked = first_fold(asked)
        described = describe_data(asked)
        examples = [] if described.prepared is None else first_examples(described.prepared)
    if json:
        found = {**described.report.to_dict(), "histogram": [], "examples": examples}
        if described.prepared is not None:
            bins = histogram(described.prepared.examples.lengths)
            found["histogram"] = [{"from": low, "to": high, "examples": count} for low, high, count in bins]
        write_json([found])
    else:
        out = console()
        print_report(out, described.report)
        if described.prepared is not None:
            print_lengths(out, described.prepared.examples.lengths)
        for number, example in enumerate(examples, start=1):
            print_example(out, f"example {number}", example)
    if described.error is not None:
        raise described.error


def print_report(out: Any, report: DataReport) -> None:
    """Print the report, its labels as a table."""
    for line in report.lines():
        if not line.startswith("label "):
            out.print(line, markup=False)
    if not report.labels:
        return
    names = [part.name for part in report.parts]
    labels = table("label", *names, "", right=names)
    for row in report.labels[:MOST_LABELS]:
        labels.add_row(
            shown(row.label), *(f"{row.counts.get(name, 0):,}" for name in names), "rare" if row.rare else ""
        )
    out.print()
    out.print(labels)
    if len(report.labels) > MOST_LABELS:
        out.print(f"... and {len(report.labels) - MOST_LABELS:,} more, of which {len(report.rare):,} are rare in all")


def histogram(lengths: Any) -> list[tuple[int, int, int]]:
    """Return up to ten ranges of lengths, first and last included, and how many examples each has."""
    low, high = int(lengths.min()), int(lengths.max())
    step = max(1, -(-(high - low + 1) // BINS))
    return [
        (first, first + step - 1, int(((lengths >= first) & (lengths < first + step)).sum()))
        for first in range(low, high + 1, step)
    ]


def print_lengths(out: Any, lengths: Any) -> None:
    """Print how many training examples have how many tokens."""
    bins = histogram(lengths)
    most = max(count for _, _, count in bins)
    rows = table("tokens", "examples", "", right=("tokens", "examples"))
    for low, high, count in bins:
        name = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        rows.add_row(name, f"{count:,}", "▇" * -(-count * WIDTH // most))
    out.print()
    out.print(rows)
