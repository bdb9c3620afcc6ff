"""What came of a cross validation: for programs (folds.json, --json), and for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any

from plainformer.errors import plural
from plainformer.evaluate.base import plain_values
from plainformer.folds.choice import Tried
from plainformer.folds.planned import named
from plainformer.folds.pooled import Pooled

SEEN = (
    "the rows of each fold helped to choose these values in the other folds: the pooled figures are a little too good"
)


@dataclass(frozen=True)
class FoldResult:
    """One fold's run.

    Attributes:
        fold: its number, from 1. run: its folder, seen from that of the series. ended, step, total_steps: see `TrainResult`.
        best: step, metric, value and interval of the best evaluation on validation rows.
        evaluation: where the answers to the rows that were held out are kept; None before.
        overfitting: the verdict on this run; None where none was reached.
    """

    fold: int
    run: str
    ended: str
    step: int
    total_steps: int
    best: Mapping[str, Any] | None
    evaluation: str | None = None
    overfitting: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Choice:
    """What a search chose.

    Attributes:
        metric, better: what was compared. tried: all candidates, of which one is chosen.
    """

    metric: str
    better: str
    tried: tuple[Tried, ...]

    @property
    def values(self) -> dict[str, Any]:
        """Return the values that were chosen."""
        return next(one.values for one in self.tried if one.chosen)

    def lines(self) -> list[str]:
        """Return the table of candidates."""
        said = [
            f"search by {self.metric} on validation rows ({self.better} is better): mean over folds ± standard error"
        ]
        for one in self.tried:
            mark = "  chosen" if one.chosen else ""
            said.append(f"  {named(one.values)}: {_number(one.mean)} ± {_number(one.error)}{mark}")
        said.append(
            "  chosen: the simplest (the smallest number, else what is listed first) within one standard error of the best"
        )
        return said


@dataclass(frozen=True)
class Nested:
    """An estimate that the choice has not touched: in each outer fold, all was done again without its rows.

    Attributes:
        choices: what each outer fold's search chose. pooled: metrics of the outer folds' rows.
    """

    choices: tuple[Mapping[str, Any], ...]
    pooled: Pooled


@dataclass(frozen=True)
class FoldsResult:
    """How a cross validation ended.

    Attributes:
        folder: of all runs; `load` gives the models of all folds as one. ended: "done", or "stopped": the same call goes on.
        count, vote: how many folds, and how their models answer together. folds: each one's run.
        pooled: metrics of all rows, each answered by the model that it was held out of. choice: of a search.
        nested: the estimate of `outer`. overfitting: over all folds.
    """

    folder: Path
    ended: str
    count: int
    vote: str
    folds: tuple[FoldResult, ...] = ()
    pooled: Pooled | None = None
    choice: Choice | None = None
    nested: Nested | None = None
    overfitting: Mapping[str, Any] | None = None
    advice: Sequence[str] = field(default_factory=tuple)

    @property
    def best_step(self) -> int | None:
        """Return the median of the folds' best steps; None without them."""
        steps = [fold.best["step"] for fold in self.folds if fold.best is not None]
        return median_low(steps) if steps else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        found: dict[str, Any] = {
            "ended": self.ended,
            "count": self.count,
            "vote": self.vote,
            "folds": [asdict(fold) for fold in self.folds],
            "pooled": None if self.pooled is None else self.pooled.to_dict(),
            "best_step": self.best_step,
            "overfitting": self.overfitting,
        }
        if self.choice is not None:
            tried = [asdict(one) for one in self.choice.tried]
            rule = "the simplest within one standard error of the best, on validation rows"
            found["search"] = {"metric": self.choice.metric, "better": self.choice.better, "rule": rule, "tried": tried}
            found["search"]["chosen"] = self.choice.values
            found["search"]["pooled_has_seen_the_choice"] = True
        if self.nested is not None:
            choices = [dict(values) for values in self.nested.choices]
            found["nested"] = {"chosen": choices, "pooled": self.nested.pooled.to_dict()}
        return dict(plain_values(found))

    def lines(self) -> list[str]:
        """Return it for people."""
        said = [] if self.choice is None else self.choice.lines()
        pooled = self.pooled
        for place, fold in enumerate(self.folds):
            said.append(_fold_line(fold, pooled, place, self.count))
        if pooled is not None:
            said += _pooled_lines(
                pooled, f"all {plural(self.count, 'fold')}, each answered by a model that had not seen it"
            )
        if self.choice is not None and self.nested is None:
            said.append(f"  {SEEN}; folds.outer gives an estimate that the choice has not touched")
        if self.nested is not None:
            chosen = "; ".join(map(named, self.nested.choices))
            said += _pooled_lines(
                self.nested.pooled, "nested: the search made anew without the rows of each outer fold"
            )
            said.append(f"  chosen there: {chosen}")
        if self.overfitting is not None:
            said.append(str(self.overfitting["sentence"]))
        return said + list(self.advice)


def _fold_line(fold: FoldResult, pooled: Pooled | None, place: int, count: int) -> str:
    said = [f"fold {fold.fold} of {count}:"]
    if fold.best is not None:
        name = fold.best["metric"]
        said.append(f"validation {name} {_number(fold.best['value'])} (best, step {fold.best['step']:,}),")
    if pooled is not None:
        said.append(f"held out {pooled.main} {_number(pooled.folds[place].get(pooled.main, math.nan))}")
    return " ".join(said).rstrip(",")


def _pooled_lines(pooled: Pooled, said: str) -> list[str]:
    rows = [("metric", "value", "95 % interval", "mean of folds ± deviation")]
    for name in pooled.shown:
        value = pooled.metrics[name]
        bounds = "" if value.low is None or value.high is None else f"{value.low:.3g} to {value.high:.3g}"
        spread = f"{_number(pooled.mean[name])} ± {_number(pooled.deviation[name])}"
        undefined = sum(not math.isfinite(fold.get(name, math.nan)) for fold in pooled.folds)
        if undefined:
            spread = f"undefined in {plural(undefined, 'fold')}"
        rows.append((name, _number(value.value), bounds, spread))
    wide = [max(len(row[place]) for row in rows) for place in range(4)]
    lines = [f"{said}: {plural(pooled.n, 'row')}"]
    lines += [
        "  " + "   ".join(f"{cell:<{size}}" for cell, size in zip(row, wide, strict=True)).rstrip() for row in rows
    ]
    main = pooled.metrics[pooled.main]
    if main.low is None and main.reason:
        lines.append(f"  no interval: {main.reason}")
    elif pooled.units != pooled.n:
        lines.append(f"  intervals over {pooled.units:,} units: {pooled.unit}")
    return lines


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "undefined"
