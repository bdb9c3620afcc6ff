"""`plainformer train CONFIG`: a model learns what a YAML file says."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from plainformer.cli.options import Json, restored, write_json
from plainformer.cli.overrides import parse_overrides
from plainformer.cli.progress import screen
from plainformer.cli.screen import console, print_facts
from plainformer.cli.training_line import TrainingLine
from plainformer.config.building import read_config
from plainformer.config.parallel import is_first, is_several
from plainformer.config.values import no_effect
from plainformer.errors import UsageError, opt

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig
    from plainformer.training import TrainResult
    from plainformer.training.events import Event


def train(
    config: Annotated[
        str | None, Parameter(help="YAML file, or the folder of a run.", allow_leading_hyphen=True)
    ] = None,
    /,
    *overrides: Annotated[
        str,
        Parameter(
            help="--SECTION.OPTION VALUE changes an option of CONFIG, such as --optimizer.learning-rate 3e-5.",
            allow_leading_hyphen=True,
        ),
    ],
    dry_run: Annotated[bool, Parameter(negative="", help="Show what would be done, and what it would need.")] = False,
    resume: Annotated[bool, Parameter(negative="", help="Go on with a run; there must be one.")] = False,
    seen: Annotated[str | None, Parameter(help="Show how often each example was seen in this run, and stop.")] = None,
    verdict: Annotated[str | None, Parameter(help="Say whether this run overfits, and since when, and stop.")] = None,
    json: Json = False,
) -> None:
    """Train a model as CONFIG says; begun again, a run goes on where it stopped.

    Values are YAML: null, true, 1e-4, [a, b]. The run's folder keeps config.yaml
    with every default written out, metrics.jsonl, and the models best and last.
    Ctrl-C finishes the step and saves; pressed again, it ends the program.
    --folds 5 makes a run for each of five folds, and tells what all are worth.

    Example: plainformer train sst2.yaml --optimizer.learning-rate 3e-5
    """
    if seen is not None:
        no_effect(verdict is not None, "verdict", f"with {opt('seen')}", "give one of the two")
        no_effect(config is not None or dry_run or resume, "seen", "with CONFIG", "give the run alone")
        show_seen(restored(seen), as_json=json)
        return
    if verdict is not None:
        alone = config is not None or dry_run or resume
        no_effect(alone, "verdict", "with CONFIG", "give the run alone")
        show_verdict(restored(verdict), as_json=json)
        return
    asked = read_run(config, overrides)
    last = "last.json" if asked.folds is None else "folds.json"
    if resume and not (Path(asked.folder) / last).is_file():
        raise UsageError(f"{asked.folder} has no run to go on with", f"leave {opt('resume')} out to begin one")
    if dry_run:
        no_effect(resume, "resume", f"with {opt('dry_run')}")
        from plainformer.cli.prepared import show_dry_run

        if is_first():
            show_dry_run(asked, as_json=json)
        return
    if asked.folds is not None:
        learn_series(asked, as_json=json)
        return
    learn(asked, as_json=json)


def read_run(config: str | None, overrides: tuple[str, ...]) -> TrainConfig:
    """Return the configuration of a YAML file, or of a run's folder, with overrides."""
    if config is None or config.startswith("--"):
        raise UsageError("a CONFIG is missing", "give the YAML file first, then its overrides")
    path, changes = Path(restored(config)), parse_overrides(overrides)
    if not (path.is_dir() and (path / "config.yaml").is_file()):
        return read_config(path, changes)
    found = read_config(path / "config.yaml", changes)
    # A run may have been moved since it was begun.
    return found if any(name == "folder" for name, _ in changes) else replace(found, folder=str(path))


class Stop:
    """Whether to stop: Ctrl-C or SIGTERM asks for it once; the second one ends the program.

    Of several processes SIGTERM may come twice, from a scheduler and from torchrun, which itself ends those that take too
    long: there a second one changes nothing.

    Attributes:
        asked: whether to stop. by: the signal that has asked for it first.
    """

    def __init__(self) -> None:
        self.asked, self.by = False, 0

    def __call__(self) -> bool:
        return self.asked

    def heard(self, number: int, frame: Any) -> None:
        """Take a signal."""
        if self.asked and not (number == signal.SIGTERM and is_several()):
            screen.interrupted()
            os._exit(130)
        if not self.asked and not is_several():  # torchrun sends it when another process has failed, too
            again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            # Not screen.say: the signal may have come while that was holding its lock.
            os.write(2, b"\r\x1b[K" * screen.shows + f"finishing this step, then saving{again}\n".encode())
        self.asked, self.by = True, self.by or number


