"""The runs of a cross validation, one after the other; what is finished is not run again."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from plainformer.checkpoint.run_folders import SERIES, is_series
from plainformer.config.training import TrainConfig
from plainformer.data.sides import sides_of
from plainformer.errors import PlainformerError, UsageError, opt
from plainformer.evaluate.base import Metric
from plainformer.evaluate.gathered import HELD_OUT
from plainformer.evaluate.kept import Kept
from plainformer.evaluation import evaluate
from plainformer.folds.advice import advice_of
from plainformer.folds.choice import choose
from plainformer.folds.planned import (
    PlannedRun,
    all_runs,
    chosen_run,
    fold_config,
    fold_runs,
    folds_of,
    outer_config,
    searches,
    with_values,
)
from plainformer.folds.pooled import pool
from plainformer.folds.result import Choice, FoldResult, FoldsResult, Nested
from plainformer.folds.verdicts import over_all
from plainformer.replacing import write_whole
from plainformer.train.checkpoint import as_json
from plainformer.train.kept_verdict import kept_verdict
from plainformer.train.objectives import objective_class
from plainformer.train.record import METRICS
from plainformer.training import TrainResult, train
from plainformer.training.events import Event
from plainformer.training.folder import RunFolder
from plainformer.training.machine import machine
from plainformer.training.prepared import labels_in


class Stopped(Exception):
    """The series was asked to stop."""


class SeriesOfRuns:
    """A cross validation on its way.

    Args:
        config: resolved. metric: the one by which the runs choose their best checkpoint.
    """

    def __init__(
        self, config: TrainConfig, metric: Metric, tell: Callable[[Event], None], stop: Callable[[], bool] | None
    ) -> None:
        self.config, self.metric, self.tell, self.stop = config, metric, tell, stop
        self.folder = Path(config.folder)
        self.total, self.done = len(all_runs(config)), 0

    def run(self) -> FoldsResult:
        """Make all runs, answer the rows that were held out, and write folds.json."""
        folds = folds_of(self.config)
        result = FoldsResult(self.folder, "", folds.count, folds.vote)
        if not is_series(self.folder):
            self.write(result)
        try:
            result = self._all(result)
        except Stopped:
            return replace(result, ended="stopped")
        self.write(result)
        return result

    def _all(self, result: FoldsResult) -> FoldsResult:
        config, choice = self.config, None
        if folds_of(config).search:
            choice, runs, made = self.search(None)
            self._link(runs)
        else:
            runs = fold_runs(config)
            made = [self.train(run) for run in runs]
        nested = self.nested() if folds_of(config).outer else None
        kept = [self.answered(run) for run in runs]
        verdicts = [kept_verdict(self.folder / run.name) for run in runs]
        found = tuple(
            FoldResult(
                *(fold, run.name, one.ended, one.step, one.total_steps, one.best),
                evaluation=os.path.relpath(own.folder, self.folder),
                overfitting=verdict,
            )
            for fold, (run, one, own, verdict) in enumerate(zip(runs, made, kept, verdicts, strict=True), start=1)
        )
        overfitting = over_all(self.folder)
        done = replace(result, ended="done", folds=found, pooled=pool(kept), choice=choice, nested=nested)
        done = replace(done, overfitting=overfitting)
        return replace(done, advice=tuple(advice_of(config, done)))

    # ---- runs

    def train(self, run: PlannedRun) -> TrainResult:
        """Make a run, or read how it ended."""
        self.done += 1
        place = {"run": run.name, "said": run.said, "number": self.done, "runs": self.total}
        self.tell(Event("run", place))
        if self.stop is not None and self.stop():
            raise Stopped
        found = train(run.config, on_event=self.tell, stop=self.stop)
        if found.ended == "stopped":
            raise Stopped
        return found

    def search(self, outer: int | None) -> tuple[Choice, list[PlannedRun], list[TrainResult]]:
        """Make the runs of all candidates; return the choice, and the runs of the chosen one with their ends."""
        measured, made = [], []
        for values, runs in searches(self.config, outer):
            ends = [self.train(run) for run in runs]
            best = [end.best for end in ends]
            measured.append((values, [math.nan if one is None else float(one["value"]) for one in best]))
            made.append((runs, ends))
        tried = choose(measured, folds_of(self.config).tried(), self.metric.better)
        runs, ends = next(own for one, own in zip(tried, made, strict=True) if one.chosen)
        return Choice(self.metric.name, self.metric.better, tuple(tried)), runs, ends

    def nested(self) -> Nested:
        """Search again without the rows of each outer fold, and let the choice answer them."""
        kept, choices = [], []
        for outer in range(1, (folds_of(self.config).outer or 0) + 1):
            choice, _, _ = self.search(outer)
            run = chosen_run(with_values(self.config, choice.values), outer)
            self.train(run)
            choices.append(choice.values)
            kept.append(self.answered(run))
        return Nested(tuple(choices), pool(kept))

    def answered(self, run: PlannedRun) -> Kept:
        """Return the answers of a run's best model to the rows that it was held back from."""
        self.tell(Event("said", {"text": f"{run.said}: answering the rows that were held out"}))
        with machine(run.config):
            found = evaluate(self.folder / run.name, side=HELD_OUT, device=run.config.device)
        return Kept(found.folder)

    # ---- files

    def _link(self, runs: Sequence[PlannedRun]) -> None:
        """Give the runs of the chosen candidate the names fold-1, fold-2 ...; folds.json knows them without."""
        for fold, run in enumerate(runs, start=1):
            link = self.folder / f"fold-{fold}"
            if link.is_symlink():
                link.unlink()
            with suppress(OSError):  # a system without links
                link.symlink_to(run.name, target_is_directory=True)

    def write(self, result: FoldsResult) -> None:
        """Write folds.json, complete or not at all."""
        try:
            write_whole(self.folder / SERIES, as_json(result.to_dict()))
        except OSError as error:
            what = f"{self.folder / SERIES} cannot be written: {error.strerror or error}"
            raise PlainformerError(what, "make room or check the folder, and give the same command again") from None


