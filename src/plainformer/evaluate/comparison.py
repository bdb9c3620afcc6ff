"""Systems side by side on the same examples: values with intervals, differences from the first, paired tests, published figures.

    found = compare("runs/full", "runs/lora")
    found.differences[0].tested.p

What is tested: one run each by a permutation over units; several seeds with the noise of training; k-fold runs fold by fold
(see `paired`). All p-values of a comparison are corrected together (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from plainformer.config.values import check_number, check_whole
from plainformer.errors import UsageError, did_you_mean, opt, plural
from plainformer.evaluate.alike import check_alike
from plainformer.evaluate.base import Metric, Scorer, plain_values
from plainformer.evaluate.figures import Figure, is_share, read_figures, suited
from plainformer.evaluate.gathered import Group, Part, gather, unit_of
from plainformer.evaluate.intervals import LEVEL, RESAMPLES, Interval
from plainformer.evaluate.ledger import Ledger, Looks
from plainformer.evaluate.paired import DRAWS, Tested, compare_folds, compare_rows, holm, interval_of

ONE_SEED = "one seed each: intervals and p do not cover the noise of training"
SOME_SEEDS = "of {} there is one seed: its part of the noise of training is not covered"
FOLDS = "k-fold runs: values are of all held-out answers together, differences are means over folds"
FIGURES = "published figures are not tested: their answers are not known, their data and protocol may be others"


@dataclass(frozen=True)
class System:
    """One thing that is compared.

    Attributes:
        paths: of its runs, one for each seed. folds: of each run; 1 if it is not a k-fold run.
        values: the tested metrics. others: the value of every metric, the mean over seeds; NaN where it is undefined.
    """

    name: str
    paths: tuple[str, ...]
    folds: int
    values: dict[str, Interval]
    others: dict[str, float]

    @property
    def seeds(self) -> int:
        """Return how many runs with other seeds it is made of."""
        return len(self.paths)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, None for what is undefined."""
        values = {metric: value.to_dict() for metric, value in self.values.items()}
        return {
            "name": self.name,
            "paths": list(self.paths),
            "seeds": self.seeds,
            "folds": self.folds,
            "values": values,
            "metrics": plain_values(self.others),
        }


@dataclass(frozen=True)
class Difference:
    """A system beside the first one, on one metric.

    Attributes:
        tested: "system minus first", with interval and p. corrected: p after Holm; None where nothing was tested.
    """

    name: str
    baseline: str
    metric: str
    tested: Tested
    corrected: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        first = {"name": self.name, "baseline": self.baseline, "metric": self.metric}
        return {**first, **self.tested.to_dict(), "p_corrected": self.corrected}


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        task: what was evaluated. n: examples. units, unit: how many units, and what one is. level: of the intervals.
        metrics: those that are tested, with their directions. measured: all.
        systems: the first is what others are compared with.
        notes: what a reader must know, in sentences.
    """

    task: str
    n: int
    units: int
    unit: str
    level: float
    metrics: tuple[Metric, ...]
    measured: tuple[Metric, ...]
    systems: tuple[System, ...]
    differences: tuple[Difference, ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, None for what is undefined."""
        return {
            **{name: getattr(self, name) for name in ("task", "n", "units", "unit", "level")},
            "metrics": [{"name": metric.name, "better": metric.better} for metric in self.metrics],
            **{name: [one.to_dict() for one in getattr(self, name)] for name in ("systems", "differences", "figures")},
            "notes": list(self.notes),
        }

    def difference(self, name: str, metric: str) -> Difference | None:
        """Return a system's difference from the first; None of the first itself."""
        return next((one for one in self.differences if (one.name, one.metric) == (name, metric)), None)

    def plot(self, path: str | Path) -> None:
        """Draw the values with their intervals, and published figures, as a PNG file."""
        from plainformer.evaluate.plots import draw_comparison

        draw_comparison(self, Path(path))


FEWEST_DRAWS = 19  # p is at least 1 / (draws + 1)


def _check_enough(name: str, value: int, fewest: int, what: str) -> None:
    if value < fewest:
        raise UsageError(
            f"{opt(name, value)} is too few: {what} needs {fewest} at least", "leave it out: the default is enough"
        )


