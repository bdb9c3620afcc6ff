"""A run folder as what is evaluated: its best model, and the rows of one of its own sides."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plainformer.checkpoint.run_folders import is_series, pointed, series_of
from plainformer.config.building import read_config
from plainformer.config.training import TrainConfig
from plainformer.data.columns import mapped
from plainformer.data.sides import Side, sides_of
from plainformer.errors import InputError, PlainformerError, UsageError, did_you_mean, opt
from plainformer.evaluate.kept import INFO, is_kept
from plainformer.evaluate.ledger import Looks, card_section
from plainformer.evaluation.source import Source, unit_of
from plainformer.replacing import write_whole
from plainformer.train.card import CARD
from plainformer.train.objectives import objective_class
from plainformer.training.folder import CONFIG, DATA

if TYPE_CHECKING:
    from plainformer.evaluation.exams.base import Exam

EVALUATIONS = "evaluations"
FOLDS = "folds"
_SECTION = "## Test set"


@dataclass(frozen=True)
class RunRef:
    """A run.

    Attributes:
        folder: of it. model: the folder of its best model, else of its last. which: "best" or "last"; "folds" of a cross
            validation, whose models answer together: then `model` is its folder.
        config: with every default written out.
    """

    folder: Path
    model: Path
    which: str
    config: TrainConfig

    @property
    def chosen_by(self) -> str | None:
        """Return the name of the metric that chose the best model; None of another model."""
        if self.which != "best":
            return None
        try:
            return str(json.loads((self.folder / "best.json").read_text(encoding="utf-8"))["metric"])
        except (OSError, ValueError, KeyError, TypeError):  # `pointed` finds the model by its link
            return None

    def side(self, name: str) -> Side:
        """Return the rows of a side. Raises UsageError where the run has no such side."""
        if self.which == FOLDS and name != "test":
            what = f"{opt('side', name)}: the models of all folds have learnt from these rows of {self.folder}"
            raise UsageError(what, f"give {opt('side', 'test')}, or DATA; folds.json has the figures of rows held out")
        found = sides_of(self.config.data, objective_class(self.config.objective).columns).sides
        if name not in found:
            hint = did_you_mean(name, found, few=False) or f"it has {', '.join(found)}"
            raise UsageError(f"{opt('side', name)}: the run in {self.folder} has no such rows", f"{hint}; or give DATA")
        self._check_unchanged(name, found[name])
        return found[name]

    def _check_unchanged(self, name: str, side: Side) -> None:
        """Refuse rows of a side that are not those of the training: among them may be some that the model has learnt from."""
        try:
            trained = json.loads((self.folder / DATA).read_text(encoding="utf-8"))["sides"][name]["rows"]
        except (OSError, ValueError, KeyError, TypeError):  # of a cross validation, or a run that has not begun
            return
        if trained != side.digest():
            what = (
                f"the {name} rows of {self.folder} are no longer those that it was trained with: its data has changed"
            )
            raise UsageError(what, "restore the data, or give DATA")

    def source(self, exam: type[Exam], side: Side, name: str, unit: str | None, limit: int | None) -> Source:
        """Return a side's rows as those of an exam, with the run's own columns and groups."""
        data = self.config.data
        columns, _ = mapped((row for _, row in side), exam.columns, data.columns, f"{self.folder.name}'s {name}")
        split = data.split
        group = unit if unit is not None else split.group if split is not None else None
        targets = tuple(column.name for column in exam.columns if column.target)
        of = unit_of(exam, columns, group)
        said = f"{name} rows of {self.folder.name}"
        return Source(said, side.rows, columns, of, targets, side=name, part=side, limit=limit)

    def kept(self, name: str, key: str) -> Path:
        """Return the folder of an evaluation of this run."""
        return self.folder / EVALUATIONS / f"{name}-{self.which}-{key[:10]}"

    def card(self, looks: Looks) -> None:
        """Write into the model cards of the run that, and how often, its test set was looked at."""
        series = series_of(self.folder) if self.which == FOLDS else None
        runs = (self.folder,) if series is None else series.members
        for path in {(run / which).resolve() / CARD for run in runs for which in ("best", "last")}:
            try:
                before = (
                    path.read_text(encoding="utf-8").partition(f"\n{_SECTION}")[0].rstrip("\n")
                    if path.is_file()
                    else ""
                )
                write_whole(path, f"{before}\n\n{card_section(looks)}".lstrip("\n"))
            except OSError as error:
                what = f"the look is in the ledger, and cannot be written into {path}: {error.strerror or error}"
                raise PlainformerError(
                    what, "make the run's folder writable, and give the same command again"
                ) from None


def write_cards(run: RunRef, looks: Looks) -> None:
    """Write all looks at a test set into the cards of the run that looks now, and of those that looked before, where they are.

    Raises:
        PlainformerError: the run's own card cannot be written.
    """
    run.card(looks)
    for folder in {look.run for look in looks.all} - {str(run.folder.resolve())}:
        try:
            other = run_of(folder)
            if other is not None and other.folder.is_absolute():
                other.card(looks)
        except PlainformerError:
            continue  # it is another's by now, or gone


def run_of(ref: str | os.PathLike[str]) -> RunRef | None:
    """Return the run of a folder; None where it is none.

    Raises:
        UsageError: the run has no model yet.
    """
    folder = Path(ref).expanduser()
    try:
        is_run = (folder / CONFIG).is_file() and not (folder / "config.json").is_file()
    except (OSError, ValueError):
        return None
    if not is_run:
        return None
    if is_series(folder):
        return RunRef(folder, folder, FOLDS, read_config(folder / CONFIG))
    for which in ("best", "last"):
        model = pointed(folder, which)
        if model is not None:
            return RunRef(folder, model.resolve(), which, read_config(folder / CONFIG))
    raise UsageError(f"the run in {folder} has no model yet", "train it first; its folder gets best and last")


def check_output(folder: Path, *, given: bool) -> None:
    """Refuse an output folder that holds something else, before anything runs; `given`: the caller named it."""
    try:
        other = folder.exists() and not is_kept(folder) and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise UsageError(f"{opt('output', str(folder))}: {error.strerror or error}", "give another folder") from None
    if other and given:
        raise UsageError(f"{opt('output', str(folder))} is there, and is not an evaluation", "give another folder")
    if other:
        what = f"{folder} is there without its {INFO}: it was changed after it was written"
        raise InputError(what, "remove the folder, and give the same command again")
