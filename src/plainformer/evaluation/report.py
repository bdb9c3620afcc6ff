"""What an evaluation gives: metrics with intervals, tables, counts; for people and for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plainformer.data.counts import Counts
from plainformer.errors import plural
from plainformer.evaluate.base import Metric, Numbers, Scorer, Table, plain_values, summary_metrics
from plainformer.evaluate.intervals import Interval, bootstrap
from plainformer.evaluate.kept import Kept
from plainformer.evaluate.ledger import LEVEL, Looks
from plainformer.evaluation.learnt import Learnt
from plainformer.evaluation.temperature import Calibration


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a checkpoint's answers to some rows.

    Attributes:
        folder: where every answer is kept (`evaluate.kept.Kept`). ref: what was evaluated. task, data: as people call them.
        n: rows that were answered. unit, units: what intervals are drawn over, and how many of them there are.
        level: of the intervals. metrics: the main one first. known: what each metric is.
        tables: of each label, of what was taken for what ... counts: what was left out or cut.
        looks: at the test set, where it is one. temperature: of probabilities, 1 where they are as the model gives them.
        stated: how answers are compared. noted: what the numbers do not show. learnt: rows that the model was trained on.
        calibration: what `calibrate` found. read: whether it was kept already.
    """

    folder: Path
    ref: str
    task: str
    data: str
    n: int
    unit: str
    units: int
    level: float
    metrics: Mapping[str, Interval]
    known: Mapping[str, Metric]
    tables: Sequence[Table]
    counts: Counts
    looks: Looks = field(default_factory=Looks)
    temperature: float = 1.0
    stated: str = ""
    noted: Sequence[str] = ()
    learnt: Learnt | None = None
    calibration: Calibration | None = None
    read: bool = False
    info: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> float:
        return self.metrics[name].value

    @property
    def main(self) -> str:
        """Return the name of the main metric."""
        return next(iter(self.metrics))

    def shown(self) -> list[tuple[str, Interval]]:
        """Return the metrics that people are shown: those of all answers, without repetitions."""
        values = {name: found.value for name, found in self.metrics.items()}
        return [(name, self.metrics[name]) for name in summary_metrics(values, tuple(self.known.values()))]

    def said(self, name: str) -> tuple[str, str]:
        """Return a metric and its interval for people."""
        found = self.metrics[name]
        if found.value != found.value:
            return "undefined", self.known[name].undefined if name in self.known else found.reason
        if found.low is None or found.high is None:
            return f"{found.value:.4g}", ""
        return f"{found.value:.4g}", f"{found.low:.4g} to {found.high:.4g}"

    def notes(self) -> list[str]:
        """Return what has to be known of the numbers: intervals, rows left out, looks at a test set, temperature."""
        reason = next((one.reason for one in self.metrics.values() if one.reason and one.low is None), "")
        found = [f"{plural(self.n, 'row')} of {self.data}"]
        over = f"{100 * self.level:.4g} % intervals by bootstrap over {plural(self.units, self.unit)}"
        found.append(over if any(one.low is not None for one in self.metrics.values()) else f"no intervals: {reason}")
        found += [self.stated] if self.stated else []
        found += self.noted
        if self.temperature != 1.0:
            found.append(f"probabilities at temperature {self.temperature:.4g}")
        found += self.counts.lines() + self.looks.lines()
        return found + ([] if self.learnt is None else [f"note: {self.learnt.line()}"])

    def lines(self) -> list[str]:
        """Return the evaluation as lines of text."""
        rows = [(name, *self.said(name)) for name, _ in self.shown()]
        width = max(len(name) for name, *_ in rows)
        return [*(f"{name:<{width}}  {value}  {interval}".rstrip() for name, value, interval in rows), *self.notes()]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        metrics = {
            name: {**value.to_dict(), "better": self.known[name].better if name in self.known else "higher"}
            for name, value in self.metrics.items()
        }
        found = {
            "folder": str(self.folder),
            "ref": self.ref,
            "task": self.task,
            "data": self.data,
            "n": self.n,
            "unit": self.unit,
            "units": self.units,
            "level": self.level,
            "main": self.main,
            "metrics": metrics,
            "tables": [table.to_dict() for table in self.tables],
            "counts": self.counts.to_dict(),
            "looks": self.looks.to_dict(),
            "temperature": self.temperature,
            "stated": self.stated,
            "notes": list(self.noted),
            "learnt": None if self.learnt is None else asdict(self.learnt),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "read": self.read,
        }
        return dict(plain_values(found))


def measured(scorer: Scorer, rows_NM: Numbers, units_N: Any, level: float = LEVEL) -> dict[str, Interval]:
    """Return the metrics of rows, in the scorer's order, with intervals over units."""
    found = bootstrap(rows_NM, scorer.measure, np.asarray(units_N), level=level)
    names = [metric.name for metric in scorer.metrics if metric.name in found]
    return {name: found[name] for name in [*names, *(name for name in found if name not in names)]}


def report_of(kept: Kept, looks: Looks, *, read: bool) -> Evaluation:
    """Return the report of a kept evaluation; intervals are drawn anew where the level is another by now."""
    info = kept.info
    stored = info.get("metrics") or {}
    if stored and abs(info["level"] - looks.level) < 1e-12:
        metrics = {
            name: Interval(
                *(np.nan if value["value"] is None else value["value"], value["low"], value["high"]),
                *(value["units"], value["reason"]),
            )
            for name, value in stored.items()
        }
    else:
        metrics = measured(kept.scorer, kept.rows, kept.units, looks.level)
    return Evaluation(
        folder=kept.folder,
        ref=info["checkpoint"]["ref"],
        task=info["task"],
        data=info["data"]["name"],
        n=info["n"],
        unit=info["unit"]["name"],
        units=info["unit"]["count"],
        level=looks.level,
        metrics=metrics,
        known={metric.name: metric for metric in kept.scorer.metrics},
        tables=kept.scorer.tables(kept.rows) if info["n"] else [],
        counts=Counts.from_dict(info["counts"]),
        looks=looks,
        temperature=info["temperature"],
        stated=info["stated"],
        noted=info.get("notes") or (),
        learnt=Learnt(**info["learnt"]) if info.get("learnt") else None,
        read=read,
        info=info,
    )
