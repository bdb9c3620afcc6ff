"""What is compared: evaluations found in folders, the runs of one thing grouped, their examples in one order.

Shapes: N examples, M numbers of each.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plainformer.config.yaml import read_yaml
from plainformer.errors import InputError, UsageError, opt
from plainformer.evaluate.base import Numbers, Scorer
from plainformer.evaluate.kept import INFO, Kept, is_kept

SIDES = ("validation", "test")
EVALUATIONS = "evaluations"  # folder of a run
SERIES = "folds.json"  # of a k-fold run
HELD_OUT = "held_out"  # the side of a fold's run that the fold is
_NAMED = re.compile(r"([^=/\\]+)=(.+)", re.S)
_NOT_THE_THING = ("seed", "folder")  # of a configuration: what runs of one thing differ in


@dataclass(frozen=True)
class Part:
    """A kept evaluation with its examples in the order of their keys, so that the data's order has no effect.

    Attributes:
        trained: how many rows its model was trained on, where a fold's run says so.
    """

    kept: Kept
    trained: int | None = None

    @property
    def scorer(self) -> Scorer:
        """Return what it was scored with."""
        return self.kept.scorer

    @cached_property
    def references(self) -> npt.NDArray[np.uint64]:
        """Return a hash of what is right for each example, (N,), in the data's order."""
        found = np.empty(len(self.kept), np.uint64)
        for place, one in enumerate(self.kept.predictions()):
            text = json.dumps(one.get("reference"), sort_keys=True)
            found[place] = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        return found

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """Return the places of the examples, sorted by key; of copies, by what is right for them."""
        keys = self.kept.keys
        return np.lexsort((self.references, keys[:, 1], keys[:, 0]))

    @cached_property
    def keys(self) -> npt.NDArray[np.uint64]:
        """Return the keys in that order, (N, 2)."""
        return np.asarray(self.kept.keys)[self.order]

    @cached_property
    def rows(self) -> Numbers:
        """Return the scorer's rows in that order, (N, M)."""
        return np.asarray(self.kept.rows)[self.order]

    @cached_property
    def units(self) -> npt.NDArray[np.int64]:
        """Return the unit of each example in that order, (N,), numbered as they come."""
        units = np.asarray(self.kept.units)[self.order]
        _, first, inverse = np.unique(units, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[inverse.reshape(-1)]


@dataclass(frozen=True)
class Run:
    """One run, or one evaluation.

    Attributes:
        path: as given. parts: its evaluation; of a k-fold run, that of each held-out fold.
        config: of training, where it is known. seed: of training.
    """

    path: Path
    parts: tuple[Part, ...]
    config: dict[str, Any] | None = None
    seed: Any = None

    @property
    def task(self) -> str:
        """Return what was evaluated."""
        return str(self.parts[0].kept.info.get("task", ""))


@dataclass(frozen=True)
class Group:
    """One thing that is compared: a run, or runs of one configuration that differ by their seed."""

    name: str
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def folds(self) -> int:
        """Return how many folds each run has; 1 if it is not a k-fold run."""
        return len(self.runs[0].parts)

    @property
    def first(self) -> Part:
        """Return its first evaluation."""
        return self.runs[0].parts[0]

    def rows(self) -> list[Numbers]:
        """Return the rows of each run, (N, M), those of all folds together."""
        return [np.concatenate([part.rows for part in run.parts]) for run in self.runs]

    def units(self) -> npt.NDArray[np.int64]:
        """Return the unit of each row, (N,): a unit is within one fold."""
        found: list[npt.NDArray[np.int64]] = []
        for part in self.runs[0].parts:
            found.append(part.units + (int(found[-1].max(initial=-1)) + 1 if found else 0))
        return np.concatenate(found)


def gather(what: Sequence[str | Path], side: str = "validation") -> list[Group]:
    """Return what is compared, in the order given.

    Args:
        what: folders of runs or evaluations. "NAME=FOLDER" gives it a name; "NAME=FOLDER,FOLDER" are runs of one thing with
            other seeds. Without it, runs whose configurations differ by the seed alone are one thing.
        side: of a run: "validation" or "test".
    Raises:
        UsageError: nothing is given; a name twice; a folder twice. InputError: a folder that holds no such evaluation.
    """
    if side not in SIDES:
        raise UsageError(f"{opt('side', side)} is unknown", f"give {' or '.join(SIDES)}")
    if not what:
        raise UsageError("nothing to compare", "give folders of runs or evaluations")
    named: list[tuple[str, list[Run]]] = []
    for one in what:
        name, paths = _named(one)
        named.append((name, [read_run(path, side) for path in paths]))
    _refuse_twice([run.path for _, runs in named for run in runs], "folder")
    groups = _grouped(named)
    _refuse_twice([group.name for group in groups], "name")
    return groups


def _named(one: str | Path) -> tuple[str, list[Path]]:
    match = _NAMED.fullmatch(str(one)) if isinstance(one, str) and not Path(one).exists() else None
    if match is None:
        return "", [Path(one)]
    listed = match[2] if Path(match[2]).exists() else ""
    return match[1], [Path(listed)] if listed else [Path(part) for part in match[2].split(",")]


def _refuse_twice(values: Sequence[Any], noun: str) -> None:
    for place, value in enumerate(values):
        if value in values[:place]:
            fix = "give each once" if noun == "folder" else "name them: NAME=FOLDER"
            raise UsageError(f"the {noun} {str(value)!r} is given twice", fix)


def _grouped(named: Sequence[tuple[str, list[Run]]]) -> list[Group]:
    """Return groups; runs without a name and of one configuration but for the seed are one."""
    groups: list[Group] = []
    for name, runs in named:
        same = next((place for place, one in enumerate(groups) if not name and _one_thing(one, runs[0])), None)
        if same is None:
            groups.append(Group(name or _short(runs[0].path), tuple(runs)))
        else:
            groups[same] = Group(groups[same].name, (*groups[same].runs, runs[0]), ("alike",))
    return [Group(_common(one) if one.notes else one.name, one.runs, _seed_notes(one)) for one in groups]


def _common(group: Group) -> str:
    """Return a name for runs of one thing: "full" of full-0 and full-1, the first one's name where they share none."""
    names = [_short(run.path) for run in group.runs]
    alike = next(
        (n for n, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), min(map(len, names))
    )
    shared = names[0][:alike]
    return re.sub(r"[-_.]?(seed)?[-_.]?\d*$", "", shared) or group.name


def _one_thing(group: Group, run: Run) -> bool:
    first = group.runs[0]
    alike = first.config is not None and first.config == run.config and len(first.parts) == len(run.parts)
    return alike and run.seed not in [one.seed for one in group.runs] and group.name == _short(first.path)


def _short(path: Path) -> str:
    """Return a name for a folder: of an evaluation within a run, the run's."""
    resolved = path.resolve()
    return resolved.parent.parent.name if resolved.parent.name == EVALUATIONS else resolved.name


def _seed_notes(group: Group) -> tuple[str, ...]:
    if len(group.runs) < 2:
        return ()
    listed = ", ".join(str(run.path) for run in group.runs)
    why = "their configurations differ by the seed alone" if group.notes else "as given"
    return (
        f"{_common(group) if group.notes else group.name}: {len(group.runs)} runs are taken as seeds of one thing, {why}: {listed}",
    )


# ---- folders -------------------------------------------------------------------------------------------------------------


def read_run(path: Path, side: str) -> Run:
    """Return a run's evaluation on a side of its data, or the evaluation in a folder. Raises InputError."""
    if is_kept(path):
        kept = Kept(path)
        home = next((one for one in path.resolve().parents if (one / "config.yaml").is_file()), None)
        return Run(path, (Part(kept),), *_config(home))
    if folds := fold_folders(path):
        if side != SIDES[0]:
            what = f"{path} is a k-fold run, and is compared by the rows that were held out of each fold"
            raise UsageError(what, f"leave {opt('side', side)} out")
        return Run(path, tuple(Part(_evaluation(fold, HELD_OUT), _trained(fold)) for fold in folds), *_config(path))
    return Run(path, (Part(_evaluation(path, side)),), *_config(path))


def fold_folders(run: Path) -> list[Path]:
    """Return the folders of a k-fold run's folds, in their order: those that folds.json names, else fold-1, fold-2 ...

    [] of another run. Before a series is done folds.json names none, and a search's folds have no such folders yet.
    """
    try:
        named = json.loads((run / SERIES).read_text(encoding="utf-8"))["folds"]
        found = [run / one["run"] for one in named]
    except FileNotFoundError:
        found = []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run / SERIES} is damaged: {error}", "train again: the runs are kept") from None
    if found:
        return found
    numbered = [(path.name.removeprefix("fold-"), path) for path in run.glob("fold-*") if path.is_dir()]
    return [path for number, path in sorted((int(text), path) for text, path in numbered if text.isdecimal()) if number]


