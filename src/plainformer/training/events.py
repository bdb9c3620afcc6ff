"""What a run tells while it goes on: to its files, and to whoever listens."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plainformer.train.run import State


@dataclass(frozen=True)
class Event:
    """Something that happened.

    kind        values
    started     step, total_steps: where the run begins, 0 or the step that it goes on from
    learnt      a line of metrics.jsonl: step, epoch, loss, learning_rate, gradient_norm, labels, tokens (in all)
    evaluated   a line of metrics.jsonl: step, epoch, metrics, best
    timed       step, seconds since the last line, tokens, waited (seconds for data)
    said        text: for people
    ended       what `TrainResult.to_dict` gives
    """

    kind: str
    values: dict[str, Any] = field(default_factory=dict)


class Events:
    """Hands events on."""

    def __init__(self, listener: Callable[[Event], None] | None) -> None:
        self.listener = listener

    def tell(self, kind: str, values: dict[str, Any]) -> None:
        if self.listener is not None:
            self.listener(Event(kind, values))

    def say(self, text: str) -> None:
        self.tell("said", {"text": text})

    def started(self, state: State, total: int) -> None:
        self.tell("started", {"step": state.step, "total_steps": total})

    def ended(self, values: dict[str, Any]) -> None:
        self.tell("ended", values)

    def record(self, folder: Path, position: int) -> Files:
        return Files(self, folder, position)


class Files:
    """metrics.jsonl, without a clock, and timing.jsonl."""

    def __init__(self, events: Events, folder: Path, position: int) -> None:
        self.events = events
        path = folder / "metrics.jsonl"
        path.touch()
        os.truncate(path, position)
        self.metrics = path.open("a", encoding="utf-8")
        self.timing = (folder / "timing.jsonl").open("a", encoding="utf-8")
        self.last = (time.perf_counter(), 0, 0.0)

    def learnt(self, line: dict[str, Any]) -> None:
        self.metrics.write(json.dumps(line) + "\n")
        self.events.tell("learnt", line)

    def evaluated(self, line: dict[str, Any]) -> None:
        self.metrics.write(json.dumps(line) + "\n")
        self.events.tell("evaluated", line)

    def timed(self, step: int, tokens: int, waited: float) -> None:
        now = time.perf_counter()
        before, tokens_before, waited_before = self.last
        line = {
            "step": step,
            "seconds": now - before,
            "tokens": tokens - tokens_before,
            "waited": waited - waited_before,
        }
        self.last = now, tokens, waited
        self.timing.write(json.dumps(line) + "\n")
        self.events.tell("timed", line)

    def sync(self) -> int:
        self.metrics.flush()
        os.fsync(self.metrics.fileno())
        return self.metrics.tell()

    def close(self) -> None:
        self.metrics.close()
        self.timing.close()
