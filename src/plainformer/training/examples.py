"""From rows to examples: encoded once, kept in the cache, and what became of each row."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import plainformer
from plainformer.config.building import as_data
from plainformer.config.effects import SOUNDS
from plainformer.config.training import TrainConfig
from plainformer.data.cache import cache_key, cached, file_digest
from plainformer.data.counts import Counts
from plainformer.data.sides import Side, Sides
from plainformer.data.split import UNSEEN
from plainformer.data.store import Fate, Store, StoreWriter
from plainformer.errors import InputError, PlainformerError
from plainformer.inputs.audio.processors import MelProcessor, WaveProcessor
from plainformer.inputs.image import ImageProcessor
from plainformer.train.objectives.base import Dropped, Objective, SpeechInputs
from plainformer.train.objectives.ctc import LACKING


def stores_of(rows: Sides, config: TrainConfig, objective: Objective, processor: str) -> dict[str, Store]:
    """Return the examples of all sides but those that a run never looks at.

    Rows that are divided into folds are encoded once for all folds; each fold's run takes those of its own sides.

    Args:
        processor: a hash of what turns rows into examples.
    Raises:
        InputError: no row of a side can be learnt from.
    """
    sides = {name: side for name, side in rows.sides.items() if name not in UNSEEN}
    split = config.data.split
    pool = rows.pool() if split is not None and split.folds is not None else None
    if pool is None:
        stores = {name: store_of(side, config, objective, processor) for name, side in sides.items()}
    else:
        whole = store_of(pool, config, objective, processor, fates=True)
        stores = {name: _part(whole, side) for name, side in sides.items()}
    for name, store in stores.items():
        if not len(store):
            said = "; ".join(store.counts.lines()) or "there are no rows"
            fix = "check columns and lengths"
            if LACKING in store.counts.dropped:
                fix = "choose a checkpoint whose vocabulary has the characters, or train a tokenizer with them"
            raise InputError(f"no row of {name} can be learnt from: {said}", fix)
    return stores


def _part(whole: Store, side: Side) -> Store:
    """Return a side's own examples, with what became of its rows."""
    assert side.chosen is not None  # of sides that were divided
    store = whole.of_rows(side.chosen)
    _count_others(store.counts, side)
    return store


def store_of(side: Side, config: TrainConfig, objective: Objective, processor: str, *, fates: bool = False) -> Store:
    """Return the examples of a side: out of the cache, or encoded now; with `fates`, those of some rows can be taken."""
    key = cache_key(
        plainformer=plainformer.__version__,
        objective=objective.name,
        rows=side.digest(),
        processor=processor,
        model=objective.model_config.source,
        labels=objective.model_config.labels,
        options=encoding_options(config),
        **({"fates": True} if fates else {}),
    )
    return cached(key, lambda writer: _fill(writer, side, objective, fates=fates), config.data.cache)


def encoding_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options that may decide what an example is: all but where data is, how it is batched and what is fitted."""
    content = as_data(config)
    elsewhere = ("train", "validation", "test", "columns", "split", "duplicates", "cache")
    data = {name: value for name, value in content["data"].items() if name not in elsewhere}
    batches = {name: content["batches"][name] for name in ("packed", "row_length")}
    # Clips that are all scaled alike are kept as loud as they are.
    loud = config.scale.inputs is not None and config.objective in SOUNDS
    return {"data": data, "batches": batches, "loss": content["loss"], **({"loud": True} if loud else {})}


def _fill(writer: StoreWriter, side: Side, objective: Objective, *, fates: bool) -> None:
    """Encode the rows of a side; each one is an example or several, or counted with the reason."""
    counts = writer.counts
    for number, row in side:
        counts.rows += 1
        try:
            encoded = objective.encode(side.columns.row(row))
        except Dropped as dropped:
            counts.drop(dropped.reason, row.place)
            if fates:
                writer.fates.append(Fate(number, row.place, dropped.reason))
            continue
        except PlainformerError as error:
            raise error.within(row.place) from error
        counts.shorten(encoded.cut, row.place)
        if fates and encoded.cut:
            writer.fates.append(Fate(number, row.place, cut=encoded.cut))
        for example in encoded.examples:
            writer.add(example, objective.length(example), number)
    _count_others(counts, side)


def _count_others(counts: Counts, side: Side) -> None:
    """Count the rows that never came to be encoded."""
    counts.add(replace(side.left_out, rows=side.left_out.all_dropped))
    counts.add(Counts(passed=side.rows.counts.passed))


def digest_of(processor: Any, files: Mapping[str, Path]) -> str:
    """Return a hash of what turns rows into examples: of its files, or of those that it is saved as."""
    if files:
        return file_digest(*files.values())
    if isinstance(processor, ImageProcessor | MelProcessor | WaveProcessor):
        return cache_key(**processor.to_dict())
    tokenizer = processor.tokenizer if isinstance(processor, SpeechInputs) else processor
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return file_digest(*(path for path in Path(folder).iterdir() if path.is_file()))
