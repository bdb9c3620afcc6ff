"""The folder of a run as a reference to its best model, and that of a run for each of several folds to all of theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plainformer.errors import CheckpointError

CONFIG, SERIES = "config.yaml", "folds.json"


@dataclass(frozen=True)
class Series:
    """The models of all folds, which answer together.

    Attributes:
        folder: with folds.json. members: the folder of each fold's run. vote: "mean" or "majority".
    """

    folder: Path
    members: tuple[Path, ...]
    vote: str


def is_series(folder: Path) -> bool:
    """Return whether a folder is that of a run for each of several folds."""
    return (folder / SERIES).is_file()


def series_of(ref: str | os.PathLike[str]) -> Series | None:
    """Return the series that a reference names; None where it names something else.

    Raises:
        CheckpointError: folds are not finished, or folds.json is damaged.
    """
    try:
        folder = Path(ref).expanduser()
        if not is_series(folder):
            return None
    except (OSError, ValueError, TypeError, RuntimeError):  # not a path
        return None
    try:
        found = json.loads((folder / SERIES).read_text(encoding="utf-8"))
        members = tuple(folder / one["run"] for one in found["folds"])
        vote, count = found["vote"], found["count"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / SERIES} cannot be read: {error}", "train again: the runs are kept") from None
    there = [member for member in members if model_of(member) is not None]
    if found.get("ended") != "done" or len(there) < count:
        what = f"{str(folder)!r} is a run of {count} folds that is not finished: {len(there)} of their models are there"
        raise CheckpointError(what, f"`plainformer train {folder}` goes on with it")
    return Series(folder, members, vote)


def model_of(folder: Path) -> Path | None:
    """Return the folder of a run's best model, or the last of a run without validation rows; None where there is neither."""
    if not (folder / CONFIG).is_file():
        return None
    found = (path for which in ("best", "last") for path in _pointed(folder, which))
    return next((path for path in found if (path / "config.json").is_file()), None)


def _pointed(folder: Path, which: str) -> Iterator[Path]:
    """Yield where a run's best or last checkpoint may be: a link, or on systems without links what its JSON names."""
    yield folder / which
    with suppress(OSError, ValueError, KeyError, TypeError):
        step = json.loads((folder / f"{which}.json").read_text(encoding="utf-8"))["step"]
        yield folder / "checkpoints" / f"step-{step:08d}"
