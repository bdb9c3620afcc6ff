"""Stages of layers on several processes: everything that one process computes, and what each stage keeps.

One launch a number of ranks walks all cases: `tests/support/staged.py`.
"""

from __future__ import annotations

import pytest

from tests.support.ranks import run_ranks
from tests.support.staged import everything, together


@pytest.mark.parametrize("world", [2, 3])
def test_a_pipeline_is_one_process(world: int) -> None:
    for found in run_ranks(everything, world, world):
        assert found == []
