"""One evaluation: validation rows, and the probe, rows of train that are scored in the same way.

Shapes: N examples, M numbers that a metric is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch

from plainformer.train.example_losses import Numbers, Scored
from plainformer.train.feeder import Feeder
from plainformer.train.idle import idle
from plainformer.train.interval import bounds_of, resampled
from plainformer.train.run import Run


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave.

    Attributes:
        values: metrics of the validation rows. interval: of the metric that chooses, by a bootstrap over units.
        of_probe: "probe", its metrics, and "gap": how far its chosen metric is from that of validation, with an interval;
            {} without a probe.
        rows: name → the side and its sums for each example, (N, M).
    """

    values: dict[str, float]
    interval: list[float]
    of_probe: dict[str, Any] = field(default_factory=dict)
    rows: Mapping[str, tuple[Scored, Numbers]] = field(default_factory=dict)


def evaluate(run: Run) -> Evaluation | None:
    """Score all validation rows, and those of the probe; None if asked to stop. Metrics do not depend on how rows are batched."""
    run.finite.check(run.folder, run.plan.step)
    rows: dict[str, tuple[Scored, Numbers]] = {}
    run.model.eval()
    try:
        with torch.no_grad(), run.weights, run.autocast():
            for side in run.scored:
                found = _scored(run, side)
                if found is None:
                    return None
                rows[side.name] = side, found
    finally:
        run.model.train()
    metric, measured = run.metric.name, run.objective.measured
    samples = {
        name: resampled(side.by_unit(found), measured, metric, seed)
        for seed, (name, (side, found)) in enumerate(rows.items())
    }
    values = {name: measured(found.sum(0)) for name, (_, found) in rows.items()}
    of_probe: dict[str, Any] = {}
    if "probe" in rows:
        gap = values["probe"][metric] - values["validation"][metric]
        bounds = list(bounds_of(samples["probe"] - samples["validation"]))
        chosen = {"metric": metric, "better": run.metric.better}
        of_probe = {"probe": values["probe"], "gap": {**chosen, "value": gap, "interval": bounds}}
    return Evaluation(values["validation"], list(bounds_of(samples["validation"])), of_probe, rows)


def _scored(run: Run, side: Scored) -> Numbers | None:
    """Return the sums for each example of a side, (N, M); None if asked to stop. Processes share the batches."""
    mine = run.ranks.dealt(side.count)
    found: list[tuple[int, Numbers, tuple[int, ...]]] = []
    with Feeder(lambda place: side.batches(mine[place].micro), 0, len(mine)) as feeder:
        for turn, batch in zip(mine, feeder, strict=True):
            if run.stop():
                return None
            batch, lacking = run.here(batch), run.gradients.lacking(batch.passes)
            sums = run.objective.statistics(run.model, batch)
            idle(run.model, batch, lacking)
            if turn.counts:
                found.append((turn.micro, sums, batch.examples))
    every = sorted((one for told in run.ranks.gathered(found) for one in told), key=lambda one: one[0])
    return side.by_example(
        np.concatenate([sums for _, sums, _ in every]), chain(*(examples for _, _, examples in every))
    )
