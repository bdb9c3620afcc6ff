"""Whatever is learnt, folds pool the answers to what each was held back from; the models of most objectives answer as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import plainformer
from plainformer.config.training import FoldsConfig, TrainConfig
from plainformer.errors import UsageError
from plainformer.folds import cross_validate
from plainformer.folds.advice import VOTING
from plainformer.tasks.ensemble import Ensemble
from tests.support.learning import config_of, rows_of
from tests.support.scratch import RUNS
from tests.support.vocabularies import save_json

# Objectives whose answers are scored in different ways; the others go the same way.
NAMES = (
    "causal-lm",
    "seq2seq",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "ctc",
    "image-classification",
)


@pytest.fixture(params=NAMES)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TrainConfig]:
    name = request.param
    fragment, save, own = RUNS[name]
    save(tmp_path / "inputs")
    save_json(tmp_path / "inputs", "config.json", fragment)
    changes = {
        **own,
        "model": {"config": fragment, "tokenizer": str(tmp_path / "inputs")},
        "data": {**own.get("data", {}), "split": {"validation": 0.25}, "duplicates": "allow"},
        "length": {"steps": 4},
    }
    yield replace(config_of(tmp_path, name, rows_of(tmp_path, name), **changes), folds=FoldsConfig(count=2))


def test_folds_of_every_objective(config: TrainConfig) -> None:
    result = cross_validate(config)
    assert result.ended == "done" and result.pooled is not None and len(result.folds) == 2
    assert result.pooled.n > 0 and result.pooled.metrics and result.lines()
    if config.objective in VOTING:
        assert isinstance(plainformer.load(result.folder), Ensemble)
        assert "plainformer run" in result.lines()[-3]
    else:
        with pytest.raises(UsageError, match="as one"):
            plainformer.load(result.folder)
