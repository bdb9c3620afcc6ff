"""What a run would do, before it does: `plainformer train CONFIG --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from plainformer.cli.options import write_json
from plainformer.cli.progress import screen
from plainformer.cli.screen import console, print_facts, shown, table
from plainformer.cli.training_line import size
from plainformer.config.building import as_data, as_plain
from plainformer.config.yaml import write_yaml
from plainformer.errors import plural
from plainformer.plan.result import PHASES
from plainformer.plan.shown import division_said

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig
    from plainformer.folds import SeriesPlan
    from plainformer.plan.planned import Plan
    from plainformer.training import Prepared
    from plainformer.training.estimate import Needs

MOST_TOKENS = 60  # of an example that is shown; --json has all
EXAMPLES = 2
Tokens = Sequence[tuple[str, str]]


def show_dry_run(config: TrainConfig, *, as_json: bool) -> None:
    """Print what of the configuration is not default, how much there is to learn from, what it needs, and the first examples."""
    with screen.during("preparing"):
        from plainformer.training import prepare
        from plainformer.training.estimate import needs_of

        if config.folds is not None:
            from plainformer.folds import plan_series

            series = plan_series(config)
        else:
            series = None
        prepared = prepare(config) if series is None else series.prepared
        needs = needs_of(prepared)
        step = needs.step
        examples = first_examples(prepared)
    if as_json:
        found = {
            "config": as_data(prepared.config),
            **numbers(prepared),
            "needs": needs.to_dict(),
            "step": {"peak": step.peak, "phase": step.phase, "parts": step.parts},
            "examples": examples,
        }
        write_json([found if series is None else {**found, "series": series.to_dict()}])
        return
    out = console()
    out.print(write_yaml(decided(prepared.config if series is None else series.config)), markup=False)
    if series is not None:
        print_facts(out, series_facts(series))
    print_facts(out, {**facts(prepared), **needed(needs)})
    for number, example in enumerate(examples, start=1):
        print_example(out, f"example {number}", example)


def decided(section: Any) -> dict[str, Any]:
    """Return the options that are not at their defaults, what was filled in by objective included."""
    found: dict[str, Any] = {}
    for f in fields(section):
        value = getattr(section, f.name)
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if value != default:
            found[f.name] = decided(value) if is_dataclass(value) else as_plain(value)
    return found


def series_facts(plan: SeriesPlan) -> dict[str, str]:
    """Return what a series of runs costs, for people."""
    steps = (
        f"{min(plan.steps):,}" if min(plan.steps) == max(plan.steps) else f"{min(plan.steps):,} to {max(plan.steps):,}"
    )
    first, last = plan.runs[0], plan.runs[-1]
    return {
        "runs": f"{plural(len(plan.runs), 'run')} of {steps} steps, {plan.total_steps:,} in all; what follows is of the first",
        "of them": f"{first.name} ({first.said}) to {last.name} ({last.said})",
    }


def first_examples(prepared: Prepared) -> list[Tokens]:
    """Return the first examples to learn from, token by token with what each is to learn."""
    store = prepared.examples
    return [prepared.objective.shown(store[number]) for number in range(min(EXAMPLES, len(store)))]


def numbers(prepared: Prepared) -> dict[str, Any]:
    """Return how much there is to learn from, as JSON holds it."""
    plan = prepared.plan
    return {
        "steps": plan.total_steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "epochs": plan.epochs,
        "tokens_per_epoch": plan.tokens_per_epoch,
        "evaluate_every": prepared.evaluate_every if prepared.validation is not None else None,
        "save_every": prepared.save_every,
        "data": prepared.data,
    }


def facts(prepared: Prepared) -> dict[str, str]:
    """Return the same for people."""
    plan = prepared.plan
    epochs = "epoch" if plan.epochs == 1 else "epochs"
    found = {
        "steps": f"{plan.total_steps:,}, which is {plan.epochs:.3g} {epochs} of {plural(plan.steps_per_epoch, 'step')}"
    }
    for name, store in (("train", prepared.examples), ("validation", prepared.validation)):
        if store is None:
            continue
        tokens = int(store.lengths.sum())
        rows = plural(store.counts.rows, "row")
        found[name] = (
            f"{plural(len(store), 'example')} of {rows}, {plural(tokens, 'token')}, longest {store.lengths.max():,}"
        )
        left_out = store.counts.lines()
        if left_out:
            found[f"{name}, left out"] = "; ".join(left_out)
    if prepared.validation is not None:
        metric = prepared.metric
        most, name = "highest" if metric.better == "higher" else "lowest", metric.name.replace("_", " ")
        how = f"the checkpoint with the {most} {name} is the best"
        probe = sum(map(len, prepared.probe))
        also = f", and {plural(probe, 'row')} of train, by which overfitting is told" if probe else ""
        found["evaluation"] = f"every {plural(prepared.evaluate_every, 'step')}{also}; {how}"
    if prepared.layout.world > 1:
        found["processes"] = division_said(prepared.layout)
    found["checkpoints"] = f"every {plural(prepared.save_every, 'step')}"
    return found


def needed(needs: Needs) -> dict[str, str]:
    """Return what a run needs, for people."""
    disk = f"{size(needs.checkpoint)} for each checkpoint, up to {size(needs.checkpoint * needs.checkpoints)}"
    losses = f"; {size(needs.losses)} for the losses of each evaluation's examples" if needs.losses else ""
    return {
        "parameters": f"{needs.parameters:,}, of which {needs.trained:,} are trained",
        "memory": remembered(needs.step),
        "disk": f"{disk} for {plural(needs.checkpoints, 'checkpoint')}{losses}",
    }


def remembered(step: Plan) -> str:
    """Return what the largest micro-batch needs at the worst moment of a step, and whether that is there, for people."""
    parts = sorted(step.worst.peak.parts().items(), key=lambda part: -part[1])
    said = ", ".join(f"{name} {size(count)}" for name, count in parts)
    each = " on each device" if step.layout.world > 1 else ""
    found = f"at most {size(step.total)}{each}, while {PHASES[step.phase]} ({step.phase}): {said}"
    if step.device is not None and not step.fits:
        found += f"; only {size(step.device.memory)} are available: `plainformer plan` on this file says what would fit"
    return found


def print_example(out: Any, name: str, tokens: Tokens) -> None:
    """Print an example token by token, with what each is to learn."""
    rows = table(name, "learns")
    for token, learns in tokens[:MOST_TOKENS]:
        rows.add_row(shown(token), shown(learns))
    out.print()
    out.print(rows)
    if len(tokens) > MOST_TOKENS:
        out.print(f"... and {plural(len(tokens) - MOST_TOKENS, 'token')} more")