@dataclass(frozen=True)
class Asked:
    """What is computed, and how exactly. `level` None: 0.95, or higher on a test set looked at several times."""

    metrics: tuple[str, ...] = ()
    draws: int = DRAWS
    resamples: int = RESAMPLES
    level: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("draws", "resamples"):
            check_whole(name, getattr(self, name))
        check_whole("seed", self.seed, 0)
        if self.level is not None:
            check_number("level", self.level, "(0, 1)")
        level = LEVEL if self.level is None else self.level
        _check_enough(
            "resamples", self.resamples, math.ceil(2 / (1 - level) - 1e-6), f"an interval of {100 * level:.4g} %"
        )
        _check_enough("draws", self.draws, FEWEST_DRAWS, "a p-value below 0.05")


def compare(
    *what: str | Path,
    side: str = "validation",
    metrics: Sequence[str] | str = (),
    figures: str | Path | None = None,
    draws: int = DRAWS,
    resamples: int = RESAMPLES,
    level: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare runs or evaluations with the first one, on the same examples.

    Args:
        what: folders of runs (their kept evaluations) or of evaluations; "NAME=FOLDER,FOLDER" names one and gives its seeds.
            Runs whose configurations differ by the seed alone are taken as one. One alone can be set beside `figures`.
        side: of the runs' data, "validation" or "test". metrics: to test; default: the main one of the task.
        figures: YAML file of published figures, see `evaluate/figures.py`.
        draws: of permutations. resamples: of bootstraps. level: of intervals, default 0.95. seed: of both.
    Raises:
        UsageError: other tasks, other data, an unknown metric. InputError: a folder without evaluation, a wrong figure.
    """
    asked = Asked((metrics,) if isinstance(metrics, str) else tuple(metrics), draws, resamples, level, seed)
    return compare_groups(gather(what, side), asked, () if figures is None else read_figures(figures))


def compare_separately(
    *what: str | Path, side: str = "validation", figures: str | Path | None = None, asked: Asked | None = None
) -> list[Comparison]:
    """Return a comparison for each task, in the order in which they are first given; arguments as those of `compare`."""
    asked, read = asked or Asked(), () if figures is None else read_figures(figures)
    blocks: dict[tuple[str, str], list[Group]] = {}
    for group in gather(what, side):
        blocks.setdefault((group.runs[0].task, group.first.scorer.name), []).append(group)
    tasks = [task for task, _ in blocks]
    for one in read:
        if one.task and one.task not in tasks:
            raise UsageError(f"{one.place}: no run is of the task {one.task!r}", did_you_mean(one.task, tasks))
        homes = [groups[0] for groups in blocks.values() if one.metric in _metrics(groups[0])]
        if not one.task and len(homes) > 1:
            named = " and ".join(home.runs[0].task for home in homes)
            raise UsageError(f"{one.place}: {one.metric} is measured of {named}", "say `task:` in the figure")
    found = []
    for groups in blocks.values():
        own = [one for one in read if one.task or len(blocks) == 1 or one.metric in _metrics(groups[0])]
        found.append(compare_groups(groups, asked, tuple(own)))
    return found


def compare_groups(groups: list[Group], asked: Asked, figures: tuple[Figure, ...] = ()) -> Comparison:
    """Return the comparison of what was gathered."""
    check_alike(groups)
    first, known = groups[0], _metrics(groups[0])
    names = asked.metrics or (next(iter(known)),)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"measured are {', '.join(one for one in known if '/' not in one)}"
            raise UsageError(f"{opt('metric', name)} was not measured", hint)
    figures = suited(figures, known, first.runs[0].task, percent=first.first.scorer.name == "squad")
    looks = _looks(groups)
    level = asked.level if asked.level is not None else LEVEL if looks is None else looks.level
    systems = tuple(_system(group, names, asked, level) for group in groups)
    differences = _differences(groups, names, asked, level)
    return Comparison(
        task=first.runs[0].task,
        n=sum(len(part.kept) for part in first.runs[0].parts),
        units=int(first.units().max(initial=-1)) + 1,
        unit=unit_of(first.first.kept),
        level=level,
        metrics=tuple(known[name] for name in names),
        measured=tuple(known.values()),
        systems=systems,
        differences=differences,
        figures=figures,
        notes=_notes(groups, differences, figures, looks),
    )


def _metrics(group: Group) -> dict[str, Metric]:
    return {metric.name: metric for metric in group.first.scorer.metrics}


def _system(group: Group, names: Sequence[str], asked: Asked, level: float) -> System:
    scorer, rows, units = group.first.scorer, group.rows(), group.units()
    options: Any = {"resamples": asked.resamples, "level": level, "seed": asked.seed}
    values = {name: _possible(interval_of(scorer, rows, name, units, **options), name, scorer) for name in names}
    each = [scorer.measure(one)(np.ones(len(one))) for one in rows]
    others = {name: math.fsum(values[name] for values in each) / len(each) for name in each[0]}
    return System(group.name, tuple(str(run.path) for run in group.runs), group.folds, values, others)


def _possible(found: Interval, metric: str, scorer: Scorer) -> Interval:
    """Return an interval within the values that a metric can have: that of few seeds reaches beyond them."""
    if found.low is None or found.high is None or not is_share(metric) or metric in ("wer", "cer"):
        return found
    least = -1.0 if metric == "mcc" else 0.0
    most = 100.0 if scorer.name == "squad" else 1.0
    return replace(found, low=max(least, found.low), high=min(most, found.high))


def _differences(groups: list[Group], names: Sequence[str], asked: Asked, level: float) -> tuple[Difference, ...]:
    first = groups[0]
    found = [(group.name, name, _tested(first, group, name, asked, level)) for name in names for group in groups[1:]]
    known = [tested.p for _, _, tested in found if tested.p is not None]
    corrected = iter(holm(known))
    return tuple(
        Difference(name, first.name, metric, tested, None if tested.p is None else next(corrected))
        for name, metric, tested in found
    )


def _tested(first: Group, other: Group, metric: str, asked: Asked, level: float) -> Tested:
    scorer = first.first.scorer
    if first.folds == 1:
        return compare_rows(
            scorer,
            first.rows(),
            other.rows(),
            metric,
            first.units(),
            draws=asked.draws,
            resamples=asked.resamples,
            level=level,
            seed=asked.seed,
        )
    values = [_fold_values(group, metric) for group in (first, other)]
    parts = first.runs[0].parts
    total = sum(len(part.kept) for part in parts)
    ratios = [len(part.kept) / (part.trained or total - len(part.kept)) for part in parts]
    ratio = math.fsum(ratios) / len(ratios)
    return compare_folds([two - one for one, two in zip(*values, strict=True)], ratio, level)


def _fold_values(group: Group, metric: str) -> list[float]:
    """Return a metric for each fold, the mean over seeds."""

    def value(part: Part) -> float:
        return part.scorer.measure(part.rows)(np.ones(len(part.rows)))[metric]

    folds = zip(*(run.parts for run in group.runs), strict=True)
    return [math.fsum(value(part) for part in parts) / len(parts) for parts in folds]


def _looks(groups: Sequence[Group]) -> Looks | None:
    """Return the looks at the test set that was evaluated on, as the user's ledger has them; None where it is not one."""
    data = groups[0].first.kept.info.get("data")
    if not isinstance(data, dict) or not data.get("test"):
        return None
    return Ledger().looks(data["identity"])


def _notes(
    groups: Sequence[Group], differences: Sequence[Difference], figures: Sequence[Figure], looks: Looks | None
) -> tuple[str, ...]:
    """Return what a reader must know."""
    notes = [note for group in groups for note in group.notes]
    single = [group.name for group in groups if len(group.runs) == 1]
    if groups[0].folds > 1:
        notes.append(FOLDS)
    elif len(groups) > 1 and single:
        notes.append(ONE_SEED if len(single) == len(groups) else SOME_SEEDS.format(" and ".join(single)))
    if len(differences) > 1:
        notes.append(f"p (Holm) is corrected for {plural(len(differences), 'comparison')}")
    notes += [FIGURES] if figures else []
    notes += [] if looks is None else looks.lines()
    return tuple(notes)
