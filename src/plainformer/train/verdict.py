"""Did a run overfit, and since when: a test on the losses that its evaluations gave for each example.

The lowest point of a noisy curve always looks better than what follows, so what chose it must not test it: of two halves of the
validation units, each tests the evaluation that the other found best. A rise counts from a margin on (`evaluate.margin`), since
evaluations vary a little without end; and it is overfitting only where the loss of rows of train went on falling.

    verdict("runs/sst2")        # of a run, or of a cross validation: one test over all folds
    print(_)                    # "overfitting since evaluation 3 ..."

Shapes: P evaluations, N units (groups or documents), G samples of a bootstrap, M columns.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.config.building import read_config
from plainformer.errors import CheckpointError, UsageError, plural
from plainformer.evaluate.gathered import fold_folders
from plainformer.evaluate.intervals import resampled
from plainformer.replacing import write_whole
from plainformer.train.example_losses import Losses, read_losses
from plainformer.train.kept_verdict import VERDICT
from plainformer.train.record import evaluations

log = logging.getLogger(__name__)
Numbers = npt.NDArray[np.float64]
RESAMPLES, LEVEL, FEWEST = 10_000, 0.05, 20
MOST_UNITS = 10_000  # of a bootstrap; more are joined
_AT_ONCE = 1 << 24  # numbers of a chunk of weights
_HUGE = 1e30  # stands for a loss that is not a number
_RAN_AWAY = 1e15  # a rise as a share: no loss that is a number rises so far


@dataclass(frozen=True)
class Curves:
    """The losses of one run, summed over the examples of each unit.

    Attributes:
        steps, epochs: of the evaluations, (P,).
        losses, labels: of validation, (P, N) and (N,). of_train: losses of the probe, likewise; None without one.
        metric: the one that chose the best checkpoint; None where it is not known.
    """

    steps: Sequence[int]
    epochs: Sequence[float]
    losses: Numbers
    labels: Numbers
    of_train: Numbers | None = None
    metric: ChosenMetric | None = None

    @property
    def means(self) -> Numbers:
        """Return the validation loss at each evaluation, (P,)."""
        return np.asarray(self.losses.sum(1) / self.labels.sum())


@dataclass(frozen=True)
class ChosenMetric:
    """The metric that chose the best checkpoint, at each evaluation: its value, how sure it is, and how far train's is from it.

    sign: 1 where higher is better, else -1.
    """

    name: str
    sign: int
    values: Sequence[float]
    intervals: Sequence[Sequence[float]]
    gaps: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """What became of a run's validation loss.

    Attributes:
        kind: "overfitting", "worse" (it rises, and that of train does not fall, or is not known), "still improving", "flat" or
            "not enough evidence".
        since: the evaluation where overfitting began (0 is the one before step 1), its step and epoch; {} of other kinds.
        best: of the validation loss: evaluation, step, epoch, loss. last: likewise.
        p: of the rise being no more than the margin; None where no test was made. margin: that share.
        rise: from the best evaluation to the last, as a share, where neither chose itself; interval: of it, 95 %.
        n: units that were tested. generalisation_loss: Prechelt's GL (1998), per cent.
        metric: the one that chose the best checkpoint: name, value at the best evaluation and at the last, whether it fell
            below the interval that it had (None of the loss itself), and train's value less validation's at the best: value
            and interval. {} without a probe.
        folds: the verdicts of a cross validation's folds.
    """

    kind: str
    n: int
    best: dict[str, Any]
    last: dict[str, Any]
    margin: float
    since: dict[str, Any] = field(default_factory=dict)
    p: float | None = None
    rise: float | None = None
    interval: tuple[float, float] | None = None
    generalisation_loss: float = 0.0
    metric: dict[str, Any] = field(default_factory=dict)
    folds: tuple[Verdict, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        folds = [fold.to_dict() for fold in self.folds]
        return {"verdict": self.kind, "sentence": str(self), **asdict(self), "folds": folds}

    def __str__(self) -> str:
        ran_away = self.rise is not None and self.rise > _RAN_AWAY
        said = (_SENTENCE_OF_NONE if ran_away else _SENTENCES[self.kind]).format(
            rise=0.0 if self.rise is None else self.rise,
            **{f"since_{name}": value for name, value in {**_NOWHERE, **self.since}.items()},
            **{f"best_{name}": value for name, value in {**_NOWHERE, **self.best}.items()},
            margin=self.margin,
        )
        if self.folds:
            said = self._of_folds() + said
        evidence = "" if self.p is None else f", p = {self.p:.2g}"
        if self.interval is not None and not ran_away:
            low, high = self.interval
            evidence = f", 95 % interval {low:+.1%} to {high:+.1%}{evidence}"
        return f"{said} (n = {self.n:,}{evidence}){self._of_metric()}"

    def _of_folds(self) -> str:
        found = [fold.since["evaluation"] for fold in self.folds if fold.kind == "overfitting"]
        median = f", median e* = {np.median(found):g}" if found else ""
        return f"{len(found)} of {plural(len(self.folds), 'fold')} overfit{median}; all together: "

    def _of_metric(self) -> str:
        if self.kind not in ("overfitting", "worse") or self.metric.get("fell", True) is not False:
            return ""
        name = self.metric["name"].replace("_", " ")
        return (
            f"; {name} did not fall with it ({self.metric['best']:.4g}, now {self.metric['last']:.4g}): over-confident"
        )


_SENTENCE_OF_NONE = (
    "worse since evaluation {best_evaluation} (step {best_step:,}): validation loss is no longer a finite number"
)
_NOWHERE = {"evaluation": 0, "step": 0, "epoch": 0.0}
_BEST = "evaluation {best_evaluation} (step {best_step:,})"
_SENTENCES = {
    "overfitting": "overfitting since evaluation {since_evaluation} (step {since_step:,}, epoch {since_epoch:.3g}): validation "
    "loss {rise:+.1%} from its best, while that of train falls",
    "worse": f"worse since {_BEST}: validation loss {{rise:+.1%}}; that of train does not fall, or is not known",
    "still improving": "still improving: the last evaluation has the lowest validation loss",
    "flat": f"flat: since {_BEST} validation loss has changed by less than {{margin:.0%}}",
    "not enough evidence": "not enough evidence",
}


def verdict(folder: str | Path) -> Verdict:
    """Return the verdict on a run, or on the folds of a cross validation.

    Args:
        folder: of the run.
    Raises:
        UsageError: it is not the folder of a run. CheckpointError: it has no evaluations, or their losses are not there.
    """
    path = Path(folder)
    folds = [fold for fold in fold_folders(path) if (fold / "config.yaml").is_file()]
    if not folds and not (path / "config.yaml").is_file():
        raise UsageError(
            f"{str(path)!r} is not the folder of a run", "give the folder that `plainformer train` wrote into"
        )
    runs = folds or [path]
    curves = [curves_of(run) for run in runs]
    margin = read_config(runs[0] / "config.yaml").evaluate.margin
    if not folds:
        return judge(curves, margin)
    return judge(curves, margin, tuple(judge([one], margin) for one in curves))


def conclude(folder: Path) -> None:
    """Write RUN/verdict.json, where evaluations left what it needs."""
    try:
        found = verdict(folder)
    except CheckpointError as error:  # a run without validation rows, or one that an earlier version began
        log.info("no verdict: %s", error)
        return
    write_whole(folder / VERDICT, json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")


def curves_of(folder: Path) -> Curves:
    """Return what the evaluations of a run gave. Raises CheckpointError."""
    lines = evaluations(folder)
    if not lines:
        raise CheckpointError(f"{folder} has no evaluation", "is it the folder of a run with validation rows?")
    sides = read_losses(folder, [line["step"] for line in lines])
    losses, labels = _by_unit(sides["validation"])
    probe = sides.get("probe")
    of_train = None if probe is None else _by_unit(probe)[0]
    steps, epochs = [line["step"] for line in lines], [line["epoch"] for line in lines]
    return Curves(steps, epochs, losses, labels, of_train, _metric(lines))


def _metric(lines: Sequence[dict[str, Any]]) -> ChosenMetric | None:
    """Return what the chosen metric was at each evaluation; None without a probe."""
    gaps = [line["gap"] for line in lines if "gap" in line]
    if len(gaps) < len(lines):
        return None
    name = gaps[0]["metric"]
    values = [float(line["validation"][name]) for line in lines]
    return ChosenMetric(
        name, 1 if gaps[0]["better"] == "higher" else -1, values, [line["interval"] for line in lines], gaps
    )


def _by_unit(found: Losses) -> tuple[Numbers, Numbers]:
    """Return sums of losses, (P, N), and of labels, (N,)."""
    count = int(found.units.max()) + 1
    losses = np.nan_to_num(found.losses, nan=_HUGE, posinf=_HUGE) * found.labels
    summed: list[Numbers] = [np.bincount(found.units, one, count).astype(np.float64) for one in losses]
    return np.stack(summed), np.bincount(found.units, found.labels, count).astype(np.float64)


def judge(
    runs: Sequence[Curves], margin: float = 0.05, folds: tuple[Verdict, ...] = (), resamples: int = RESAMPLES
) -> Verdict:
    """Return the verdict on a run, or one over the units of several, each of which held out others.

    Args:
        folds: the verdicts on each of several. resamples: samples of a bootstrap.
    """
    parts = [_halves(run) for run in runs]
    halves = [
        [np.concatenate([found[half][i] for found, _ in parts]) for i in (0, 1)] for half in (0, 1)
    ]  # of all runs: rises, losses before
    rises_N, before_N = (np.concatenate([half[i] for half in halves]) for i in (0, 1))
    n = len(rises_N)
    best = [int(run.means.argmin()) for run in runs]
    last = [len(run.steps) - 1 for run in runs]
    at_best, at_last = (sum(r.losses[e].sum() for r, e in zip(runs, at, strict=True)) for at in (best, last))
    found: dict[str, Any] = {
        "n": n,
        "best": _place(runs, best),
        "last": _place(runs, last),
        "margin": margin,
        "generalisation_loss": 100 * (float(at_last) / max(float(at_best), 1 / _HUGE) - 1),
        "metric": _of_metric(runs, best),
        "folds": folds,
    }
    if n < FEWEST or min(last) < 1:
        return Verdict("not enough evidence", **found)
    if np.mean([improving for _, improving in parts]) > 0.5:
        return Verdict("still improving", **found)
    samples_G2 = bootstrap(np.stack((rises_N, before_N), 1), resamples)
    low, high = np.quantile(samples_G2[:, 0] / samples_G2[:, 1], [LEVEL / 2, 1 - LEVEL / 2])
    found |= {"rise": float(rises_N.sum() / before_N.sum()), "interval": (float(low), float(high))}
    if all(rises.sum() > margin * before.sum() for rises, before in halves):
        found["p"] = _p_of_rise(halves, margin, resamples)
    if found.get("p", 1.0) < LEVEL:
        if not _train_falls(runs, best, resamples):
            return Verdict("worse", **found)
        since = _since(folds) or _place(runs, [min(at + 1, end) for at, end in zip(best, last, strict=True)])
        return Verdict("overfitting", since=since, **found)
    return Verdict("flat" if -margin < low and high < margin else "not enough evidence", **found)


def _halves(run: Curves) -> tuple[list[tuple[Numbers, Numbers]], bool]:
    """Return, of each half, how much the units' losses rose since the other half's best evaluation, and what they were then.

    And whether both halves found the last evaluation best. Units are in the order of their keys, which are hashes: every
    other one is a random half.
    """
    halves = [slice(0, None, 2), slice(1, None, 2)]
    chosen = [int(run.losses[:, half].sum(1).argmin()) for half in halves]
    tested = [
        (run.losses[-1, half] - run.losses[best, half], run.losses[best, half])
        for half, best in zip(halves, reversed(chosen), strict=True)
    ]
    return tested, min(chosen) == len(run.steps) - 1


def _p_of_rise(halves: Sequence[Sequence[Numbers]], margin: float, resamples: int) -> float:
    """Return how likely so high a rise is where there is none above the margin: twice the smaller of the halves' one-sided p."""
    found = []
    for seed, (rises_N, before_N) in enumerate(halves, start=1):
        above_G = bootstrap((rises_N - margin * before_N)[:, None], resamples, seed)[:, 0]
        found.append((1 + int((above_G <= 0).sum())) / (1 + resamples))
    return min(1.0, 2 * min(found))


