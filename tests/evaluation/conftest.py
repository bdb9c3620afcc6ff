"""Where evaluations and looks are kept in tests, in a folder of each; and intervals of few resamples, which take less time."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from plainformer.evaluate.intervals import bootstrap


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PLAINFORMER_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("plainformer.evaluation.report.bootstrap", partial(bootstrap, resamples=50))
