"""The folder of a run as a reference to its best model, and that of a run for each of several folds to all of theirs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from plainformer.errors import CheckpointError

CONFIG, SERIES = "config.yaml", "folds.json"
VOTES = ("mean", "majority")


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
        if vote not in VOTES or not isinstance(count, int):
            raise ValueError(f"its vote is {vote!r}, and its count {count!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / SERIES} cannot be read: {error}", "train again: the runs are kept") from None
    there = [member for member in members if model_of(member) is not None]
    if found.get("ended") != "done" or len(there) < count:
        what = f"{str(folder)!r} is a run of {count} folds that is not finished: {len(there)} of their models are there"
        raise CheckpointError(what, f"`plainformer train {folder}` goes on with it")
    return Series(folder, members, vote)


def model_of(folder: Path) -> Path | None:
    """Return the folder of a run's best model, or the last of a run without validation rows; None where there is neither.

    Raises:
        CheckpointError: the run has one, and its folder is not there, or what names it is damaged.
    """
    if not (folder / CONFIG).is_file():
        return None
    found = (pointed(folder, which) for which in ("best", "last"))
    return next((path for path in found if path is not None and (path / "config.json").is_file()), None)


def pointed(folder: Path, which: str) -> Path | None:
    """Return the folder of a run's best or last checkpoint: a link, or where there are none what its JSON names; None of a run
    that has none.

    Raises:
        CheckpointError: it is not there, or what names it is damaged.
    """
    link, named = folder / which, folder / f"{which}.json"
    if link.is_dir():
        return link
    try:
        step = json.loads(named.read_text(encoding="utf-8"))["step"]
        found = folder / "checkpoints" / f"step-{step:08d}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{named} is damaged: {error}", f"give a folder of {folder / 'checkpoints'}") from None
    if not found.is_dir():
        raise CheckpointError(
            f"{named} names {found}, which is not there", f"give a folder of {folder / 'checkpoints'}"
        )
    return found
