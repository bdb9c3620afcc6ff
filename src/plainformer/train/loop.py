"""The loop: one for every objective. What a step learns from, how it is scored and where results go is given to it.

A step depends on its number, the weights and the optimizer's state alone, so a run that was stopped anywhere goes on as if
it had not been. Nothing here waits for a GPU, except where a number is written down.
"""

from __future__ import annotations

import gc
import logging
import math
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plainformer.parallel.data import Sharded
from plainformer.parallel.sync import Turn, clip, gradient_norm
from plainformer.train.checkpoint import Written
from plainformer.train.draws import torch_seed
from plainformer.train.evaluating import Evaluation, evaluate
from plainformer.train.feeder import Feeder
from plainformer.train.idle import idle
from plainformer.train.noise import noised
from plainformer.train.objectives.base import Batch, Loss
from plainformer.train.optimizer import clip_gradients, set_learning_rate, shrink
from plainformer.train.plan import Step
from plainformer.train.run import Run, State
from plainformer.train.trimming import Kept, Trimming

log = logging.getLogger(__name__)


def train_steps(run: Run, state: State) -> None:
    """Learn from step after step until the end, or until there is a reason to stop; `state.ended` says which."""
    run.model.train()
    run.loss_sum.fill_(state.loss)
    _look(run, state)  # the evaluation before the first step, or one that was interrupted
    with Feeder(run.batches, state.step, run.plan.total_steps) as feeder:
        for number, (step, batches) in enumerate(feeder if not state.ended else ()):
            norm, labels, tokens = learn(run, step, batches)
            state.step += 1
            state.tokens += tokens
            state.labels += labels
            if state.step % run.config.log_every == 0 or state.step == run.plan.total_steps:
                _log(run, state, norm)
                run.record.timed(state.step, state.tokens, feeder.waited)
            _look(run, state)
            if state.ended:
                break
            if number == 0:
                gc.collect()
                gc.freeze()  # what is there now stays: looking through it again and again would take time


def learn(run: Run, step: Step, batches: list[Batch]) -> tuple[Tensor, int, int]:
    """Take one optimizer step on the mean loss of all labels of its micro-batches, of which this process may have a part.

    Returns:
        the gradient's norm, (), and how many labels and tokens the step has.
    """
    counted = [batch for turn, batch in zip(turns(run, step, batches), batches, strict=True) if turn.counts]
    labels, tokens = run.ranks.sums([sum(b.count for b in counted), sum(b.tokens for b in counted)])
    run.model.zero_grad(set_to_none=True)  # also of what another process takes the steps of
    try:
        total = accumulate(run, step, batches, labels)
    except RuntimeError as error:  # an operation that gives other bits each time on this device
        if "deterministic implementation" not in str(error) or isinstance(run.gradients, Sharded):
            raise
        log.warning("%s; the run goes on, but is not repeatable bit for bit", str(error).partition(". ")[0])
        torch.use_deterministic_algorithms(True, warn_only=True)
        run.model.zero_grad(set_to_none=True)  # also of what another process takes the steps of
        total = accumulate(run, step, batches, labels)
    total = run.ranks.total(total)
    norm = clipped(run)
    run.finite.watch(step.step, total, norm)
    if run.finite.at_once:
        run.finite.check(run.folder, run.plan.step)
    set_learning_rate(run.optimizer, run.rate(step.step))
    run.optimizer.step()
    shrink(run.optimizer, run.finite.bad)
    run.gradients.stepped()
    if run.average is not None:
        run.average.update(step.step + 1)
    run.loss_sum += total
    return norm, labels, tokens


def turns(run: Run, step: Step, batches: list[Batch]) -> list[Turn]:
    """Return which micro-batches of a step this process has."""
    return run.ranks.dealt(len(step.micro) if run.ranks.count > 1 else len(batches))


def clipped(run: Run) -> Tensor:
    """Clip the gradients of all processes; return their norm, ()."""
    limit = run.config.optimizer.max_grad_norm
    if run.ranks.mesh is None:
        return clip_gradients(run.optimizer, limit)
    norm = gradient_norm(run.model, run.ranks.mesh)
    clip(list(run.model.parameters()), limit, norm)
    return norm


def accumulate(run: Run, step: Step, batches: list[Batch], labels: int | None = None) -> Tensor:
    """Add up the gradient of a step's mean loss, which is the same however its rows are divided.

    Args:
        labels: of the step in all processes; None: this one has them all.
    Returns:
        the summed loss of what this process has, ().
    """
    if labels is None:
        labels = sum(batch.count for batch in batches)
    labels = max(1, labels)  # known before the model runs
    mine = turns(run, step, batches)
    if run.pipeline is not None:
        return run.pipeline.accumulate(step, batches, mine, labels)
    if run.trimming is not None and run.trimming.begun(step.step):
        return accumulate_kept(run, run.trimming, step, batches)
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    run.gradients.begin()
    for place, (turn, batch) in enumerate(zip(mine, batches, strict=True)):
        if place == len(batches) - 1:
            run.gradients.last()
        loss = score(run, step, turn.micro, batch)
        counted = loss.total if turn.counts else loss.total * 0
        if turn.counts:
            run.history.take(step.step, batch, loss)
        (counted / labels).backward()
        total += counted.detach().to(run.device)
    run.gradients.finish()
    return total


