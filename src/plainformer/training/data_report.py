"""What a run would read, before it does: counts, labels, lengths, copies and leaks; nothing is refused for them here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from plainformer.config.building import as_config
from plainformer.config.training import PRETRAINING
from plainformer.data.alike import near_copies, texts_of
from plainformer.data.duplicates import window_share
from plainformer.data.report import DataReport, report
from plainformer.data.rows import DataRow
from plainformer.data.survey import survey
from plainformer.training.examples import Side, side_of
from plainformer.training.prepared import Prepared, prepare

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataDescription:
    """A run that could begin, but for copies that it would refuse, and the report of its data."""

    prepared: Prepared
    report: DataReport


def describe_data(config: Any) -> DataDescription:
    """Read the rows of a configuration, encode them, and look for what is wrong with them.

    Args:
        config: a `TrainConfig`, a mapping, or the path of a YAML file.
    """
    asked = as_config(config)
    # Copies are what the report is about: it names them, where training would refuse or drop them.
    prepared = prepare(replace(asked, data=replace(asked.data, duplicates="allow")))
    data, columns = prepared.config.data, prepared.objective.columns
    sides = dict(prepared.sides)
    if data.test is not None and "test" not in sides:
        sides["test"] = side_of(data.test, prepared.config, columns)
    sides = {name: sides[name] for name in PARTS if name in sides}
    targets = [column.name for column in columns if column.target]
    stores = {"train": prepared.examples, "validation": prepared.validation}
    known = {name: store for name, store in stores.items() if store is not None}
    validation = prepared.validation
    corpus = prepared.config.objective in PRETRAINING and validation is not None
    found = report(
        [survey(name, rows_of(side), side.columns, targets, _group(prepared)) for name, side in sides.items()],
        counts={name: store.counts for name, store in known.items()},
        lengths={name: store.lengths for name, store in known.items()},
        near=near_copies(_texts(sides, PARTS[:1], targets), _texts(sides, PARTS[1:], targets)),
        windows=window_share(prepared.examples, validation) if corpus else None,
        split=None if data.split is None else {"by": data.split.by, "group": data.split.group, "seed": data.split.seed},
    )
    return DataDescription(prepared, found)


def rows_of(side: Side) -> Iterator[DataRow]:
    """Yield the rows of a side."""
    return (row for _, row in side)


def _group(prepared: Prepared) -> str | None:
    split = prepared.config.data.split
    return None if split is None else split.group


def _texts(sides: dict[str, Side], names: tuple[str, ...], targets: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if name in sides:
            yield from texts_of(rows_of(sides[name]), sides[name].columns, targets)
