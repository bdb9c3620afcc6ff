"""A checkpoint is complete or absent: the process is ended after every single thing that is done to a file."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plainformer.errors import TrainingError
from plainformer.train.checkpoint import MANIFEST, Checkpoints, Files, Saved, damage


class Crash(BaseException):
    """The process ends here."""


class Quick(Files):
    """Does not wait for the disk."""

    def sync(self, path: Path) -> None:
        assert path.exists()


class Crashing(Quick):
    """Ends after `left` operations, or in the middle of the next one; what was not forced to the disk by then is lost."""

    def __init__(self, left: int, middle: bool) -> None:
        self.left, self.middle, self.written, self.done = left, middle, set[Path](), 0

    def count(self, name: str, *given: Any) -> Any:
        if self.done == self.left:
            if self.middle:
                self.half(name, *given)
            self.lose()
            raise Crash
        self.done += 1
        done = getattr(Quick, name)(self, *given)
        path = given[0] if name != "call" else given[1]
        if name in ("write", "write_tensors", "call"):
            self.written |= {path, *path.rglob("*")} if path.is_dir() else {path}
        elif name == "sync":
            self.written.discard(path)
        return done

    def half(self, name: str, *given: Any) -> None:
        if name in ("write", "write_tensors"):
            getattr(Files, name)(self, *given)
            path: Path = given[0]
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif name == "call":
            (given[1] / "config.json").write_text("{")
        elif name == "remove" and given[0].is_dir() and not given[0].is_symlink():
            (given[0] / MANIFEST).unlink(missing_ok=True)

    def lose(self) -> None:
        """The power fails: files that were not synced are empty."""
        for path in self.written:
            if path.is_file():
                path.write_bytes(b"")

    make = lambda self, *given: self.count("make", *given)  # noqa: E731
    write = lambda self, *given: self.count("write", *given)  # noqa: E731
    write_tensors = lambda self, *given: self.count("write_tensors", *given)  # noqa: E731
    call = lambda self, *given: self.count("call", *given)  # noqa: E731
    sync = lambda self, *given: self.count("sync", *given)  # noqa: E731
    rename = lambda self, *given: self.count("rename", *given)  # noqa: E731
    link = lambda self, *given: self.count("link", *given)  # noqa: E731
    remove = lambda self, *given: self.count("remove", *given)  # noqa: E731


def write_model(step: int) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"step": step}))
        (folder / "model.safetensors").write_bytes(bytes([step]) * 100)

    return save


def save(checkpoints: Checkpoints, step: int, best: int | None) -> None:
    """A run whose `best` is that of a step."""
    state = {"best": None if best is None else {"step": best, "metric": "loss", "value": 1 / 3}, "seen": [0.1 + 0.2]}
    checkpoints.save(step, write_model(step), {"optimizer": {"a": torch.full((3,), float(step))}}, state)


def check(run: Path, saved: Saved | None) -> None:
    """All that a resumed run reads is of one step."""
    assert saved is not None
    assert json.loads((saved.path / "config.json").read_text()) == {"step": saved.step}
    assert saved.tensors("optimizer")["a"].tolist() == [saved.step] * 3
    assert saved.tensors("ema") == {}
    assert saved.state["seen"] == [0.1 + 0.2] and saved.state["step"] == saved.step
    assert json.loads((run / "last.json").read_text())["step"] == saved.step
    assert json.loads((run / "last" / "config.json").read_text()) == {"step": saved.step}
    best = saved.state["best"]
    assert (run / "best").is_symlink() == (best is not None)
    if best is not None:
        assert json.loads((run / "best" / "config.json").read_text()) == {"step": best["step"]}
        assert json.loads((run / "best.json").read_text())["value"] == 1 / 3


PLAN = ((10, None), (20, 20), (30, 20), (40, 40), (50, 40))  # steps of checkpoints, and which is the best by then


@pytest.mark.parametrize("middle", [False, True], ids=["after", "within"])
def test_a_crash_after_every_single_operation_leaves_a_good_checkpoint(tmp_path: Path, middle: bool) -> None:
    for number in range(1, len(PLAN)):
        before = tmp_path / f"before-{number}"
        for step, best in PLAN[:number]:
            save(Checkpoints(before, 1, Quick()), step, best)
        left = 0
        while True:
            run = tmp_path / f"{number}-{left}-{middle}"
            shutil.copytree(before, run, symlinks=True)
            files = Crashing(left, middle)
            try:
                save(Checkpoints(run, keep=1, files=files), *PLAN[number])
            except Crash:
                ended = False
            else:
                ended = True
            saved, passed_over = Checkpoints(run, 1, Quick()).newest()
            check(run, saved)
            assert saved is not None and saved.step in (PLAN[number - 1][0], PLAN[number][0])
            assert passed_over == []  # an interrupted save leaves nothing that looks like a checkpoint
            save(Checkpoints(run, 1, Quick()), *PLAN[number])  # and the run goes on
            check(run, Checkpoints(run, 1, Quick()).newest()[0])
            assert not list(run.rglob(".*"))
            shutil.rmtree(run)
            left += 1
            if ended:
                assert left > 15
                break


def test_a_crash_while_a_checkpoint_is_replaced_by_another_of_the_same_step(tmp_path: Path) -> None:
    before = tmp_path / "before"
    save(Checkpoints(before, files=Quick()), 10, None)
    left, ended = 0, False
    while not ended:
        run = tmp_path / f"{left}"
        shutil.copytree(before, run, symlinks=True)
        try:
            save(Checkpoints(run, files=Crashing(left, True)), 10, 10)
        except Crash:
            pass
        else:
            ended = True
        saved, _ = Checkpoints(run, files=Quick()).newest()
        check(run, saved)
        left += 1


@pytest.mark.parametrize("middle", [False, True], ids=["after", "within"])
def test_a_crash_of_the_start_itself(tmp_path: Path, middle: bool) -> None:
    """Two checkpoints are good, a third is damaged, and a fourth was being written."""
    before = tmp_path / "before"
    for step, best in PLAN[:3]:
        save(Checkpoints(before, files=Quick()), step, best)
    (before / "checkpoints/step-00000030/model.safetensors").write_bytes(b"short")
    with pytest.raises(Crash):
        save(Checkpoints(before, files=Crashing(12, False)), *PLAN[3])
    left, ended = 0, False
    while not ended:
        run = tmp_path / f"{left}"
        shutil.copytree(before, run, symlinks=True)
        try:
            Checkpoints(run, files=Crashing(left, middle)).newest()
        except Crash:
            pass
        else:
            ended = True
        saved, _ = Checkpoints(run, files=Quick()).newest()
        check(run, saved)
        assert saved is not None and saved.step == 20
        left += 1
    assert left > 4


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1"), "model.safetensors has 1 bytes, not 100"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "SHA-256 differs"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "has no MANIFEST.json"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "MANIFEST.json cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "state.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_said_why(tmp_path: Path, harm: Any, said: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10, 10)
    save(checkpoints, 20, 20)
    harm(checkpoints.path(20))
    saved, [why] = checkpoints.newest()
    check(tmp_path, saved)
    assert saved is not None and saved.step == 10
    assert "step-00000020" in why and said in why
    save(checkpoints, 20, 20)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000010", "step-00000020"]


def test_what_is_kept(tmp_path: Path) -> None:
    """The last, the best, the one before the last with its best, and `keep` more."""
    for keep, left in ((0, [40, 80, 90]), (3, [40, 60, 70, 80, 90])):
        run = tmp_path / f"{keep}"
        for step in range(10, 100, 10):
            save(Checkpoints(run, keep, Quick()), step, 40 if step >= 40 else 10)
        assert Checkpoints(run, files=Quick()).steps() == left
    run = tmp_path / "new-best"
    for step, best in ((10, 10), (20, 10), (30, 10), (40, 40)):
        save(Checkpoints(run, 1, Quick()), step, best)
    assert Checkpoints(run, files=Quick()).steps() == [10, 30, 40]  # 30 is the way back, and its best is 10


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nothing").newest() == (None, [])


@pytest.mark.parametrize("operation", ["write", "write_tensors", "call", "sync", "make"])
def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(tmp_path: Path, operation: str) -> None:
    save(Checkpoints(tmp_path), 10, 10)

    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files = Files()
    setattr(files, operation, full)
    with pytest.raises(TrainingError) as stopped:
        save(Checkpoints(tmp_path, files=files), 20, 20)
    assert "the disk is full" in str(stopped.value) and "step-00000010 is the last good one" in str(stopped.value)
    assert stopped.value.exit_code == 1
    saved, passed_over = Checkpoints(tmp_path).newest()
    check(tmp_path, saved)
    assert saved is not None and saved.step == 10 and passed_over == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_a_file_system_without_links(tmp_path: Path) -> None:
    def refused(*given: Any) -> None:
        raise OSError(errno.EPERM, "not permitted")

    files = Files()
    files.link = refused  # type: ignore[assignment,method-assign]
    save(Checkpoints(tmp_path, files=files), 10, 10)
    assert not (tmp_path / "best").exists()
    assert damage(tmp_path / json.loads((tmp_path / "best.json").read_text())["checkpoint"]) == ""
