"""What a terminal shows of a run: one line, drawn anew; a pipe gets a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from plainformer.cli.progress import Count, duration, screen

_EVERY = 10.0  # seconds between lines when stderr is not a terminal
_STEADY = 0.8  # share of the past in the speed that is shown: about the last five measurements


class TrainingLine(Count):
    """Where a run is: step, loss, real tokens per second, time left, memory, learning rate."""

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(total, "steps")
        self.clock = clock
        self.last = clock()
        self.done = self.first = done
        self.tokens_before: int | None = None
        self.speed = self.step_seconds = 0.0
        self.values: Mapping[str, Any] = {}
        self.before = ""  # which of several runs this is
        self.said = self.clock()

    def learnt(self, line: Mapping[str, Any]) -> None:
        """Take the loss, learning rate and tokens (in all) up to a step."""
        now = self.clock()
        steps, seconds = line["step"] - self.done, max(now - self.last, 1e-9)
        tokens = line["tokens"] - (self.tokens_before or 0)
        if steps > 0:
            if self.tokens_before is not None or self.first == 0:  # else they are also those of an earlier process
                self.speed = _mixed(self.speed, tokens / seconds, self.speed > 0)
            self.step_seconds = _mixed(self.step_seconds, seconds / steps, self.step_seconds > 0)
        self.done, self.last, self.tokens_before, self.values = line["step"], now, line["tokens"], line
        self.shown()

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """Say what an evaluation gave."""
        from plainformer.train.record import PLACE, PROBED

        numbers = {name: value for name, value in line.items() if name not in (*PLACE, *PROBED)}
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        best = ", the best so far" if line.get("best") else ""
        learnt = f"; train loss {line['probe']['loss']:.4g}" if "probe" in line else ""
        screen.say(f"{self.before}step {line['step']:,}: validation {metrics}{best}{learnt}")
        self.last = self.clock()  # the time of an evaluation is not that of steps

    def shown(self) -> None:
        """Draw the line; when stderr is not a terminal, write it, at most once every `_EVERY` seconds."""
        if screen.shows:
            screen.refresh()
        elif self.clock() - self.said >= _EVERY or self.done == self.total:
            self.said = self.clock()
            screen.say(str(self))

    def __str__(self) -> str:
        parts = [f"{self.before}step {self.done:,} of {self.total:,}"]
        if "loss" in self.values:
            parts.append(f"loss {self.values['loss']:.4g}")
        if self.speed:
            parts.append(f"{self.speed:,.0f} tokens/s")
        if self.step_seconds and self.total is not None and self.done < self.total:
            left = (self.total - self.done) * self.step_seconds - (self.clock() - self.last)
            parts.append(f"{duration(max(0, left))} left")
        parts += [size(used)] if (used := memory_in_use()) else []
        if "learning_rate" in self.values:
            parts.append(f"rate {self.values['learning_rate']:.2e}")
        return ", ".join(parts)


def _mixed(past: float, now: float, known: bool) -> float:
    return _STEADY * past + (1 - _STEADY) * now if known else now


def size(count: float) -> str:
    """Return bytes as people say them: "812 MB", "1.3 GB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def memory_in_use() -> int:
    """Return the most bytes that tensors took on the GPU; without one, what the process has in memory now; 0: unknown."""
    from plainformer.train.record import peak_memory

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return peak_memory()
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):  # not Linux
        return peak_memory()
