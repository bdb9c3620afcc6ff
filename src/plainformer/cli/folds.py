"""`plainformer train CONFIG --folds 5`: a run for each fold, as a terminal shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plainformer.cli.options import write_json
from plainformer.cli.progress import screen
from plainformer.cli.screen import console
from plainformer.cli.train import Shown, near
from plainformer.errors import plural

if TYPE_CHECKING:
    from plainformer.config.training import TrainConfig
    from plainformer.folds import SeriesPlan
    from plainformer.training.events import Event


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
        raise KeyboardInterrupt  # exit code 130
    if as_json:
        write_json([{"event": "folds", "folder": str(result.folder), **result.to_dict()}])
        return
    out = console()
    for line in result.lines():
        out.print(line, markup=False, highlight=False, soft_wrap=True)


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
