"""Checkpoints of a run: each is complete or absent, whatever ends the process while one is written.

    RUN/checkpoints/step-00001200/
        model.safetensors, config.json ...   the model, as this library and transformers load it
        training/state.json                  step, best value, place in metrics.jsonl ...
        training/*.safetensors               the optimizer's tensors, by the names of parameters
        MANIFEST.json                        size and SHA-256 of all the others; written last
    RUN/last.json, RUN/best.json             which checkpoint is the last, and which the best, and its metric
    RUN/last, RUN/best                       links to their folders

A checkpoint is written under a name that starts with a dot, forced to the disk, and renamed. Deleting is a rename first.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from plainformer.errors import PlainformerError, TrainingError

log = logging.getLogger(__name__)
MANIFEST = "MANIFEST.json"
CARD = "README.md"
TRAINING = "training"
STATE = f"{TRAINING}/state.json"
_NAME = re.compile(r"step-(\d{8,})")
_OLD = ".tmp-old-"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota, a limit on the size of files
Tensors = Mapping[str, Tensor]


class Files:
    """Everything that is done to files, so that a test can end the process after each single thing."""

    def make(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")

    def write_tensors(self, path: Path, tensors: Tensors) -> None:
        from safetensors.torch import save_file

        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)

    def call(self, save: Callable[[Path], None], folder: Path) -> None:
        """Let somebody else write into a folder."""
        save(folder)

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
        """Return what was saved as `kind`, {} where nothing was."""
        from safetensors.torch import load_file

        path = self.path / TRAINING / f"{kind}.safetensors"
        return load_file(path) if path.is_file() else {}


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: of the run.
        keep: how many are kept besides the last and the best; the one before the last always is.
    """

    def __init__(self, folder: Path, keep: int = 2, files: Files | None = None) -> None:
        self.run, self.folder, self.keep = folder, folder / "checkpoints", max(keep, 1)
        self.files = files or Files()

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
        self._clear()
        passed_over: list[str] = []
        for step in reversed(self.steps()):
            path = self.path(step)
            cause = damage(path)
            if not cause:
                saved = Saved(path, step, json.loads((path / STATE).read_text(encoding="utf-8")))
                self._point(saved.step, saved.state.get("best"))
                return saved, passed_over
            passed_over.append(f"{path.name} is passed over: {cause}")
            aside = self.folder / f".damaged-{path.name}"
            self.files.remove(aside)
            self.files.rename(path, aside)
        return None, passed_over

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
        save_model: Callable[[Path], None],
        tensors: Mapping[str, Tensors],
        state: Mapping[str, Any],
    ) -> Path:
        """Write the checkpoint of a step, point `last` and `best` to it as `state` says, and delete old ones.

        Args:
            save_model: writes the model into a folder.
            tensors: what else is needed to go on, by kind: "optimizer", "ema", "weights".
            state: the rest, as JSON; `state["best"]` is None, or says the step, metric and value of the best.
        Raises:
            TrainingError: it could not be written; nothing of it is left, and the checkpoints from before are.
        """
        target = self.path(step)
        temporary = self.folder / f".tmp-{target.name}"
        try:
            self.files.make(self.folder)
            self.files.remove(temporary)
            self._write(temporary, save_model, tensors, {**state, "step": step})
            before = self._set_aside(target)
            self.files.rename(temporary, target)
            self.files.sync(self.folder)
            self._point(step, state.get("best"))
            self.files.sync(self.run)
        except (OSError, SafetensorError, PlainformerError) as error:
            raise self._cannot_save(step, temporary, error) from error
        self.files.remove(before)
        self._retain(step)
        return target

    def _write(
        self, folder: Path, save_model: Callable[[Path], None], tensors: Mapping[str, Tensors], state: Mapping[str, Any]
    ) -> None:
        self.files.make(folder / TRAINING)
        self.files.call(save_model, folder)
        for kind, named in tensors.items():
            self.files.write_tensors(folder / TRAINING / f"{kind}.safetensors", named)
        self.files.write(folder / STATE, as_json(state))
        for path in _all_files(folder):
            self.files.sync(path)
        contents = {path.relative_to(folder).as_posix(): _facts(path) for path in _all_files(folder)}
        self.files.write(folder / MANIFEST, as_json(contents))
        self.files.sync(folder / MANIFEST)
        for inner in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
            self.files.sync(inner)

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
            self.files.remove(temporary)
        except OSError:  # the next start removes it
            log.warning("%s is left", temporary)
        last = next((f"; {self.path(known).name} is the last good one" for known in self.steps()[::-1]), "")
        return TrainingError(
            f"the checkpoint of step {step} cannot be saved in {self.folder}: {said_by(error)}{last}",
            "see that there is space and permission, then give the same command again: the run continues",
        )


def said_by(error: Exception) -> str:
    """Return the cause of a failed write in words."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"the disk is full ({error.strerror})"
    if isinstance(error, PlainformerError):
        return error.what
    text = str(error)
    return f"the disk is full ({text})" if "No space left" in text else text


def damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint, "" if every file is as its manifest says."""
    try:
        contents: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    if not isinstance(contents, dict) or not all(isinstance(facts, dict) for facts in contents.values()):
        return f"{MANIFEST} does not say what each file is"
    for name, expected in contents.items():
        if name == CARD:  # a model card may be edited
            continue
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected.get("bytes"):
            return f"{name} has {path.stat().st_size:,} bytes, not {expected.get('bytes')}"
        if _facts(path) != expected:
            return f"{name} is not what was written: its SHA-256 differs"
    return "" if STATE in contents else f"{STATE} is missing"


def as_json(content: object) -> str:
    """Return JSON that is the same for the same content; a float is read back as the same number."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _all_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
