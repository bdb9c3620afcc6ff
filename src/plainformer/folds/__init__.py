"""`cross_validate`: a run for each fold, each an ordinary run that never looks at its own fold; what all of them are worth.

rows → folds → (each value of a search ×) each fold: train → the choice → the rows that were held out, answered → pooled metrics

RUN/config.yaml           what was asked for, every default written out
RUN/folds.json            how it ended; `load(RUN)` reads which models answer together
RUN/fold-1 ...            run folders; of a search, links to those of the choice
RUN/search-1-.../fold-1   a search's: a folder for each candidate
RUN/outer-1/...           `outer`: the same without the rows of each outer fold, and `chosen`, which answers them
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plainformer.config.parallel import is_several
from plainformer.config.training import TrainConfig
from plainformer.errors import UsageError, opt, opt_text
from plainformer.folds.planned import PlannedRun, all_runs, fold_config, series_config
from plainformer.folds.result import FoldResult, FoldsResult
from plainformer.folds.series import SeriesOfRuns, begin, data_of
from plainformer.inputs.files import make_folder
from plainformer.training.events import Event
from plainformer.training.lock import alone_in
from plainformer.training.prepared import Prepared, prepare

__all__ = ["FoldResult", "FoldsResult", "SeriesPlan", "cross_validate", "first_fold", "plan_series"]


def cross_validate(
    config: Any, *, on_event: Callable[[Event], None] | None = None, stop: Callable[[], bool] | None = None
) -> FoldsResult:
    """Train a model for each fold of the rows, as `folds` of a configuration says, or go on with folds that were stopped.

    All rows but the test set are divided; each run learns from the rows of the other folds, chooses its best checkpoint on
    validation rows among these, and answers its own fold at the end. All runs begin alike: the same seed, the same new head.

    Args:
        config: a `TrainConfig`, a mapping, or the path of a YAML file, with `folds`.
        on_event: is told of all that happens: before each run "run" (run, said, number, runs), then what `train` tells.
        stop: is asked after each step whether to stop; None: Ctrl-C stops.
    Raises:
        UsageError: the configuration cannot work, or is not that of the folder. TrainingError: as `train`.
    """
    asked = series_config(config)
    _check_alone()
    whole, data = data_of(asked)
    prepared = prepare(fold_config(whole, 1))
    series = SeriesOfRuns(whole, prepared.metric, on_event or (lambda event: None), stop)
    with alone_in(make_folder(asked.folder)):
        begin(asked, data)
        return series.run()


def _check_alone() -> None:
    if is_several():
        what = f"{opt('folds')} makes one run after the other in one process, and torchrun has started several"
        fix = f"start it without torchrun, or make each fold a run: {opt_text('data.split', '{folds: 5, fold: 1}')}"
        raise UsageError(what, fix)


def first_fold(config: Any) -> TrainConfig:
    """Return the configuration of the first fold's run: its rows are like those of the others."""
    return fold_config(series_config(config), 1)


class SeriesPlan:
    """What a cross validation would cost.

    Attributes:
        config: resolved. runs: all of them. steps: of each; those that follow a choice as if the first candidate were chosen.
        prepared: the first run.
    """

    def __init__(self, config: TrainConfig, runs: list[PlannedRun], steps: list[int], prepared: Prepared) -> None:
        self.config, self.runs, self.steps, self.prepared = config, runs, steps, prepared

    @property
    def total_steps(self) -> int:
        """Return the steps of all runs."""
        return sum(self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        runs = [{"run": run.name, "steps": steps} for run, steps in zip(self.runs, self.steps, strict=True)]
        return {"runs": runs, "steps": self.total_steps}


def plan_series(config: Any) -> SeriesPlan:
    """Prepare all runs of a cross validation, without a model; rows are encoded once for all folds."""
    asked, _ = data_of(series_config(config))
    runs = all_runs(asked)
    prepared = [prepare(run.config) for run in runs]
    return SeriesPlan(asked, runs, [one.plan.total_steps for one in prepared], prepared[0])
