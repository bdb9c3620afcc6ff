"""What a run tells while it goes on: to its files, and to whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plainformer.train.record import Record
from plainformer.train.run import State


@dataclass(frozen=True)
class Event:
    """Something that happened.

    kind        values
    started     step, total_steps: where the run begins, 0 or the step that it goes on from
    learnt      a line of metrics.jsonl: step, epoch, loss, learning_rate, gradient_norm, labels, tokens (in all)
    evaluated   step, epoch, best, interval (of the metric that chooses), and the metrics
    said        text: for people
    ended       what `TrainResult.to_dict` gives
    """

    kind: str
    values: dict[str, Any] = field(default_factory=dict)


class Events:
    """Hands events on; of several processes the first one's, and that all have started."""

    def __init__(self, listener: Callable[[Event], None] | None, is_first: bool = True) -> None:
        self.listener, self.is_first = listener, is_first

    def tell(self, kind: str, values: dict[str, Any]) -> None:
        if self.listener is not None and (self.is_first or kind == "started"):
            self.listener(Event(kind, values))

    def say(self, text: str) -> None:
        self.tell("said", {"text": text})

    def started(self, state: State, total: int) -> None:
        self.tell("started", {"step": state.step, "total_steps": total})

    def ended(self, values: dict[str, Any]) -> None:
        self.tell("ended", values)


class Told(Record):
    """The record of a run, which tells of each line, too."""

    def __init__(self, folder: Path, events: Events, **place: int) -> None:
        super().__init__(folder, **place)
        self.events = events

    def learnt(self, line: Mapping[str, Any]) -> None:
        super().learnt(line)
        self.events.tell("learnt", dict(line))

    def evaluated(self, line: Mapping[str, Any]) -> None:
        super().evaluated(line)
        self.events.tell("evaluated", dict(line))