def _train_falls(runs: Sequence[Curves], best: Sequence[int], resamples: int) -> bool:
    """Return whether the loss of the probe fell from the best evaluation to the last, one-sided."""
    falls = [
        run.of_train[at] - run.of_train[-1] for run, at in zip(runs, best, strict=True) if run.of_train is not None
    ]
    if len(falls) < len(runs):
        return False
    samples_G = bootstrap(np.concatenate(falls)[:, None], resamples, seed=3)[:, 0]
    return float((samples_G <= 0).mean()) < LEVEL


def bootstrap(columns_NM: Numbers, resamples: int = RESAMPLES, seed: int = 0) -> Numbers:
    """Return the sums of M columns over samples of units, drawn with replacement, (G, M); the same for the same seed.

    More units than `MOST_UNITS` are first joined to that many, at random since they are in the order of hashes: the sum of
    samples of these varies as much.
    """
    units = len(columns_NM)
    if units > MOST_UNITS:
        joined = np.zeros((MOST_UNITS, columns_NM.shape[1]))
        np.add.at(joined, np.arange(units) % MOST_UNITS, columns_NM)
        columns_NM, units = joined, MOST_UNITS
    draws, size = resampled(units, resamples, seed), max(1, _AT_ONCE // units)
    parts = []
    while times := list(islice(draws, size)):
        parts.append(np.array(times, np.float64) @ columns_NM)
    return np.concatenate(parts)


def _place(runs: Sequence[Curves], at: Sequence[int]) -> dict[str, Any]:
    """Return which evaluation that is, the median of several: 0 is the one before step 1."""
    pairs = list(zip(runs, at, strict=True))
    return {
        "evaluation": _median([e + (run.steps[0] > 0) for run, e in pairs]),
        "step": _median([run.steps[e] for run, e in pairs]),
        "epoch": _median([run.epochs[e] for run, e in pairs]),
        "loss": _median([run.means[e] for run, e in pairs]),
    }


def _median(values: Sequence[float]) -> float:
    found = float(np.median(values))
    return int(found) if found.is_integer() and isinstance(values[0], int) else found


def _since(folds: Sequence[Verdict]) -> dict[str, Any]:
    """Return where the folds that overfit begin to, as medians; where all do together, but none alone: {}."""
    begun = [fold.since for fold in folds if fold.since]
    return {name: _median([one[name] for one in begun]) for name in begun[0]} if begun else {}


def _of_metric(runs: Sequence[Curves], best: Sequence[int]) -> dict[str, Any]:
    """Return what became of the chosen metric; of several runs the means, and whether it fell in most."""
    found = [(run.metric, at) for run, at in zip(runs, best, strict=True) if run.metric is not None]
    if len(found) < len(runs):
        return {}
    name, fell = found[0][0].name, []
    for metric, at in found:
        worst = metric.intervals[at][0 if metric.sign > 0 else 1]
        fell.append(metric.sign * metric.values[-1] < metric.sign * worst)
    return {
        "name": name,
        "best": float(np.mean([metric.values[at] for metric, at in found])),
        "last": float(np.mean([metric.values[-1] for metric, _ in found])),
        "fell": None if name == "loss" else bool(np.mean(fell) > 0.5),
        **({"gap": found[0][0].gaps[best[0]]} if len(runs) == 1 else {}),
    }
