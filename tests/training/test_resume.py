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
    "adapters": ("causal-lm", "text-generation", {"lora": {"rank": 4, "dropout": 0.2}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_again_and_again_it_gives_the_same_bytes(tiny: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    objective, model, changes = RUNS[name]
    kills = 10 if "lora" in changes else 25
    data = run_data(tmp_path, objective, tiny(model), **{k: v for k, v in changes.items() if k != "lora"})
    if "lora" in changes:
        data["model"]["lora"] = changes["lora"]
    whole, killed = run_killed(data, kills=kills)
    expected = results(whole)
    assert len(expected) > 15
    assert sum(killed.values()) == kills and len(killed) < 0.8 * kills  # several times in a row
    for run in killed:
        assert results(run) == expected, run.name
