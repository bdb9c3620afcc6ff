"""What to do with the models of a cross validation: ship all of them, or one that learns from all rows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plainformer.config.effects import is_given
from plainformer.config.training import TrainConfig
from plainformer.errors import plural
from plainformer.folds.result import FoldsResult

VOTING = (
    *("text-classification", "token-classification", "question-answering", "multiple-choice"),
    *("image-classification", "audio-classification"),
)

_SHOWN = 4  # folders of candidates that are named


def advice_of(config: TrainConfig, result: FoldsResult) -> Iterator[str]:
    """Yield what may be shipped, and how."""
    either = ""
    if config.objective in VOTING:
        yield f"the models of all folds answer as one: plainformer run {shlex.quote(str(_near(result.folder)))} INPUT"
        either = "or "
    if result.best_step is not None:
        rows = "all rows but the test set" if config.data.split is not None and config.data.split.test else "all rows"
        yield f"{either}train one model on {rows} for {result.best_step:,} steps, the median of the folds' best steps:"
        yield f"  plainformer train {' '.join(map(shlex.quote, retraining(config, result)))}"
    left, size = left_behind(result)
    if left:
        runs = plural(len(left), "run of a search keeps its", "runs of a search keep their")
        where = list(dict.fromkeys(str(_near(run.parent)) for run in left))
        said = ", ".join(where[:_SHOWN]) + (f" and {len(where) - _SHOWN} more" if len(where) > _SHOWN else "")
        yield f"{runs} checkpoints, {size / 1e6:,.0f} MB, which nothing needs any more: in {said}"
        yield "  the choice was made by their metrics.jsonl; the same command would train anew what is removed"


def left_behind(result: FoldsResult) -> tuple[list[Path], int]:
    """Return the runs that led to a choice, were not chosen and have checkpoints; and the bytes of these."""
    if result.choice is None:
        return [], 0
    chosen = {(result.folder / fold.run).resolve() for fold in result.folds}
    found, size = [], 0
    for run in sorted([*result.folder.glob("search-*/fold-*"), *result.folder.glob("outer-*/search-*/fold-*")]):
        files = [path for path in (run / "checkpoints").rglob("*") if path.is_file() and not path.is_symlink()]
        if files and run.resolve() not in chosen:
            found.append(run)
            size += sum(path.stat().st_size for path in files)
    return found, size


def retraining(config: TrainConfig, result: FoldsResult) -> list[str]:
    """Return the words after `plainformer train` that train one model on all rows, with what a search chose."""
    changes: dict[str, Any] = {} if result.choice is None else dict(result.choice.values)
    changes |= {"folder": f"{_near(result.folder)}-all", "folds": None}
    changes |= {"length.epochs": None, "length.tokens": None, "length.steps": result.best_step}
    split = config.data.split
    if split is not None and split.test:
        # The test set stays apart, which takes a split; its validation rows are as few as can be.
        changes["data.split.validation"] = 0.01
    else:
        changes["data.split"] = None
        for name in ("every", "metric", "patience"):
            changes |= {f"evaluate.{name}": None} if getattr(config.evaluate, name) is not None else {}
        changes |= {"data.duplicates": "refuse"} if is_given(config.data, "duplicates") else {}
    words = [str(_near(result.folder))]
    for name, value in changes.items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return words


def _near(folder: Path) -> Path:
    """Return a folder as seen from the working directory, where it is in it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