def end_stopped(stop: Callable[[], bool]) -> None:
    """End a run that was asked to stop, and has saved: with exit code 130 after Ctrl-C, as shells expect, and 0 otherwise.

    torchrun takes any other code than 0 for a failure, and would begin again.
    """
    if not is_several() and not (isinstance(stop, Stop) and stop.by == signal.SIGTERM):
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Within, Ctrl-C does not end the program at once."""
    stop = Stop()
    before = {number: signal.signal(number, stop.heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Shown:
    """Shows the events of a run: a line on stderr, drawn anew; with `as_json`, one JSON value per line on stdout as well.

    Attributes:
        started: whether steps are taken. stop: since then, whether to stop. ends: what is to be undone at the end.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.ends = ExitStack()
        self.started = False
        self.line = TrainingLine(0)
        self.stop: Callable[[], bool] = lambda: False

    def __call__(self, event: Event) -> None:
        values = event.values
        if event.kind == "started":
            self.started = True
            self.stop = self.ends.enter_context(interruptible())
        if not is_first():  # it hears signals, and says nothing
            return
        if event.kind == "started":
            self.line = TrainingLine(values["total_steps"], values["step"])
            self.ends.enter_context(screen.during(self.line))
            if values["step"]:
                screen.say(f"going on from step {values['step']:,} of {values['total_steps']:,}")
        elif event.kind == "learnt":
            self.line.learnt(values)
        elif event.kind == "evaluated":
            self.line.evaluated(values)
        elif event.kind == "said":
            screen.say(values["text"])
        if self.as_json and event.kind != "said":
            write_json([{"event": event.kind, **values}])


def learn(config: TrainConfig, *, as_json: bool) -> None:
    """Train, and print what came of it."""
    with screen.during("preparing") if is_first() else nullcontext():
        from plainformer.training import train as run

        shown = Shown(as_json)
        with shown.ends:
            result = run(config, on_event=shown, stop=lambda: shown.stop())
    where = f"step {result.step:,} of {result.total_steps:,}"
    if result.ended == "stopped":
        if is_first():
            screen.say(f"saved at {where} in {near(result.folder)}; the same command goes on from there")
        end_stopped(shown.stop)
        return
    if not as_json and is_first():
        print_result(result, where, already=not shown.started)


class SeriesShown(Shown):
    """Shows the events of one run after the other, each with what it is: "fold 2 of 5"."""

    said = ""

    def __call__(self, event: Event) -> None:
        if event.kind == "run":
            self.said = event.values["said"]
            place = f"run {event.values['number']:,} of {event.values['runs']:,}"
            screen.say(f"{self.said}" if self.said.endswith(place[4:]) else f"{self.said} ({place})")
            if self.as_json:
                write_json([{"event": event.kind, **event.values}])
            return
        super().__call__(event)
        if event.kind == "started":
            self.line.before = f"{self.said}: "
        elif event.kind == "ended":
            self.ends.close()  # the line of this run, and its hold on Ctrl-C


def learn_series(config: TrainConfig, *, as_json: bool) -> None:
    """Train a model for each fold, and print what came of it."""
    with screen.during("preparing"):
        from plainformer.folds import cross_validate

        shown = SeriesShown(as_json)
        with shown.ends:
            result = cross_validate(config, on_event=shown, stop=lambda: shown.stop())
    if result.ended == "stopped":
        screen.say(f"what is done is saved in {near(result.folder)}; the same command goes on from there")
        end_stopped(shown.stop)
        return
    if as_json:
        write_json([{"event": "folds", "folder": str(result.folder), **result.to_dict()}])
        return
    out = console()
    for line in result.lines():
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def print_result(result: TrainResult, where: str, *, already: bool) -> None:
    """Print how a run ended, perhaps before this call, and where its models are."""
    out = console()
    how = "done" if result.ended == "done" else "stopped early, without a better evaluation"
    out.print(f"{how}{' already' if already else ''}: {where}", markup=False)
    folder = near(result.folder)
    facts = {"last model": str(folder / "last")}
    best = result.best
    if best is not None:
        from plainformer.train.interval import said

        facts["best model"] = f"{folder / 'best'} (step {best['step']:,})"
        other = f"; its counterpart in `plainformer evaluate` is {result.evaluated}" if result.evaluated else ""
        facts[f"its {best['metric']}"] = said(best["value"], best.get("interval")) + other
    if result.verdict is not None:
        facts["overfitting"] = result.verdict["sentence"]
    print_facts(out, facts)


def near(folder: Path) -> Path:
    """Return a folder as seen from the working directory, where it is in it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def show_seen(folder: str, *, as_json: bool) -> None:
    """Print how often each example of a run was seen."""
    from plainformer.train.seen import seen

    found = seen(folder)
    if as_json:
        write_json([found.to_dict()])
    else:
        screen.write(str(found))


def show_verdict(folder: str, *, as_json: bool) -> None:
    """Print whether a run overfits."""
    from plainformer.train.verdict import verdict

    found = verdict(folder)
    if as_json:
        write_json([found.to_dict()])
    else:
        screen.write(str(found))
