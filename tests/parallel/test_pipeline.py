"""Stages of layers on several processes: everything that one process computes, and what each stage keeps.

One launch a number of ranks walks all cases: `tests/support/staged.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.ranks import run_ranks
from tests.support.staged import everything, four_stages, tasks, texts


@pytest.mark.parametrize("world", [2, 3])
def test_a_pipeline_is_one_process(world: int) -> None:
    for found in run_ranks(everything, world, world, texts(world), timeout=240):
        assert found == []


def test_four_stages() -> None:
    for found in run_ranks(four_stages, 4, timeout=240):
        assert found == []


def test_tasks_run_on_parts(tiny: Callable[[str], Path]) -> None:
    names = ("text-classification", "token-classification", "embedding", "text-generation", "text2text")
    folders = {name: str(tiny(name)) for name in (*names, "audio-classification")}
    for found in run_ranks(tasks, 2, folders):
        assert found == []