def begin(config: TrainConfig, data: dict[str, Any]) -> None:
    """Begin a series in its folder, or see that the one there is the same.

    Raises:
        UsageError: the folder has something else, or the series in it was begun with other options or other data.
    """
    folder = RunFolder(Path(config.folder))
    if is_series(folder.path):
        folder.check(config, data)
        return
    if any((folder.path / name).exists() for name in (METRICS, "checkpoints")):
        what = f"{opt('folder', config.folder)} is the folder of one run"
        raise UsageError(what, f"give {opt('folder')} a new folder")
    folder.begin(config, data)


def data_of(config: TrainConfig) -> tuple[TrainConfig, dict[str, Any]]:
    """Read the rows, and see that they can be divided; return the configuration with all folds' labels, and what they are.

    Labels are written out where the folds' training rows do not have the same, since all models must tell apart the same.

    Raises:
        InputError, UsageError: rows that cannot be divided, copies across sides under `duplicates: refuse`.
    """
    kind = objective_class(config.objective)
    folds = folds_of(config)
    labels, identity = [], {}
    # One after the other: the first says whether there are rows for that many.
    runs = ((f"fold-{n}", fold_config(config, n)) for n in range(1, folds.count + 1))
    outer = ((f"outer-{n}", outer_config(config, n)) for n in range(1, (folds.outer or 0) + 1))
    for name, own in chain(runs, outer):
        try:
            found = sides_of(own.data, kind.columns)
        except PlainformerError as error:
            raise error.within(name) from error
        identity[name] = {side: rows.digest() for side, rows in found.sides.items()}
        labels.append(labels_in(kind, own, found.sides["train"]))
    names = {None if one is None else one.names for one in labels}
    if len(names) > 1 and (pool := found.pool()) is not None:
        every = labels_in(kind, config, pool)
        config = replace(config, data=replace(config.data, labels=None if every is None else every.names))
    return config, {"folds": identity}