def accumulate_kept(run: Run, trimming: Trimming, step: Step, batches: list[Batch]) -> Tensor:
    """The same of what trimming keeps. Several micro-batches run once more: the first time tells which rows to keep.

    So memory does not grow with their number, and a step that is one micro-batch costs nothing more.
    """
    once, mine = len(batches) == 1, turns(run, step, batches)
    run.gradients.begin()
    if once:
        run.gradients.last()
    with nullcontext() if once else torch.no_grad():
        losses = [score(run, step, turn.micro, batch) for turn, batch in zip(mine, batches, strict=True)]
    kept = kept_of_all(run, trimming, step, batches, losses)
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    for place, (turn, batch, loss) in enumerate(zip(mine, batches, losses, strict=True)):
        if turn.counts:
            run.history.take(step.step, batch, loss)
        if place == len(batches) - 1:
            run.gradients.last()
        rows = kept.rows[turn.micro] if turn.counts else torch.zeros_like(kept.rows[turn.micro])
        loss = loss if once else score(run, step, turn.micro, batch)
        left = loss.of_rows(rows.to(loss.values.device))
        (left / kept.labels.to(left.device)).backward()
        total += left.detach().to(run.device)
    run.gradients.finish()
    return total


def kept_of_all(run: Run, trimming: Trimming, step: Step, batches: list[Batch], losses: list[Loss]) -> Kept:
    """Return what a step keeps, given the losses that each process has of its micro-batches."""
    if run.ranks.count == 1 and run.replicas is None:
        return trimming.choose(step, [batch.examples for batch in batches], losses)
    known = [
        (turn.micro, batch.examples, loss.per_row.cpu(), loss.labels_per_row.cpu())
        for turn, batch, loss in zip(turns(run, step, batches), batches, losses, strict=True)
        if turn.counts
    ]
    every = sorted((one for told in run.ranks.gathered(known) for one in told), key=lambda one: one[0])
    all_losses = [Loss(sums.to(run.device), labels=labels.to(run.device)) for _, _, sums, labels in every]
    return trimming.choose(step, [examples for _, examples, _, _ in every], all_losses)


def score(run: Run, step: Step, micro: int, batch: Batch) -> Loss:
    """Return the losses of a micro-batch in training."""
    torch.manual_seed(torch_seed(run.config.seed, step.step, micro))  # dropout depends on the step alone
    model = run.model if run.replicas is None else run.replicas.of(micro)
    batch, lacking = run.here(batch, model), run.gradients.lacking(batch.passes)
    with run.autocast(), noised(model, batch.noise):
        loss = run.objective.loss(model, batch)
        nothing = idle(model, batch, lacking)
    return loss if nothing is None else replace(loss, values=loss.values + nothing)


def _log(run: Run, state: State, norm: Tensor) -> None:
    """Write what the steps since the last line gave, and begin anew."""
    run.finite.check(run.folder, run.plan.step)
    if run.trimming is not None:
        state.labels -= run.trimming.counted()
    line = {
        "step": state.step,
        "epoch": state.step / run.plan.steps_per_epoch,
        "loss": run.loss_sum.item() / max(1, state.labels),
        "learning_rate": run.rate(state.step - 1),
        "gradient_norm": norm.item(),
        "labels": state.labels,
        "tokens": state.tokens,
    }
    run.record.learnt(line)
    run.history.settle(run.ranks.everywhere)
    run.loss_sum.zero_()
    state.labels = 0


def _look(run: Run, state: State) -> None:
    """Between steps: evaluate, save, and decide whether to go on."""
    done, stopping, better = state.step == run.plan.total_steps, run.stop(), False
    due = done or (state.step % run.evaluate_every == 0 and (state.step > 0 or run.config.evaluate.first))
    if run.scored and due and state.evaluated < state.step and not stopping:
        with run.record.paused():
            found = evaluate(run)
            run.gradients.evaluated()
        stopping = found is None
        better = found is not None and _judge(run, state, found)
        # Last bits may differ from machine to machine, decisions may not.
        better, state.best, state.since_best = run.ranks.first((better, state.best, state.since_best))
    patience = run.config.evaluate.patience
    early = bool(patience) and state.since_best >= (patience or 0)
    state.ended = "stopped" if stopping else "done" if done else "early" if early else ""
    if state.step and (state.ended or better or state.step % run.save_every == 0):
        save(run, state)


def _judge(run: Run, state: State, found: Evaluation) -> bool:
    """Take note of an evaluation; return whether it is the best: of equal ones the first, and never one before step 1."""
    values = found.values
    name, sign = run.metric.name, 1 if run.metric.better == "higher" else -1
    value, before = values[name], -math.inf if state.best is None else sign * state.best["value"]
    better = state.step > 0 and (sign * value > before or (state.best is None and value == value))
    better = better and math.isfinite(values["loss"])  # a model that has run away can still guess right
    if better:
        state.best = {"step": state.step, "metric": name, "value": value, "interval": found.interval}
    state.evaluated, state.since_best = state.step, 0 if better or not state.step else state.since_best + 1
    place = {"step": state.step, "epoch": state.step / run.plan.steps_per_epoch, "best": better}
    if run.losses is not None:
        run.losses.write(state.step, found.rows)
    run.record.evaluated({**place, "interval": found.interval, **values, **found.of_probe})
    return better


def save(run: Run, state: State) -> None:
    """Write a checkpoint from which the run goes on as if it had not been stopped."""
    run.finite.check(run.folder, run.plan.step)
    run.history.settle(run.ranks.everywhere)
    state.loss = run.loss_sum.item()
    content: dict[str, Any] = {**asdict(state), "metrics_bytes": run.record.sync()}
    if run.trimming is not None:
        content["trimming"] = run.trimming.state()

    def save_model(folder: Path) -> Written:
        with run.weights:  # of several processes, the other tensors are fetched while they are written: not within this
            return run.save_model(folder, state)

    with run.record.paused():
        run.checkpoints.save(state.step, save_model, run.tensors(), content)
