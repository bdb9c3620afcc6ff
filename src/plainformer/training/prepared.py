"""Everything of a run that can be known before its model is there: rows, labels, examples, and the plan of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from plainformer.config.building import as_config, dotted_options
from plainformer.config.layout import Layout
from plainformer.config.parallel import processes
from plainformer.config.resolved import resolved
from plainformer.config.training import TrainConfig
from plainformer.data.rows import DataRow
from plainformer.data.sides import Side, Sides, sides_of
from plainformer.data.store import Store
from plainformer.errors import UsageError, did_you_mean, opt
from plainformer.train.objectives import objective_class
from plainformer.train.objectives.base import Labels, Metric, Objective
from plainformer.train.plan import MicroBatch, Plan, evaluation_batches, make_plan
from plainformer.train.schedule import check_schedule
from plainformer.train.trimming import check_trimming
from plainformer.training.examples import digest_of, stores_of
from plainformer.training.models import Start, start_of
from plainformer.training.scaling import scaled, unscaled
from plainformer.training.teacher import check_taught

EVALUATIONS = 10  # in a run of one epoch
SAVED_APART = 100  # steps between checkpoints at least, unless an evaluation was the best


@dataclass
class Prepared:
    """A run that could begin.

    Attributes:
        config: with every default written out. start: what is trained, without its weights.
        rows: of all sides, as they are read.
        examples, validation: encoded; None without validation rows.
        layout: of the processes. plan: which examples each step learns from. evaluation: the batches of an evaluation.
        probe: as many rows of train, which evaluations score as well; [] where that is not asked for.
        metric: chooses the best checkpoint. evaluate_every, save_every: in steps.
        data: what identifies the data: a run only goes on with the same.
    """

    config: TrainConfig
    objective: Objective
    start: Start
    rows: Sides
    examples: Store
    validation: Store | None
    plan: Plan
    evaluation: list[MicroBatch]
    metric: Metric
    evaluate_every: int
    save_every: int
    layout: Layout = field(default_factory=Layout)
    probe: list[MicroBatch] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def sides(self) -> dict[str, Side]:
        """Return the rows of each side by its name."""
        return self.rows.sides


def prepare(config: Any) -> Prepared:
    """Read the rows, encode them and plan the steps of a run; nothing is written but the cache of tokenised data.

    Args:
        config: a `TrainConfig`, a mapping, or the path of a YAML file.
    Raises:
        UsageError, InputError, CheckpointError: with what is wrong and what to do.
    """
    config = resolved(as_config(config))
    if config.folds is not None:
        what = f"{opt('folds')} asks for {config.folds.count} runs, and this is one"
        raise UsageError(what, "`plainformer.cross_validate`, or `plainformer train`, makes all of them")
    with dotted_options():
        return _prepared(config)


def _prepared(config: TrainConfig) -> Prepared:
    kind = objective_class(config.objective)
    rows = sides_of(config.data, kind.columns)
    labels = labels_in(kind, config, rows.sides["train"])
    start = unscaled(config, start_of(config, kind, labels))
    layout = config.parallel.planned(processes())
    layout.check(start.config)
    objective = kind(config, start.config, start.processor)
    check_taught(objective, start.config)
    digest = digest_of(start.processor, start.files)
    stores = stores_of(rows, config, objective, digest)
    examples, validation = stores["train"], stores.get("validation")
    start = scaled(config, start, examples)
    objective = kind(config, start.config, start.processor)
    plan = make_plan(
        *(examples.lengths, config.batches, config.length, config.seed),
        packs=kind.packs,
        row_length=objective.limit,
        shares=layout.dp * len(config.parallel.on(config.device)),
    )
    check_schedule(config.schedule, plan.total_steps)
    check_trimming(config.loss, plan)
    size = config.evaluate.batch_size
    every = config.evaluate.every or evaluation_steps(plan)
    evaluation = [] if validation is None else evaluation_batches(validation.lengths, size, plan.row_length)
    probe: list[MicroBatch] = []
    if evaluation and config.evaluate.probe:
        most = sum(map(len, evaluation))
        probe = evaluation_batches(examples.lengths, size, plan.row_length, most=most, seed=config.seed)
    return Prepared(
        *(config, objective, start, rows, examples, validation, plan),
        evaluation=evaluation,
        probe=probe,
        layout=layout,
        metric=_metric(config, objective),
        evaluate_every=every,
        save_every=config.checkpoints.every or max(every, min(SAVED_APART, plan.total_steps)),
        data=_identity(rows, stores, digest),
    )


def labels_in(kind: type[Objective], config: TrainConfig, side: Side) -> Labels | None:
    """Return the labels that the rows have; an error in one of them names its place."""
    place = ""

    def told() -> Iterator[DataRow]:
        nonlocal place
        for row in side.mapped():
            place = row.place
            yield row
        place = ""

    try:
        return kind.labels_of(config, told())
    except UsageError as error:
        raise (error.within(place) if place else error) from error.__cause__


def evaluation_steps(plan: Plan) -> int:
    """Return the steps between evaluations where nothing is said: an epoch, or a tenth of a run that has less than two."""
    if plan.total_steps >= 2 * plan.steps_per_epoch:
        return plan.steps_per_epoch
    return max(1, -(-plan.total_steps // EVALUATIONS))


def _metric(config: TrainConfig, objective: Objective) -> Metric:
    """Return what chooses the best checkpoint; which metrics there are can depend on the labels."""
    name = config.evaluate.metric
    if name is None:
        return objective.metrics[0]
    known = {metric.name: metric for metric in (*objective.metrics, Metric("loss", "lower"))}
    if name not in known:
        raise UsageError(
            f"{opt('evaluate.metric', name)} is not a metric of {config.objective}", did_you_mean(name, known)
        )
    return known[name]


def _identity(rows: Sides, stores: dict[str, Store], processor: str) -> dict[str, Any]:
    """Return what identifies the data, and what became of it: a run only goes on with the same."""
    sides = {
        name: {
            "path": str(side.rows.files[0].parent) if len(side.rows.files) > 1 else str(*side.rows.files),
            "rows": side.digest(),
            "examples": len(stores[name]) if name in stores else None,
            "tokens": int(stores[name].lengths.sum()) if name in stores else None,
            "counts": stores[name].counts.to_dict() if name in stores else None,
        }
        for name, side in rows.sides.items()
    }
    return {"sides": sides, "processor": processor, "split": rows.record()}
