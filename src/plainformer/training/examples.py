"""From rows to examples: columns, encoding, the cache, and what became of each row."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plainformer
from plainformer.config.building import as_data
from plainformer.config.training import SourceConfig, TrainConfig
from plainformer.data.cache import cache_key, cached, file_digest
from plainformer.data.columns import Columns, mapped
from plainformer.data.counts import Counts
from plainformer.data.read import Rows, read
from plainformer.data.rows import DataRow
from plainformer.data.store import Store, StoreWriter
from plainformer.errors import InputError, PlainformerError
from plainformer.train.objectives.base import Column, Dropped, Objective


@dataclass
class Side:
    """The rows of one side: training or validation.

    Attributes:
        rows: of its source. columns: which is which.
        chosen: the numbers of its rows among those of the source, None for all.
    """

    rows: Rows
    columns: Columns
    chosen: Collection[int] | None = None

    def __iter__(self) -> Iterator[tuple[int, DataRow]]:
        """Yield its rows as they are read, each with its number in the source."""
        for number, row in enumerate(self.rows):
            if self.chosen is None or number in self.chosen:
                yield number, row

    def mapped(self) -> Iterator[DataRow]:
        """Yield its rows under the objective's names; those without a required value are left out."""
        yield from self.columns.rows((row for _, row in self), Counts())


def side_of(source: SourceConfig, config: TrainConfig, columns: tuple[Column, ...]) -> Side:
    """Return the rows of a source and which of its columns the objective reads. Raises InputError, UsageError."""
    rows = read(source, config.data.columns)
    chosen, _ = mapped(rows, columns, config.data.columns, source.path)
    return Side(rows, chosen)


def store_of(side: Side, config: TrainConfig, objective: Objective, processor_digest: str) -> Store:
    """Return a side's examples: out of the cache, or encoded now.

    Raises:
        InputError: no row can be learnt from.
    """
    key = cache_key(
        plainformer=plainformer.__version__,
        objective=objective.name,
        rows=side.rows.digest(),
        chosen=None if side.chosen is None else sorted(side.chosen),
        columns=dict(side.columns.names),
        processor=processor_digest,
        model=objective.model_config.source,
        labels=objective.model_config.labels,
        options=encoding_options(config),
    )
    store = cached(key, lambda writer: _fill(writer, side, objective), config.data.cache)
    if not len(store):
        said = "; ".join(store.counts.lines()) or "it has no rows"
        raise InputError(f"nothing can be learnt from {side.rows.format} data: {said}", "check columns and lengths")
    return store


def encoding_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options that may decide what an example is: all but where data is, how it is batched and what is fitted."""
    content = as_data(config)
    data = {name: content["data"][name] for name in ("labels", "max_length", "too_long", "stride")}
    batches = {name: content["batches"][name] for name in ("packed", "row_length")}
    return {"data": data, "batches": batches, "loss": content["loss"]}


def _fill(writer: StoreWriter, side: Side, objective: Objective) -> None:
    for number, row in side:
        known = side.columns.row(row)
        reason = side.columns.missing(known)
        if reason:
            writer.counts.drop(reason, row.place)
            continue
        try:
            encoded = objective.encode(known)
        except Dropped as dropped:
            writer.counts.drop(dropped.reason, row.place)
            continue
        except PlainformerError as error:
            raise error.within(row.place) from error
        writer.counts.shorten(encoded.cut, row.place)
        for example in encoded.examples:
            writer.add(example, objective.length(example), number)
    writer.counts.add(side.rows.counts)


def digest_of(processor: Any, files: Mapping[str, Path]) -> str:
    """Return a hash of what turns rows into examples: of its files, or of those that it is saved as."""
    if files:
        return file_digest(*files.values())
    with tempfile.TemporaryDirectory() as folder:
        processor.save(Path(folder))
        return file_digest(*(path for path in Path(folder).iterdir() if path.is_file()))
