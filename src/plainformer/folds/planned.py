"""Which runs a cross validation is made of, each an ordinary run with a configuration of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plainformer.config.building import as_config, as_data, build
from plainformer.config.resolved import resolved
from plainformer.config.training import FoldsConfig, TrainConfig
from plainformer.config.yaml import Written
from plainformer.errors import UsageError, opt
from plainformer.folds.choice import Values, candidates

_LENGTHS = ("epochs", "steps", "tokens")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a series.

    Attributes:
        name: its folder, seen from that of the series. said: what it is, for people: "fold 2 of 5".
        config: whole: `train` needs no more.
    """

    name: str
    said: str
    config: TrainConfig


def series_config(config: Any) -> TrainConfig:
    """Return the resolved configuration of a cross validation. Raises UsageError where there is no `folds`."""
    found = resolved(as_config(config))
    if found.folds is None:
        raise UsageError(f"{opt('folds')} is missing", f"give {opt('folds.count', 5)}")
    return found


def folds_of(config: TrainConfig) -> FoldsConfig:
    """Return what is asked of the folds."""
    assert config.folds is not None
    return config.folds


def fold_config(config: TrainConfig, fold: int, name: str = "", outer: int | None = None) -> TrainConfig:
    """Return the configuration of the run of one fold.

    Args:
        fold: from 1. name: the folder, seen from that of the series. outer: the outer fold that is held out as well.
    """
    folds, split = folds_of(config), config.data.split
    assert split is not None  # `resolved` has made one
    count = folds.count
    split = replace(split, folds=count, fold=fold)
    if outer is not None:
        split = replace(split, outer=folds.outer, outer_fold=outer)
    folder = str(Path(config.folder) / (name or f"fold-{fold}"))
    return replace(config, folder=folder, folds=None, data=replace(config.data, split=split))


def outer_config(config: TrainConfig, outer: int) -> TrainConfig:
    """Return the configuration of the run that learns from all but an outer fold, with the values of a search in it."""
    folds = folds_of(config)
    assert folds.outer is not None
    asked = replace(config, folds=replace(folds, count=folds.outer, search=None, outer=None))
    return fold_config(asked, outer, f"outer-{outer}/chosen")


def chosen_run(config: TrainConfig, outer: int) -> PlannedRun:
    """Return the run that learns from all but an outer fold. `config`: with what a search chose."""
    said = f"outer fold {outer} of {folds_of(config).outer}, with what was chosen"
    return PlannedRun(f"outer-{outer}/chosen", said, outer_config(config, outer))


def with_values(config: TrainConfig, values: Values) -> TrainConfig:
    """Return a configuration in which a search's options have these values; all others stay what they were.

    Raises:
        UsageError: an option that there is not, a value that it cannot have.
    """
    data = as_data(config)
    for name, value in values.items():
        *sections, last = name.split(".")
        place = data
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        if sections == ["length"] and last in _LENGTHS:  # one of the three
            place.update(dict.fromkeys(_LENGTHS))
        place[last] = value
    try:
        return build(TrainConfig, Written(data))
    except UsageError as error:
        said = ", ".join(f"{name}: {value!r}" for name, value in values.items())
        raise UsageError(f"{opt('folds.search')} with {said}: {error.what}", error.fix) from None


def fold_runs(
    config: TrainConfig, values: Values | None = None, number: int = 0, outer: int | None = None
) -> list[PlannedRun]:
    """Return the runs of all folds: plain ones, or those of a search's candidate, of which `number` is the place from 1."""
    count, before, said = folds_of(config).count, "", ""
    if outer is not None:
        before, said = f"outer-{outer}/", f"outer fold {outer} of {folds_of(config).outer}, "
    if values is not None:
        config = with_values(config, values)
        before += f"{folder_of(number, values)}/"
        said += f"{named(values)}, "
    return [
        PlannedRun(
            f"{before}fold-{fold}",
            f"{said}fold {fold} of {count}",
            fold_config(config, fold, f"{before}fold-{fold}", outer),
        )
        for fold in range(1, count + 1)
    ]


def searches(config: TrainConfig, outer: int | None = None) -> Iterator[tuple[dict[str, Any], list[PlannedRun]]]:
    """Yield each candidate of a search with the runs that measure it."""
    for number, values in enumerate(candidates(folds_of(config).tried()), start=1):
        yield values, fold_runs(config, values, number, outer)


def all_runs(config: TrainConfig) -> list[PlannedRun]:
    """Return every run; of the runs that follow a choice, with the values of the first candidate."""
    folds = folds_of(config)
    if not folds.search:
        return fold_runs(config)
    found = [run for _, runs in searches(config) for run in runs]
    first = with_values(config, candidates(folds.tried())[0])
    for outer in range(1, (folds.outer or 0) + 1):
        found += [run for _, runs in searches(config, outer) for run in runs]
        found.append(chosen_run(first, outer))
    return found


def named(values: Values) -> str:
    """Return a candidate for people: "learning_rate 1e-05"."""
    return ", ".join(f"{name.rpartition('.')[2]} {_plain(value)}" for name, value in values.items())


def folder_of(number: int, values: Values) -> str:
    """Return the name of a candidate's folder: "search-1-learning_rate-1e-05"."""
    said = "-".join(f"{name.rpartition('.')[2]}-{_plain(value)}" for name, value in values.items())
    return f"search-{number}-{re.sub(r'[^A-Za-z0-9_.+-]+', '_', said)[:80]}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
