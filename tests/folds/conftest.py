"""Tests of series make many runs, whose pictures would take longer than they do."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="package")
def no_pictures() -> object:
    from plainformer.train import record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "draw_plots", lambda folder: None)
        patch.setattr(record, "_board", lambda folder, step: None)
        yield
