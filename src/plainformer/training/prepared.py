"""Everything of a run that can be known before its model is there: rows, labels, examples, and the plan of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from plainformer.config.building import as_config
from plainformer.config.resolved import resolved
from plainformer.config.training import TrainConfig
from plainformer.data.store import Store
from plainformer.errors import UsageError, did_you_mean, opt
from plainformer.train.objectives import objective_class
from plainformer.train.objectives.base import Labels, Metric, Objective
from plainformer.train.plan import MicroBatch, Plan, evaluation_batches, make_plan
from plainformer.training.examples import Side, digest_of, side_of, store_of
from plainformer.training.models import Start, start_of

EVALUATIONS = 10  # in a run of one epoch


@dataclass
class Prepared:
    """A run that could begin.

    Attributes:
        config: with every default written out. start: what is trained, without its weights.
        labels: of the rows. examples, validation: encoded, None without validation rows.
        plan: which examples each step learns from. evaluation: the batches of an evaluation.
        metric: chooses the best checkpoint. evaluate_every, save_every: in steps.
        data: what identifies the data: a run only goes on with the same.
    """

    config: TrainConfig
    objective: Objective
    start: Start
    labels: Labels | None
    sides: dict[str, Side]
    examples: Store
    validation: Store | None
    plan: Plan
    evaluation: list[MicroBatch]
    metric: Metric
    evaluate_every: int
    save_every: int
    data: dict[str, Any] = field(default_factory=dict)


def prepare(config: Any) -> Prepared:
    """Read the rows, encode them and plan the steps of a run; nothing is written but the cache of tokenised data.

    Args:
        config: a `TrainConfig`, a mapping, or the path of a YAML file.
    Raises:
        UsageError, InputError, CheckpointError: with what is wrong and what to do.
    """
    config = resolved(as_config(config))
    kind = objective_class(config.objective)
    sides = _sides(config, kind)
    labels = kind.labels_of(config, sides["train"].mapped())
    start = start_of(config, kind, labels)
    objective = kind(config, start.config, start.processor)
    digest = digest_of(start.processor, start.files)
    stores = {name: store_of(side, config, objective, digest) for name, side in sides.items()}
    row_length = getattr(objective, "limit", None)
    plan = make_plan(
        stores["train"].lengths, config.batches, config.length, config.seed, packs=kind.packs, row_length=row_length
    )
    validation = stores.get("validation")
    evaluation = (
        []
        if validation is None
        else evaluation_batches(validation.lengths, config.evaluate.batch_size, plan.row_length)
    )
    every = config.evaluate.every or evaluation_steps(plan)
    return Prepared(
        *(config, objective, start, labels, sides, stores["train"], validation, plan, evaluation),
        metric=_metric(config, kind),
        evaluate_every=every,
        save_every=config.checkpoints.every or every,
        data={name: _facts(side, stores[name]) for name, side in sides.items()},
    )


def _sides(config: TrainConfig, kind: type[Objective]) -> dict[str, Side]:
    """Return the rows to learn from and those to choose by."""
    sides = {"train": side_of(config.data.train, config, kind.columns)}
    if config.data.validation is not None:
        sides["validation"] = side_of(config.data.validation, config, kind.columns)
    return sides


def evaluation_steps(plan: Plan) -> int:
    """Return the steps between evaluations where nothing is said: an epoch, or a tenth of a run that has less than two."""
    if plan.total_steps >= 2 * plan.steps_per_epoch:
        return plan.steps_per_epoch
    return max(1, -(-plan.total_steps // EVALUATIONS))


def _metric(config: TrainConfig, kind: type[Objective]) -> Metric:
    name = config.evaluate.metric
    if name is None:
        return kind.metrics[0]
    known = {metric.name: metric for metric in (*kind.metrics, Metric("loss", "lower"))}
    if name not in known:
        raise UsageError(
            f"{opt('evaluate.metric', name)} is not a metric of {config.objective}", did_you_mean(name, known)
        )
    return known[name]


def _facts(side: Side, store: Store) -> dict[str, Any]:
    """Return what identifies a side's rows and the examples that they became."""
    return {
        "rows_digest": side.rows.digest(),
        "rows": store.counts.rows,
        "examples": len(store),
        "tokens": int(store.lengths.sum()),
        "store": store.folder.name if not store.temporary else None,
        "columns": dict(side.columns.names),
        "counts": store.counts.to_dict(),
    }
