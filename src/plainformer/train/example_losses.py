"""What each evaluation gave for each example: by this, runs tell overfitting from chance.

    RUN/losses/examples.npz         of "validation" and "probe": which examples of the store they are (`*_examples`), the units
                                    that they belong to (`*_units`), and how many labels each has (`*_labels`)
    RUN/losses/step-00000100.npz    `validation`, `probe`: each example's mean loss of a label, in the order of the store

The probe is as many fixed rows of train as there are of validation, drawn by the seed. Losses are the plain ones, without
dropout, smoothing or trimming. A file is whole or absent, and its bytes depend on what is in it alone.

Shapes: N examples of a side, P evaluations, R rows of one, G units, M numbers that a metric is made of.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plainformer.errors import CheckpointError
from plainformer.replacing import replacing
from plainformer.train.kept_verdict import VERDICT

if TYPE_CHECKING:
    from plainformer.train.objectives.base import Batch

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
FOLDER, ABOUT = "losses", "examples.npz"
SIDES = ("validation", "probe")
MOST_BYTES, LEAST = 1 << 28, 1000  # of all files of a run; examples that are kept however many evaluations there are
_NAME = re.compile(r"step-(\d{8,})\.npz")
_BEFORE_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass
class Scored:
    """Examples that every evaluation scores.

    Attributes:
        name: "validation" or "probe". batches: number → one of `count` batches.
        examples: their numbers in the store, in order, (N,).
        units: what each belongs to, as the hash of its group or of its row, (N, 2); rows that are copies are one unit.
        kept: places, in `examples`, of those whose losses are kept; None for all.
    """

    name: str
    batches: Callable[[int], Batch]
    count: int
    examples: Integers
    units: npt.NDArray[np.uint64]
    kept: Integers | None = None
    unit_N: Integers = field(init=False)

    def __post_init__(self) -> None:
        self.unit_N = numbered(self.units)

    def by_example(self, rows_RM: Numbers, examples: Iterable[int]) -> Numbers:
        """Return sums for each example, (N, M), of sums for each row: a long document has several."""
        places = np.searchsorted(self.examples, np.fromiter(examples, np.int64, len(rows_RM)))
        return summed(rows_RM, places, len(self.examples))

    def by_unit(self, rows_NM: Numbers) -> Numbers:
        """Return sums for each unit, (G, M)."""
        return summed(rows_NM, self.unit_N, int(self.unit_N.max()) + 1)

    def losses(self, rows_NM: Numbers) -> npt.NDArray[np.float32]:
        """Return the mean loss of a label of each kept example, 0 where it has none."""
        rows = rows_NM if self.kept is None else rows_NM[self.kept]
        return np.divide(rows[:, 0], rows[:, 1], out=np.zeros(len(rows)), where=rows[:, 1] > 0).astype(np.float32)

    def about(self, rows_NM: Numbers) -> dict[str, npt.NDArray[Any]]:
        """Return what does not change between evaluations."""
        kept = slice(None) if self.kept is None else self.kept
        values = {"examples": self.examples[kept], "units": self.units[kept], "labels": rows_NM[kept, 1].astype("i8")}
        return {f"{self.name}_{name}": value for name, value in values.items()}


def numbered(units: npt.NDArray[np.uint64]) -> Integers:
    """Return a number for each unit, equal for equal ones, in the order of their hashes, (N,)."""
    return np.asarray(np.unique(units, axis=0, return_inverse=True)[1], np.int64).reshape(-1)


def summed(rows: Numbers, places: Integers, count: int) -> Numbers:
    """Return the sum of the rows that go to each place, (count, M)."""
    found = np.zeros((count, rows.shape[1]))
    np.add.at(found, places, rows)
    return found


def most_kept(evaluations: int) -> int:
    """Return how many examples of a side are kept, so that all evaluations take 256 MB: half a million for 64 of them."""
    return max(LEAST, MOST_BYTES // (4 * len(SIDES) * max(1, evaluations)))


def bytes_of(examples: int, evaluations: int) -> int:
    """Return the bytes that a run's files take. `examples`: of both sides."""
    kept = min(examples, len(SIDES) * most_kept(evaluations))
    return kept * (4 * evaluations + 32)


class LossFiles:
    """Writes them.

    Args:
        folder: of the run. step: of the last evaluation that the run knows of when it begins or goes on; later ones, which it
            is about to repeat, are removed, and a verdict on them.
    """

    def __init__(self, folder: Path, step: int = -1) -> None:
        self.folder = folder / FOLDER
        (folder / VERDICT).unlink(missing_ok=True)
        for path in self.folder.glob("*"):
            name = _NAME.fullmatch(path.name)
            if step < 0 or path.name.startswith(".") or (name is not None and int(name[1]) > step):
                path.unlink()

    def write(self, step: int, scored: Mapping[str, tuple[Scored, Numbers]]) -> None:
        """Keep an evaluation: name → the side and its sums for each example, (N, M)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ABOUT).is_file():
            self._write(ABOUT, {k: v for side, rows in scored.values() for k, v in side.about(rows).items()})
        self._write(f"step-{step:08d}.npz", {name: side.losses(rows) for name, (side, rows) in scored.items()})

    def _write(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        with replacing(self.folder / name) as path, path.open("wb") as file:
            file.write(packed(arrays))
            file.flush()
            os.fsync(file.fileno())


def packed(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return the bytes of an .npz file, without a time."""
    whole = BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, array in arrays.items():
            one = BytesIO()
            np.lib.format.write_array(one, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _BEFORE_TIME), one.getvalue())
    return whole.getvalue()


@dataclass(frozen=True)
class Losses:
    """What one side of a run's evaluations gave.

    Attributes:
        steps: of the evaluations, (P,). losses: mean loss of a label of each example at each, (P, N) float64.
        labels: how many each example has, (N,). units: number of the unit of each, in the order of their keys, (N,).
        examples: their numbers in the store, (N,).
    """

    steps: Integers
    losses: Numbers
    labels: Integers
    units: Integers
    examples: Integers


def read_losses(folder: Path, steps: Iterable[int]) -> dict[str, Losses]:
    """Return "validation", and "probe" where there is one, of a run's evaluations after these steps.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    at = folder / FOLDER
    try:
        with np.load(at / ABOUT, allow_pickle=False) as file:
            about = dict(file)
        found: dict[str, list[Numbers]] = {}
        known = np.array(list(steps), np.int64)
        for step in known:
            with np.load(at / f"step-{step:08d}.npz", allow_pickle=False) as file:
                for name, losses in file.items():
                    found.setdefault(name, []).append(losses.astype(np.float64))
        parts = ("labels", "units", "examples")
        sides = {name: [about[f"{name}_{part}"] for part in parts] for name in found}
        return {
            name: Losses(known, np.stack(found[name]), labels, numbered(units), examples)
            for name, (labels, units, examples) in sides.items()
        }
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"a file of {at} is damaged: {error}",
            "the verdict on overfitting needs this file; the model itself is intact",
        ) from None
    except (OSError, KeyError) as error:
        raise CheckpointError(
            f"{at} does not have the losses of all evaluations: {error}",
            "runs of this version with validation rows keep them; without them there is no verdict",
        ) from None
