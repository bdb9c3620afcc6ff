"""A run for each fold: each is what it would be alone, none looks at what is held out of it or at the test set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plainformer
from plainformer.config.building import build, read_config
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Written
from plainformer.folds import cross_validate
from plainformer.training import train
from tests.support.runs import labelled, results, texts, write_rows

Tiny = Callable[[str], Path]
ROWS = [row for row in {row["text"]: row for row in labelled(texts(90))}.values()][:60]


def config_of(folder: Path, model: Path, **changes: Any) -> TrainConfig:
    rows = write_rows(folder / "rows.jsonl", ROWS)
    found: dict[str, Any] = {
        "objective": "text-classification",
        "folder": str(folder / "run"),
        "model": {"ref": str(model)},
        "data": {
            "train": {"path": str(rows)},
            "split": {"validation": 0.2, "test": 0.1, "by": "stratified"},
            "cache": str(folder / "cache"),
        },
        "batches": {"size": 8},
        "length": {"steps": 8},
        "optimizer": {"learning_rate": 1e-3},
        "evaluate": {"every": 4},
        "folds": {"count": 3},
    }
    for name, value in changes.items():
        found[name] = {**found[name], **value} if isinstance(found.get(name), dict) else value
    return build(TrainConfig, Written(found))


def test_fold_2_alone_is_fold_2_of_the_series(tiny: Tiny, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny("text-classification"))
    result = cross_validate(config)
    assert result.ended == "done" and [fold.run for fold in result.folds] == ["fold-1", "fold-2", "fold-3"]
    own = read_config(tmp_path / "run" / "fold-2" / "config.yaml")
    train(replace(own, folder=str(tmp_path / "alone" / "fold-2")))
    expected = results(tmp_path / "run" / "fold-2")
    assert len(expected) > 10 and results(tmp_path / "alone" / "fold-2") == expected
    print("\n".join(result.lines()))
    print(json.dumps(result.to_dict(), indent=1)[:3000])
