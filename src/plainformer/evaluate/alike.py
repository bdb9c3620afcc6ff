"""Whether two evaluations can be compared: the same task and scorer, the same examples, the same right answers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plainformer.errors import UsageError, opt, plural
from plainformer.evaluate.gathered import Group, Part, Run, unit_of
from plainformer.evaluate.kept import Kept

_SHOWN = 3  # examples that a message names


def check_alike(groups: list[Group]) -> None:
    """Refuse groups that cannot be compared with the first. Raises UsageError, which names what differs."""
    first = groups[0].runs[0]
    for group in groups:
        for run in group.runs:
            if run is not first:
                check_runs(first, run)


def check_runs(first: Run, other: Run) -> None:
    """Refuse a run that cannot be compared with another. Raises UsageError."""
    if len(first.parts) != len(other.parts):
        sizes = [f"{run.path} has {plural(len(run.parts), 'fold')}" for run in (first, other)]
        raise UsageError(" and ".join(sizes), "compare runs with the same folds, or their evaluations on one test set")
    for place, (one, two) in enumerate(zip(first.parts, other.parts, strict=True), start=1):
        where = f"fold {place} of " if len(first.parts) > 1 else ""
        names = f"{where}{first.path} and {other.path}"
        _check_scorers(one.kept, two.kept, names)
        _check_examples(one, two, names)


def _check_scorers(one: Kept, two: Kept, names: str) -> None:
    tasks = one.info.get("task"), two.info.get("task")
    if tasks[0] != tasks[1] or one.info["scorer"]["name"] != two.info["scorer"]["name"]:
        what = f"{names} are of different tasks: {tasks[0]} and {tasks[1]}"
        raise UsageError(what, f"compare runs of one task, or show each task by itself: {opt('separate', True)}")
    settings = one.info["scorer"].get("settings", {}), two.info["scorer"].get("settings", {})
    for name in sorted({*settings[0], *settings[1]}):
        values = settings[0].get(name), settings[1].get(name)
        if values[0] != values[1]:
            what = f"{names} were scored with different {name}: {_cut(values[0])} and {_cut(values[1])}"
            raise UsageError(what, "evaluate both with the same")


def _check_examples(one: Part, two: Part, names: str) -> None:
    if one.keys.shape != two.keys.shape or not np.array_equal(one.keys, two.keys):
        _refuse_examples(one, two, names)
    right, other = one.references[one.order], two.references[two.order]
    if not np.array_equal(right, other):
        places = np.flatnonzero(right != other)
        shown = _places(one, one.order[places])
        what = f"{names} have different right answers for {plural(len(places), 'example')}: {shown}"
        raise UsageError(what, "evaluate both on the same file")
    if not np.array_equal(one.units, two.units):
        units = " and ".join(unit_of(part.kept) for part in (one, two))
        raise UsageError(
            f"{names} were evaluated with different units: {units}", f"evaluate both with the same {opt('unit')}"
        )


def _refuse_examples(one: Part, two: Part, names: str) -> None:
    """Say which examples only one of two evaluations has."""
    mine, theirs = ({tuple(key) for key in part.keys.tolist()} for part in (one, two))
    said = []
    for part, missing in ((one, mine - theirs), (two, theirs - mine)):
        if missing:
            places = [place for place, key in enumerate(part.keys.tolist()) if tuple(key) in missing]
            examples = _places(part, part.order[places])
            said.append(f"{plural(len(missing), 'example')} only in {part.kept.folder} ({examples})")
    if not said:
        said = [f"{len(one.keys):,} and {len(two.keys):,} examples, some more often in one than in the other"]
    raise UsageError(f"{names} are of different data: {'; '.join(said)}", "evaluate both on the same file")


def _places(part: Part, numbers: npt.NDArray[np.int64]) -> str:
    """Return where the first of some examples are in the data, for a message."""
    wanted = set(np.sort(numbers)[:_SHOWN].tolist())
    found = [str(one.get("place", number)) for number, one in enumerate(part.kept.predictions()) if number in wanted]
    return ", ".join(found) + (", ..." if len(numbers) > _SHOWN else "")


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
