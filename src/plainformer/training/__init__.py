"""`train`: from a configuration to a run folder. It sees all parts of the library, as `loading` does.

prepare (rows → examples → plan) → model and optimizer, new or as they were saved → the loop → the run folder
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from plainformer.config.building import as_config, dotted_options
from plainformer.config.resolved import resolved
from plainformer.config.training import OptimizerConfig, TrainConfig
from plainformer.errors import NO_SPACE, TrainingError, opt
from plainformer.inputs.files import make_folder
from plainformer.model.transformer import Transformer
from plainformer.parallel.data import Replicas
from plainformer.parallel.mesh import Mesh
from plainformer.parallel.pipeline import Pipeline
from plainformer.parallel.sync import Ranks
from plainformer.train.checkpoint import Checkpoints, Saved, Written
from plainformer.train.example_losses import LossFiles
from plainformer.train.feeder import collated
from plainformer.train.kept_verdict import kept_verdict
from plainformer.train.loop import train_steps
from plainformer.train.objectives.base import Batch
from plainformer.train.optimizer import Average, make_optimizer, shrinks
from plainformer.train.pipelined import Pipelined
from plainformer.train.plan import Step
from plainformer.train.record import NoRecord
from plainformer.train.run import Run, State
from plainformer.train.schedule import factor
from plainformer.train.trimming import Trimming
from plainformer.train.verdict import conclude
from plainformer.training.card import card_of, tell_best
from plainformer.training.events import Event, Events, Told
from plainformer.training.example_table import history_of, write_examples
from plainformer.training.folder import RunFolder, cannot_write
from plainformer.training.going import Going
from plainformer.training.lock import alone_in
from plainformer.training.machine import machine, until_interrupted
from plainformer.training.models import divided_model
from plainformer.training.prepared import Prepared, prepare
from plainformer.training.scored import scored
from plainformer.training.teacher import taught
from plainformer.training.together import together

_LOCK_SECONDS = 60.0  # that the processes before a restart may take to end

__all__ = ["Event", "Prepared", "TrainResult", "prepare", "train"]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        folder: of the run; `folder/best` and `folder/last` are checkpoints that `load` reads.
        ended: "done", "early" (no progress), or "stopped": the same call goes on with it.
        step, total_steps: steps done, and of the whole run.
        best: step, metric, value and 95 % interval of the best evaluation; None without validation rows.
        verdict: on overfitting, at the end, as `Verdict.to_dict` gives it; None before, and without validation rows.
        evaluated: what `evaluate` calls the metric of `best`, where that is another name.
    """

    folder: Path
    ended: str
    step: int
    total_steps: int
    best: dict[str, Any] | None
    verdict: dict[str, Any] | None = None
    evaluated: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {**asdict(self), "folder": str(self.folder)}


def train(
    config: Any, *, on_event: Callable[[Event], None] | None = None, stop: Callable[[], bool] | None = None
) -> TrainResult:
    """Train a model as a configuration says, or go on with a run that was stopped: the folder tells.

    A run that goes on gives the same bytes as one that was never stopped: weights and `metrics.jsonl`, on the same kind of
    processor with the same threads and torch. Ctrl-C ends it after the current step, with a checkpoint.

    Args:
        config: a `TrainConfig`, a mapping, or the path of a YAML file.
        on_event: is told of all that happens; see `Event`. Of several processes the first alone is, but all of "started".
        stop: is asked after each step whether to stop; None: Ctrl-C stops. Any process may ask all of them to.
    Raises:
        UsageError: the configuration cannot work, or is not that of the run in its folder.
        TrainingError: the loss is not finite, the disk is full; the last checkpoint is good.
    """
    config = resolved(as_config(config))
    with dotted_options(), machine(config), until_interrupted() if stop is None else nullcontext(stop) as stopping:
        try:
            with together(config) as mesh:
                ranks = Ranks(mesh)
                prepared = _prepared_in_turn(config, ranks)
                seconds = _LOCK_SECONDS if ranks.mesh is not None else 0.0
                with alone_in(make_folder(config.folder), seconds) if ranks.is_first else nullcontext():
                    return _train(prepared, Events(on_event, ranks.is_first), stopping, mesh)
        except torch.OutOfMemoryError as error:
            what = f"{config.device} has too little memory for this run: {str(error).partition('. ')[0]}"
            smaller = f"give a smaller {opt('batches.micro')}, or {opt('model.checkpointing', 'all')}"
            raise TrainingError(what, f"{smaller}; the result is the same") from None
        except OSError as error:
            if error.errno in NO_SPACE:
                raise cannot_write(Path(config.folder), error) from error
            raise


def _prepared_in_turn(config: TrainConfig, ranks: Ranks) -> Prepared:
    """Prepare a run; of several processes the first goes first, and the others find what it has tokenised."""
    found: list[Prepared] = []
    ranks.alone(lambda: found.append(prepare(config)))
    return found[0] if found else prepare(config)


