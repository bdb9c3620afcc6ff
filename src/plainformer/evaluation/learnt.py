"""Which rows of an evaluation the model has learnt from, by what its run wrote down: RUN/examples.jsonl."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.checkpoint.run_folders import CONFIG, series_of
from plainformer.errors import PlainformerError, plural
from plainformer.training.example_table import NAME

Keys = npt.NDArray[np.uint64]
_KEY = re.compile(r'"key": "([0-9a-f]{16})')
_TIMES = re.compile(r'"times": (\d+)')


@dataclass(frozen=True)
class Learnt:
    """Rows of an evaluation whose input is one that the model learnt from.

    Attributes:
        rows: how many. of: rows of the evaluation. run: the folder of the run that says so.
    """

    rows: int
    of: int
    run: str

    def line(self) -> str:
        """Return it as a warning."""
        all_of_them = "all rows are" if self.rows == self.of else f"{plural(self.rows, 'row is', 'rows are')}"
        share = "" if self.rows == self.of else f" ({self.rows / self.of:.1%})"
        return f"the model has learnt from these: {all_of_them} among the rows it was trained on{share}, by {self.run}"


def learnt_from(ref: str, keys_N2: Keys) -> dict[str, Any] | None:
    """Return what is known of an evaluation's rows: how many are rows of the training; None without any, or without a run.

    Args:
        ref: a run's folder, or that of a checkpoint within one. keys_N2: hashes of the rows' inputs, (N, 2).
    """
    run = run_around(ref)
    if run is None or not len(keys_N2):
        return None
    found = np.fromiter(_keys_of(run), np.uint64)
    rows = int(np.isin(keys_N2[:, 0], found).sum())
    return {"rows": rows, "of": len(keys_N2), "run": str(ref)} if rows else None


def run_around(ref: str) -> Path | None:
    """Return the folder of the run that a reference is, or is a checkpoint of."""
    try:
        here = Path(ref).expanduser().resolve()
        around = (here, *here.parents[:2])  # RUN, RUN/checkpoints/step-00000012
        return next((folder for folder in around if (folder / CONFIG).is_file()), None)
    except (OSError, ValueError, RuntimeError):  # not a path
        return None


def _keys_of(run: Path) -> Iterator[int]:
    """Yield half of each learnt row's hash, 64 bits; nothing where the run has no such table, or a damaged one."""
    try:
        series = series_of(run)
    except PlainformerError:
        series = None
    for folder in (run,) if series is None else series.members:
        try:
            with (folder / NAME).open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    key, times = _KEY.search(line), _TIMES.search(line)
                    if key is not None and times is not None and int(times[1]):
                        yield int(key[1], 16)
        except OSError:
            continue
