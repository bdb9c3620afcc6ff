"""Checkpoints of a run: each is complete or absent, whatever ends the process while one is written.

    RUN/checkpoints/step-00001200/
        model.safetensors, config.json ...   the model, as this library and transformers load it
        training/state.json                  step, best value, place in metrics.jsonl ...
        training/*.safetensors               the optimizer's tensors, by the names of parameters
        MANIFEST.json                        size and SHA-256 of all the others; written last
    RUN/last.json, RUN/best.json             which checkpoint is the last, and which the best, and its metric
    RUN/last, RUN/best                       links to their folders

A checkpoint is written under a name that starts with a dot, forced to the disk, and renamed. Deleting is a rename first.

Of several processes each writes a part of the tensors into files of its own, and the first does the rest; any number of
processes, one too, reads what any other wrote.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from plainformer.checkpoint.spread import same_jobs, write_spread
from plainformer.errors import PlainformerError, TrainingError, said_by
from plainformer.parallel.gather import Gathered, Holding, Team
from plainformer.replacing import facts

log = logging.getLogger(__name__)
MANIFEST = "MANIFEST.json"
CARD = "README.md"
TRAINING = "training"
STATE = f"{TRAINING}/state.json"
_NAME = re.compile(r"step-(\d{8,})")
_OLD = ".tmp-old-"
Tensors = Mapping[str, Tensor]
Facts = dict[str, dict[str, Any]]  # of files, by their path within a checkpoint
Written = (
    Mapping[Path, dict[str, Any]] | None
)  # files that a process has written and forced to the disk, with their facts


class Files:
    """Everything that is done to files, so that a test can end the process after each single thing."""

    def make(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")

    def write_tensors(self, path: Path, tensors: Tensors) -> None:
        from safetensors.torch import save_file

        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)

    def call(self, save: Callable[[Path], Written], folder: Path) -> Written:
        """Let somebody else write into a folder."""
        return save(folder)

    def sync(self, path: Path) -> None:
        """Force a file, or a folder's list of names, to the disk."""
        if path.is_dir() and os.name == "nt":
            return
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file or folder another name at one stroke; a file that has it is replaced."""
        os.replace(path, target)

    def link(self, target: Path, path: Path) -> None:
        path.symlink_to(os.path.relpath(target, path.parent), target_is_directory=True)

    def remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is there and whole."""

    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Return what was saved as `kind`, {} where nothing was. They are mapped: what is not looked at is not read."""
        from safetensors.torch import load_file

        folder, found = self.path / TRAINING, dict[str, Tensor]()
        for path in sorted([*folder.glob(f"{kind}.safetensors"), *folder.glob(f"{kind}-*-of-*.safetensors")]):
            found |= load_file(path)
        return found


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: of the run.
        keep: how many are kept besides the last and the best; the one before the last always is.
        team: the processes of the run, all of which call `newest` and `save`; None for one alone.
    """

    def __init__(self, folder: Path, keep: int = 2, files: Files | None = None, team: Team | None = None) -> None:
        self.run, self.folder, self.keep = folder, folder / "checkpoints", max(keep, 1)
        self.files, self.team = files or Files(), team

    def _first(self, act: Callable[[], Any]) -> Any:
        """Return what the first process's `act` gives, to all."""
        return act() if self.team is None else self.team.first(act)

    def _all(self, act: Callable[[], Any]) -> list[Any]:
        """Return what the `act` of each process gives, to all."""
        return [act()] if self.team is None else self.team.together(act)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, complete or not, in order."""
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted(int(name[1]) for name in names if name is not None)

    # ---- when a run starts

    def newest(self) -> tuple[Saved | None, list[str]]:
        """Return the newest checkpoint that is whole, and a sentence for each newer one that is not.

        What an interrupted save left is removed. A damaged checkpoint gets another name, and is removed when the next
        one is saved. `last` and `best` are made to point where this checkpoint says.
        """
        self._first(self._clear)
        passed_over: list[str] = []
        for step in self._first(lambda: self.steps()[::-1]):
            path = self.path(step)
            cause = self._damage(path)
            if not cause:
                return self._first(partial(self._whole, path, step)), passed_over
            passed_over.append(f"{path.name} is passed over: {cause}")
            self._first(partial(self._put_aside, path))
        return None, passed_over

    def _whole(self, path: Path, step: int) -> Saved:
        saved = Saved(path, step, json.loads((path / STATE).read_text(encoding="utf-8")))
        self._point(step, saved.state.get("best"))
        return saved

    def _put_aside(self, path: Path) -> None:
        aside = self.folder / f".damaged-{path.name}"
        self.files.remove(aside)
        self.files.rename(path, aside)

    def _damage(self, path: Path) -> str:
        """Return what is wrong with a checkpoint; each process looks through some of its files."""
        if self.team is None:
            return damage(path)
        rank, count = self.team.rank, self.team.count
        return next((cause for cause in self.team.gather(damage(path, rank, count)) if cause), "")

    def _clear(self) -> None:
        """Remove what is left of an interrupted save, and take back a checkpoint that was to be replaced."""
        for path in self.folder.glob(f"{_OLD}*"):
            target = self.folder / path.name.removeprefix(_OLD)
            if not target.exists() and not damage(path):
                self.files.rename(path, target)
        for path in [*self.run.glob(".tmp-*"), *self.folder.glob(".tmp-*")]:
            self.files.remove(path)

    # ---- while it runs

    def save(
        self,
        step: int,
        save_model: Callable[[Path], Written],
        tensors: Mapping[str, Tensors | Holding],
        state: Mapping[str, Any],
    ) -> Path:
        """Write the checkpoint of a step, point `last` and `best` to it as `state` says, and delete old ones.

        Args:
            save_model: writes the model into a folder, and returns which files are done already; None: no more than written.
            tensors: what else is needed to go on, by kind: "optimizer", "ema", "weights". Of several processes, either each
                gives its shares, or the first one all.
            state: the rest, as JSON; `state["best"]` is None, or says the step, metric and value of the best.
        Raises:
            TrainingError: it could not be written; nothing of it is left, and the checkpoints from before are.
        """
        target = self.path(step)
        temporary = self.folder / f".tmp-{target.name}"
        try:
            self._first(lambda: self._begin(temporary))
            written = self._written(temporary, lambda: self.files.call(save_model, temporary))
            for kind, named in tensors.items():
                written |= self._written(temporary, partial(self._write, temporary / TRAINING, kind, named))
            before = self._first(lambda: self._finish(temporary, target, {**state, "step": step}, written))
        except (OSError, SafetensorError, PlainformerError) as error:
            raise self._cannot_save(step, temporary, error) from error
        self._first(lambda: self._delete_old(before, step))
        return target

    def _begin(self, temporary: Path) -> None:
        self.files.make(self.folder)
        self.files.remove(temporary)
        self.files.make(temporary / TRAINING)

    def _written(self, folder: Path, write: Callable[[], Written]) -> Facts:
        """Let each process write; return the files that are forced to the disk already."""
        done: dict[Path, dict[str, Any]] = {}
        for files in self._all(write):
            done |= files or {}
        return {path.relative_to(folder).as_posix(): about for path, about in done.items()}

    def _write(self, folder: Path, kind: str, named: Tensors | Holding) -> Written:
        if self.team is not None and isinstance(named, Holding):
            gathered = Gathered(self.team, named)
            return write_spread(gathered, same_jobs(list(gathered)), folder, kind)
        if self.team is None or self.team.is_first:
            self.files.write_tensors(folder / f"{kind}.safetensors", named)  # type: ignore[arg-type]  # not a Holding
        return None

    def _finish(self, folder: Path, target: Path, state: Mapping[str, Any], written: Facts) -> Path:
        """Make what is written a checkpoint; return what is to be deleted."""
        self.files.write(folder / STATE, as_json(state))
        for path in _all_files(folder):
            if path.relative_to(folder).as_posix() not in written:
                self.files.sync(path)
        names = [path.relative_to(folder).as_posix() for path in _all_files(folder)]
        contents = {name: written.get(name) or facts(folder / name) for name in names}
        self.files.write(folder / MANIFEST, as_json(contents))
        self.files.sync(folder / MANIFEST)
        for inner in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
            self.files.sync(inner)
        before = self._set_aside(target)
        self.files.rename(folder, target)
        self.files.sync(self.folder)
        self._point(state["step"], state.get("best"))
        self.files.sync(self.run)
        return before

    def _delete_old(self, before: Path, step: int) -> None:
        self.files.remove(before)
        self._retain(step)

    def _point(self, step: int, best: Mapping[str, Any] | None) -> None:
        """Make `last` and `best` what a checkpoint says."""
        self._point_one("last", step, {"step": step})
        if best is not None and self.path(best["step"]).is_dir():
            self._point_one("best", best["step"], best)
        else:
            for name in ("best", "best.json"):
                self.files.remove(self.run / name)

    def _point_one(self, name: str, step: int, about: Mapping[str, Any]) -> None:
        target = self.path(step)
        said = as_json({**about, "checkpoint": target.relative_to(self.run).as_posix()})
        path, temporary = self.run / f"{name}.json", self.run / f".tmp-{name}.json"
        if not path.is_file() or path.read_bytes() != said.encode():
            self.files.write(temporary, said)
            self.files.sync(temporary)
            if path.is_dir():
                self.files.remove(path)
            self.files.rename(temporary, path)
        link, temporary = self.run / name, self.run / f".tmp-{name}"
        if link.is_symlink() and link.resolve() == target.resolve():
            return
        self.files.remove(temporary)
        try:
            self.files.link(target, temporary)
            self.files.rename(temporary, link)
        except (OSError, NotImplementedError) as error:  # a file system without links
            log.info("no link %s: %s; %s.json names its folder", name, error, name)

    def _retain(self, step: int) -> None:
        """Delete what neither `keep` nor a way back needs: of the last and of the one before, their best stay too."""
        steps = [known for known in self.steps() if known <= step]
        kept = {*steps[-1 - self.keep :]}
        for known in steps[-2:]:
            state = self.path(known) / STATE
            best = json.loads(state.read_text(encoding="utf-8")).get("best") if state.is_file() else None
            kept |= {best["step"]} if best else set()
        for known in set(self.steps()) - kept:
            self.files.remove(self._set_aside(self.path(known)))
        for path in self.folder.glob(".damaged-*"):
            self.files.remove(path)

    def _set_aside(self, path: Path) -> Path:
        """Give a folder the name of one that is to be deleted: half of one never has a checkpoint's name."""
        aside = self.folder / f"{_OLD}{path.name}"
        self.files.remove(aside)
        if path.exists():
            self.files.rename(path, aside)
        return aside

    def _cannot_save(self, step: int, temporary: Path, error: Exception) -> PlainformerError:
        try:
            if self.team is None or self.team.is_first:
                self.files.remove(temporary)
        except OSError:  # the next start removes it
            log.warning("%s is left", temporary)
        last = next((f"; {self.path(known).name} is the last good one" for known in self.steps()[::-1]), "")
        return TrainingError(
            f"the checkpoint of step {step} cannot be saved in {self.folder}: {said_by(error)}{last}",
            "see that there is space and permission, then give the same command again: the run continues",
        )


def damage(folder: Path, part: int = 0, parts: int = 1) -> str:
    """Return what is wrong with a checkpoint, "" if every file is as its manifest says.

    `part` of `parts`: look at the names and sizes of all files, and into a part of them.
    """
    try:
        contents: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    if not isinstance(contents, dict) or not all(isinstance(facts, dict) for facts in contents.values()):
        return f"{MANIFEST} does not say what each file is"
    for number, (name, expected) in enumerate(contents.items()):
        if name == CARD:  # a model card may be edited
            continue
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected.get("bytes"):
            return f"{name} has {path.stat().st_size:,} bytes, not {expected.get('bytes')}"
        if number % parts == part and facts(path) != expected:
            return f"{name} is not what was written: its SHA-256 differs"
    return "" if STATE in contents else f"{STATE} is missing"


def as_json(content: object) -> str:
    """Return JSON that is the same for the same content; a float is read back as the same number."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _all_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