def _train(prepared: Prepared, events: Events, stop: Callable[[], bool], mesh: Mesh) -> TrainResult:
    config, folder, ranks = prepared.config, RunFolder(Path(prepared.config.folder)), Ranks(mesh)
    checkpoints = Checkpoints(folder.path, config.checkpoints.keep, team=ranks.team)
    if ranks.first(bool(checkpoints.steps())):
        ranks.alone(lambda: folder.check(config, prepared.data))
    saved, passed_over = checkpoints.newest()
    for sentence in passed_over:
        events.say(sentence)
    if passed_over and saved is None:
        events.say("no checkpoint is whole: the run begins anew")
    state = State()
    if saved is None:
        ranks.alone(lambda: _begin(prepared, folder, events))
    else:
        state = State(**{f.name: saved.state[f.name] for f in fields(State)})
        changed = ranks.alone(lambda: folder.go_on(config, state.step))
        if changed:
            events.say("the run continues, no longer bit for bit: " + "; ".join(changed))
    if state.ended not in ("done", "early"):
        state.ended = ""
        run = make_run(prepared, folder.path, checkpoints, saved, events, stop, mesh)
        events.started(state, prepared.plan.total_steps)
        try:
            train_steps(run, state)
        finally:
            run.record.close()
            if run.trimming is not None:
                run.trimming.close()
    if state.ended in ("done", "early") and ranks.is_first:
        tell_best(folder.path)
    result = TrainResult(
        *(folder.path, state.ended, state.step, prepared.plan.total_steps, state.best),
        verdict=ranks.alone(lambda: kept_verdict(folder.path)),
        evaluated=prepared.metric.evaluated,
    )
    events.ended(result.to_dict())
    return result


def _begin(prepared: Prepared, folder: RunFolder, events: Events) -> None:
    """Write what a new run is."""
    folder.begin(prepared.config, prepared.data)
    prepared.plan.save(folder.path)
    for name, store in (("train", prepared.examples), ("validation", prepared.validation)):
        for line in [] if store is None else store.counts.lines():
            events.say(f"{name}: {line}")


def make_run(
    prepared: Prepared,
    folder: Path,
    checkpoints: Checkpoints,
    saved: Saved | None,
    events: Events,
    stop: Callable[[], bool],
    mesh: Mesh,
) -> Run:
    """Put together what the loop works with, new or as it was saved."""
    ranks = Ranks(mesh)
    config, plan, objective, start = prepared.config, prepared.plan, prepared.objective, prepared.start
    model, new, gradients = divided_model(config, start, type(objective), saved.path if saved else None, mesh)
    devices = config.parallel.on(config.device)
    replicas = Replicas(model, devices) if len(devices) > 1 else None
    if new:
        events.say(f"newly initialised: {', '.join(new)}")
    peak = config.optimizer.learning_rate
    assert peak is not None  # `resolved` has written it out
    optimizer = make_optimizer(model, config.optimizer, peak, keeps=gradients.keeps)
    average = _average(config.optimizer, model)
    going = Going(model, optimizer, average, history_of(prepared), ranks.team)
    if saved is not None:
        going.load(saved)

    def save_model(path: Path, state: State) -> Written:
        written = start.save(model, path, ranks.team)
        if ranks.is_first:
            if state.ended in ("done", "early"):
                conclude(folder)
                write_examples(prepared, going.history, state.step, folder)
            card_of(prepared, model, state, folder).write(path)
        return written

    place = {name: saved.state[name] for name in ("metrics_bytes", "step", "tokens")} if saved else {}
    pin = config.device != "cpu"
    run = Run(
        *(config, folder, model, taught(objective, model.config), plan, _batches(prepared, pin, ranks)),
        scored=scored(prepared, pin),
        losses=LossFiles(folder, saved.state["evaluated"] if saved else -1) if ranks.is_first else None,
        history=going.history,
        optimizer=optimizer,
        rate=lambda step: peak * factor(config.schedule, step, plan.total_steps),
        average=average,
        metric=prepared.metric,
        evaluate_every=prepared.evaluate_every,
        save_every=prepared.save_every,
        checkpoints=checkpoints,
        save_model=save_model,
        tensors=going.tensors,
        record=Told(folder, events, **place) if ranks.is_first else NoRecord(),
        stop=ranks.agreeing(stop),
        trimming=Trimming(config.loss, plan, folder, saved, ranks.is_first) if config.loss.trim else None,
        ranks=ranks,
        gradients=replicas or gradients,
        replicas=replicas,
    )
    if mesh.pp is not None:
        run.pipeline = Pipelined(run, Pipeline(model, mesh))
    return run


def _average(config: OptimizerConfig, model: Transformer) -> Average | None:
    if config.ema is None:
        return None
    return Average(model, config.ema, shrinks(model) if config.l1 else ())


def _batches(prepared: Prepared, pin: bool, ranks: Ranks) -> Callable[[int], tuple[Step, list[Batch]]]:
    """Return what makes the micro-batches of a step that this process has; `pin`: for a GPU."""
    plan, config = prepared.plan, prepared.config

    def batches(number: int) -> tuple[Step, list[Batch]]:
        step = plan.step(number)
        how = (config.seed, step.epoch, pin, config.augment.embedding_noise)
        mine = [step.micro[turn.micro] for turn in ranks.dealt(len(step.micro))]
        return step, [collated(prepared.objective, prepared.examples, rows, *how) for rows in mine]

    return batches
