"""What a run writes down: numbers for programs, for TensorBoard, and as pictures.

RUN/metrics.jsonl   one line for some steps, one for each evaluation; without a clock, so that a run that was interrupted
                    and went on leaves the same bytes as one that was not
RUN/timing.jsonl    speed, waiting and memory: what differs each time
RUN/plots/*.png     curves of metrics.jsonl (with matplotlib)
RUN/tensorboard/    the same for TensorBoard (with tensorboardX)
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from plainformer.errors import CheckpointError, PlainformerError, to_install
from plainformer.train.plots import can_plot, draw_plots

log = logging.getLogger(__name__)
METRICS, TIMING, TENSORBOARD = "metrics.jsonl", "timing.jsonl", "tensorboard"
PLACE = ("step", "epoch", "best", "interval")  # what a line of an evaluation has besides metrics
PROBED = ("probe", "gap")  # and what it has of the probe
_PLOT_SECONDS = 30.0  # pictures are drawn at most this often, and at the end


class Lines:
    """A file of JSON lines; each is written at once and whole, floats in the shortest form that reads back the same.

    Args:
        keep: bytes that stay; what follows them is cut off. None: all stay.
    Raises:
        CheckpointError: the file is shorter than that.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self.path = path
        try:
            self._file = path.open("ab", buffering=0)
            if keep is not None:
                self._cut(keep)
        except OSError as error:
            raise self._cannot(error) from None

    def _cut(self, keep: int) -> None:
        size = self.size
        if size < keep:
            raise CheckpointError(
                f"{self.path} has {size:,} bytes, and had {keep:,} when the checkpoint was saved",
                "put the file back, or begin a new run in another folder",
            )
        self._file.truncate(keep)

    @property
    def size(self) -> int:
        """Return the file's bytes."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line. JSON has no infinite numbers: they become texts."""
        data = (json.dumps(_finite(line), ensure_ascii=False) + "\n").encode()
        before = self.size
        try:
            while data:  # a full disk takes a part, and says why it does not take the rest
                data = data[self._file.write(data) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(before)  # no half a line
            raise self._cannot(error) from None

    def sync(self) -> int:
        """Force the file to the disk; return its size."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._cannot(error) from None
        return self.size

    def close(self) -> None:
        self._file.close()

    def _cannot(self, error: OSError) -> PlainformerError:
        why = error.strerror or str(error)
        return PlainformerError(f"{self.path} cannot be written: {why}", "make room or check the folder, and go on")


class NoLines(Lines):
    """Lines that another process writes."""

    def __init__(self) -> None:
        """Open nothing."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Leave it to the other process."""

    def sync(self) -> int:
        """Return no size: nobody saves it."""
        return 0

    def close(self) -> None:
        """Close nothing."""


class Record:
    """What the loop tells of a run, on its way into files.

    Args:
        folder: of the run.
        metrics_bytes: size of metrics.jsonl at the checkpoint from which a run goes on; 0 for a new run.
        step, tokens: of that checkpoint.
    """

    def __init__(self, folder: Path, *, metrics_bytes: int = 0, step: int = 0, tokens: int = 0) -> None:
        self.folder = folder
        self.metrics = Lines(folder / METRICS, metrics_bytes)
        self.timing = Lines(folder / TIMING, None if step else 0)
        self.board = _board(folder / TENSORBOARD, step)
        if step:
            self.timing.write({"step": step, "resumed": True})
        if not can_plot():
            log.info("no plots: matplotlib is not installed; %s", to_install("train"))
        self._tokens, self._waited, self._since = tokens, 0.0, time.monotonic()
        self._drawn = -math.inf

    def learnt(self, line: Mapping[str, Any]) -> None:
        """Write what some steps gave; `line` has "step" and "epoch"."""
        self.metrics.write(line)
        self._show("train", line)

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """Write what an evaluation gave; what is neither of `PLACE` nor of `PROBED` is a metric, written below "validation"."""
        values = {name: value for name, value in line.items() if name not in (*PLACE, *PROBED)}
        place, probed = ({name: line[name] for name in names if name in line} for names in (PLACE, PROBED))
        self.metrics.write({**place, "validation": values, **probed})
        self._show("validation", {**values, "step": line["step"]})
        self._show("probe", {**line.get("probe", {}), "step": line["step"]})
        if time.monotonic() - self._drawn > _PLOT_SECONDS:
            with self.paused():
                self._draw()

    def timed(self, step: int, tokens: int, waited: float) -> None:
        """Write the speed since the last line. `tokens`: learnt from in all; `waited`: seconds for data, in this process."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        line = {
            "step": step,
            "seconds": round(seconds, 6),
            "tokens_per_second": round((tokens - self._tokens) / seconds, 3),
            "waiting": round((waited - self._waited) / seconds, 6),
            "memory_bytes": peak_memory(),
        }
        self.timing.write(line)
        self._show("timing", line)
        self._tokens, self._waited, self._since = tokens, waited, now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, time does not count for the speed of steps: evaluation, saving."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - begin

    def sync(self) -> int:
        """Force metrics.jsonl to the disk; return its size."""
        if self.board is not None:
            self.board.flush()
        return self.metrics.sync()

    def close(self) -> None:
        """Draw the curves, and close the files."""
        self._draw()
        if self.board is not None:
            self.board.close()
        self.metrics.close()
        self.timing.close()

    def _draw(self) -> None:
        try:
            draw_plots(self.folder)
        except OSError as error:  # no reason to end a run
            log.warning("the plots cannot be written: %s", error.strerror or error)
        self._drawn = time.monotonic()

    def _show(self, group: str, line: Mapping[str, Any]) -> None:
        if self.board is not None:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    self.board.add_scalar(f"{group}/{name}", value, line["step"])


class NoRecord(Record):
    """The record of a process that is not the one to write."""

    def __init__(self) -> None:
        """Open nothing."""
        self._since = 0.0

    def learnt(self, line: Mapping[str, Any]) -> None:
        """Leave it to the process that writes; so do the others."""

    def evaluated(self, line: Mapping[str, Any]) -> None: ...

    def timed(self, step: int, tokens: int, waited: float) -> None: ...

    def sync(self) -> int:
        return 0

    def close(self) -> None: ...


def _board(folder: Path, step: int) -> Any:
    """Return what writes for TensorBoard, None without its package; what it has of later steps is hidden."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        log.info("nothing for TensorBoard: tensorboardX is not installed; %s", to_install("train"))
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # "nan", "inf", "-inf"
    return value


def peak_memory() -> int:
    """Return the most bytes that tensors took on the GPU; without one, that the process had in memory; 0 where unknown."""
    torch = sys.modules.get("torch")  # whoever only reads what a run wrote has no need of it
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON lines; one that was cut off at the end is left out."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that are of evaluations, in order."""
    return [line for line in read_lines(folder / METRICS) if "validation" in line]
