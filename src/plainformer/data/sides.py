"""From a configuration to its sides: train, validation, test, held_out, each with the rows that are its own.

    found = sides_of(config.data, objective.columns)
    for number, row in found.sides["train"]: ...
    print("\\n".join(report_of(found).lines()))

Rows are read once to survey them and again when they are used; none is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.config.training import DataConfig, SourceConfig
from plainformer.data.alike import near_copies, texts_of
from plainformer.data.columns import Columns, Wanted, mapped
from plainformer.data.counts import Counts
from plainformer.data.duplicates import WindowShare, kept_rows
from plainformer.data.read import Rows, read
from plainformer.data.report import DataReport, report
from plainformer.data.rows import DataRow
from plainformer.data.split import SIDES, Split, divide
from plainformer.data.survey import Survey, survey


@dataclass
class Side:
    """The rows of one side.

    Attributes:
        rows: of its source. columns: which is which.
        chosen: whether each of the source's rows is used, (N,); None for all.
        left_out: rows that are not chosen and belong to no other side: those without a required value, and copies.
    """

    rows: Rows
    columns: Columns
    chosen: npt.NDArray[np.bool_] | None = None
    left_out: Counts = field(default_factory=Counts)

    def __iter__(self) -> Iterator[tuple[int, DataRow]]:
        """Yield its rows as they are read, each with its number in the source."""
        for number, row in enumerate(self.rows):
            if self.chosen is None or self.chosen[number]:
                yield number, row

    def mapped(self) -> Iterator[DataRow]:
        """Yield its rows under the objective's names; those without a required value are left out."""
        yield from self.columns.rows((row for _, row in self), Counts())

    def digest(self) -> str:
        """Return a hash of all that decides which rows these are and what they hold: files, columns, choice."""
        chosen = b"" if self.chosen is None else np.packbits(self.chosen).tobytes()
        columns = json.dumps(dict(self.columns.names), sort_keys=True)
        state = hashlib.blake2b(f"{self.rows.digest()} {columns} ".encode() + chosen, digest_size=16)
        return state.hexdigest()


@dataclass
class Sides:
    """All sides of a configuration.

    Attributes:
        sides: by name: "train", and "validation", "test" and "held_out" as far as there are any.
        targets: the objective's columns that are learnt. surveys: of each side, train first; copies that were dropped
            are not in train's.
        split: how rows were divided; None where each side has its own source. numbers: of these rows in their source, (N,).
    """

    sides: dict[str, Side]
    targets: tuple[str, ...]
    surveys: tuple[Survey, ...]
    split: Split | None = None
    numbers: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def pool(self) -> Side | None:
        """Return all rows that are divided but the test set: what the runs of all folds take theirs from. None without split."""
        if self.split is None:
            return None
        train, chosen = self.sides["train"], np.zeros(self.sides["train"].rows.counts.rows, bool)
        chosen[self.numbers[self.split.sides != SIDES.index("test")]] = True
        return Side(train.rows, train.columns, chosen)

    def record(self) -> dict[str, Any] | None:
        """Return what `splits.json` says; None where each side has its own source."""
        return None if self.split is None else self.split.record()


def sides_of(config: DataConfig, wanted: Sequence[Wanted]) -> Sides:
    """Return the sides that a configuration asks for, after a look for copies.

    Args:
        config: `data` of the configuration. wanted: the objective's columns; those with `target` are learnt, not read.
    Raises:
        InputError, UsageError: data that cannot be read, columns that are not there, a split that cannot be made,
            copies across sides under `duplicates: refuse`.
    """
    targets = tuple(column.name for column in wanted if column.target)
    sources = {"train": config.train, "validation": config.validation, "test": config.test}
    sides = {name: _side(source, config, wanted) for name, source in sources.items() if source is not None}
    group = config.split.group if config.split is not None else None
    surveys = {
        name: survey(name, side.rows, side.columns, targets, group if name == "train" else None)
        for name, side in sides.items()
    }
    for name, side in sides.items():
        side.left_out = surveys[name].counts
    split = None if config.split is None else divide(surveys["train"], config.split, config.duplicates)
    numbers = surveys["train"].numbers
    if split is not None:
        whole, source = surveys["train"], sides["train"]
        for name in SIDES:
            if len(split.rows(name)):
                surveys[name] = whole.taken(split.rows(name), name)
                sides[name] = Side(source.rows, source.columns, left_out=Counts())
        sides["train"].left_out = source.left_out
    _drop_copies(sides, surveys, config.duplicates, divided=split is not None)
    ordered = [name for name in SIDES if name in sides]
    for name in ordered:
        side = sides[name]
        side.chosen = np.zeros(side.rows.counts.rows, bool)
        side.chosen[surveys[name].numbers] = True
    return Sides(
        {name: sides[name] for name in ordered}, targets, tuple(surveys[name] for name in ordered), split, numbers
    )


def _side(source: SourceConfig, config: DataConfig, wanted: Sequence[Wanted]) -> Side:
    rows = read(source, config.columns)
    columns, _ = mapped(rows, wanted, config.columns, source.path)
    return Side(rows, columns)


def _drop_copies(sides: dict[str, Side], surveys: dict[str, Survey], policy: str, *, divided: bool) -> None:
    """Obey `data.duplicates`: leave copies out of train, or refuse them."""
    train = surveys["train"]
    others = [surveys[name] for name in SIDES[1:] if name in surveys]
    kept = kept_rows(train, others, policy, divided=divided)
    for i in np.flatnonzero(~kept):
        sides["train"].left_out.drop("copy of a row of another side", train.places[i])
    surveys["train"] = train.taken(np.flatnonzero(kept), "train")


def report_of(
    found: Sides,
    *,
    counts: Mapping[str, Counts] | None = None,
    lengths: Mapping[str, npt.NDArray[Any]] | None = None,
    max_length: int | None = None,
    windows: WindowShare | None = None,
    near: bool = True,
) -> DataReport:
    """Return the report of all sides.

    Args:
        counts: of each side, such as those of its store; default: what is known without encoding rows.
        lengths, max_length, windows: see `report`. near: look for near copies, which reads all rows again.
    """
    alike = None
    if near:
        texts = {
            name: texts_of((row for _, row in side), side.columns, found.targets) for name, side in found.sides.items()
        }
        alike = near_copies(texts.pop("train"), chain.from_iterable(texts.values()))
    counts = counts or {name: _known(side) for name, side in found.sides.items()}
    return report(
        found.surveys,
        counts=counts,
        lengths=lengths,
        max_length=max_length,
        near=alike,
        windows=windows,
        split=found.record(),
    )


def _known(side: Side) -> Counts:
    """Return what is left out before anything is encoded; sides of one source share what its reader passes over."""
    known = Counts()
    known.add(side.left_out)
    known.rows = 0
    known.add(side.rows.counts)
    return known
