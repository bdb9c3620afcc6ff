"""A run that was killed at any time, and went on, is the run that was not: the same bytes of weights and metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import results, run_data, run_killed

RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dropout": ("causal-lm", "text-generation", {}),
    "masks": ("masked-lm", "fill-mask", {"optimizer": {"ema": 0.9}}),
    "adapters": ("causal-lm", "text-generation", {"model": {"lora": {"rank": 4, "dropout": 0.2}}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_again_and_again_it_gives_the_same_bytes(tiny: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    objective, model, changes = RUNS[name]
    whole, killed = run_killed(run_data(tmp_path, objective, tiny(model), **changes), kills=25)
    expected = results(whole)
    assert len(expected) > 15
    assert sum(killed.values()) == 25 and len(killed) < 20  # several times in a row
    for run in killed:
        assert results(run) == expected, run.name
