"""Golden curves: the losses of 20 steps of a tiny run for every objective, as they were when they were written down.

A change of any part of training that changes what is learnt shows here: data, order, masks, dropout, gradients, AdamW. Models
begin from scratch, dropout is on, and masks are drawn anew in each pass. Compared are 4 digits, so that other instructions
of a processor, which sum in another order, give the same. First weights and dropout are torch's numbers for a seed on a CPU
(`normal_`, `uniform_`, `bernoulli_` with MKL), which do not change between its versions; masks and order are numpy's Philox.

`python -m tests.train.test_golden_curves` writes them anew; look at the difference, and say in the commit what changed them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from plainformer.config.training import OBJECTIVES
from tests.support.learning import config_of, learnt, rows_of
from tests.support.scratch import RUNS
from tests.support.vocabularies import (
    save_json,
)

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4


def curve(objective: str, folder: Path) -> list[float]:
    fragment, save, changes = RUNS[objective]
    save(folder / "inputs")
    save_json(folder / "inputs", "config.json", fragment)
    model = {"config": fragment, "tokenizer": str(folder / "inputs")}
    changes = {"optimizer": {"learning_rate": 3e-3, **changes.get("optimizer", {})}, **changes}
    config = config_of(folder, objective, rows_of(folder, objective), model=model, threads=1, **changes)
    return [line["loss"] for line in learnt(config)]


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="without MKL, torch draws dropout otherwise")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_curves_are_as_they_were(objective: str, tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / f"{objective}.json").read_text(encoding="utf-8"))
    assert curve(objective, tmp_path) == pytest.approx(expected, rel=TOLERANCE)


def main(names: list[str]) -> None:
    GOLDEN.mkdir(exist_ok=True)
    for objective in names or OBJECTIVES:
        with tempfile.TemporaryDirectory() as folder:
            losses = [float(f"{loss:.7g}") for loss in curve(objective, Path(folder))]
        (GOLDEN / f"{objective}.json").write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")
        print(f"{objective}: {losses[0]:.4f} to {losses[-1]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
