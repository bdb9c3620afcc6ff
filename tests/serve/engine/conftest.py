"""Tiny models for the engine, loaded once."""

from __future__ import annotations

import pytest

from tests.support.engine import Models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Tasks by name, loaded when they are first asked for."""
    return Models(lambda name: tmp_path_factory.mktemp(name))
