"""From rows to examples: encoded once, kept in the cache, and what became of each row."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import plainformer
from plainformer.config.building import as_data
from plainformer.config.training import TrainConfig
from plainformer.data.cache import cache_key, cached, file_digest
from plainformer.data.counts import Counts
from plainformer.data.sides import Side
from plainformer.data.store import Store, StoreWriter
from plainformer.errors import InputError, PlainformerError
from plainformer.train.objectives.base import Dropped, Objective, SpeechInputs
from plainformer.train.objectives.ctc import LACKING


def store_of(name: str, side: Side, config: TrainConfig, objective: Objective, processor: str) -> Store:
    """Return the examples of a side: out of the cache, or encoded now.

    Args:
        name: of the side, for messages. processor: a hash of what turns rows into examples.
    Raises:
        InputError: no row can be learnt from.
    """
    key = cache_key(
        plainformer=plainformer.__version__,
        objective=objective.name,
        rows=side.digest(),
        processor=processor,
        model=objective.model_config.source,
        labels=objective.model_config.labels,
        options=encoding_options(config),
    )
    store = cached(key, lambda writer: _fill(writer, side, objective), config.data.cache)
    if not len(store):
        said = "; ".join(store.counts.lines()) or "there are no rows"
        fix = "check columns and lengths"
        if LACKING in store.counts.dropped:
            fix = "choose a checkpoint whose vocabulary has the characters, or train a tokenizer with them"
        raise InputError(f"no row of {name} can be learnt from: {said}", fix)
    return store


def encoding_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options that may decide what an example is: all but where data is, how it is batched and what is fitted."""
    content = as_data(config)
    elsewhere = ("train", "validation", "test", "columns", "split", "duplicates", "cache")
    data = {name: value for name, value in content["data"].items() if name not in elsewhere}
    batches = {name: content["batches"][name] for name in ("packed", "row_length")}
    return {"data": data, "batches": batches, "loss": content["loss"]}


def _fill(writer: StoreWriter, side: Side, objective: Objective) -> None:
    """Encode the rows of a side; each one is an example or several, or counted with the reason."""
    counts = writer.counts
    for number, row in side:
        counts.rows += 1
        try:
            encoded = objective.encode(side.columns.row(row))
        except Dropped as dropped:
            counts.drop(dropped.reason, row.place)
            continue
        except PlainformerError as error:
            raise error.within(row.place) from error
        counts.shorten(encoded.cut, row.place)
        for example in encoded.examples:
            writer.add(example, objective.length(example), number)
    counts.add(replace(side.left_out, rows=side.left_out.all_dropped))
    counts.add(Counts(passed=side.rows.counts.passed))


def digest_of(processor: Any, files: Mapping[str, Path]) -> str:
    """Return a hash of what turns rows into examples: of its files, or of those that it is saved as."""
    if files:
        return file_digest(*files.values())
    tokenizer = processor.tokenizer if isinstance(processor, SpeechInputs) else processor
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return file_digest(*(path for path in Path(folder).iterdir() if path.is_file()))