def _trained(run: Path) -> int | None:
    try:
        data = json.loads((run / "data.json").read_text(encoding="utf-8"))
        return int(data["split"]["sides"]["train"]["rows"]) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _evaluation(run: Path, side: str) -> Kept:
    """Return the evaluation of a side that a run keeps: one without a temperature, if there is one; of the same kind the newest."""
    found = [Kept(one.parent) for one in sorted((run / EVALUATIONS).glob("*/evaluation.json"))]
    of_side = [kept for kept in found if side_of(kept) == side]
    of_side = [kept for kept in of_side if kept.info.get("temperature") in (None, 1.0)] or of_side
    ways = [(kept.info.get("options"), kept.info.get("scorer")) for kept in of_side]
    if ways and all(way == ways[0] for way in ways):  # asked for in one way: the best model as it was, and as it is
        return max(of_side, key=lambda kept: (kept.folder / INFO).stat().st_mtime_ns)
    if of_side:
        listed = ", ".join(str(one.folder) for one in of_side)
        raise UsageError(f"{run} has {len(of_side)} evaluations of the {side} side: {listed}", "give the folder of one")
    if not run.exists():
        raise InputError(f"{str(run)!r} is not there", "check the path")
    other = f"; it has one of: {', '.join(sorted({side_of(one) or 'other data' for one in found}))}" if found else ""
    if side == HELD_OUT:
        what = f"{run} keeps no answers to the rows that were held out of it{other}"
        raise InputError(what, "the k-fold run is not done: begin it again, and it goes on")
    what = f"{run} keeps no evaluation of the {side} side{other}"
    with_side = "" if side == "validation" else f", with {opt('side', side)}"
    raise InputError(what, f"evaluate the run first: `plainformer evaluate {run}`{with_side}")


def side_of(kept: Kept) -> str:
    """Return which side of a run an evaluation is of; "" for other data."""
    data = kept.info.get("data")
    return str((data.get("side") if isinstance(data, dict) else None) or kept.info.get("side") or "")


def unit_of(kept: Kept) -> str:
    """Return what people call an evaluation's unit."""
    unit = kept.info.get("unit")
    return str((unit.get("name") if isinstance(unit, dict) else unit) or "row")


def _config(run: Path | None) -> tuple[dict[str, Any] | None, Any]:
    """Return a run's configuration without what runs of one thing differ in, and its seed."""
    if run is None or not (run / "config.yaml").is_file():
        return None, None
    data = dict(read_yaml(run / "config.yaml").data)
    return {name: value for name, value in data.items() if name not in _NOT_THE_THING}, data.get("seed", 0)
