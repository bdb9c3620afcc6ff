"""What only a GPU can show: bf16, the same bytes after an interruption, a bad step that is found later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plainformer.errors import TrainingError
from plainformer.train.record import read_lines
from plainformer.training import Event, train
from tests.support.runs import results, run_data

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
Tiny = Callable[[str], Path]


REGULARISED = {
    "loss": {"kind": "gce", "trim": 0.3, "trim_after": 0.5},
    "augment": {"embedding_noise": 5.0},
    "optimizer": {"l1": 1.0, "ema": 0.9},
    "batches": {"packed": False},
}


@pytest.mark.parametrize("more", [{}, REGULARISED], ids=["plain", "regularised"])
def test_an_interrupted_run_gives_the_same_bytes(more: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    gpu = {"device": "cuda", "precision": "bf16", **more}
    whole = train(run_data(tmp_path, "causal-lm", tiny("text-generation"), **gpu))
    again = {**run_data(tmp_path, "causal-lm", tiny("text-generation"), **gpu), "folder": str(tmp_path / "again/run")}
    events: list[Event] = []
    train(again, on_event=events.append, stop=lambda: any(e.values.get("step", 0) >= 9 for e in events))
    assert results(train(again).folder) == results(whole.folder)
    losses = [line["loss"] for line in read_lines(whole.folder / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]


def test_a_bad_step_changes_nothing_until_it_is_found(tiny: Tiny, tmp_path: Path) -> None:
    optimizer = {"learning_rate": 1e30, "max_grad_norm": None}
    config = run_data(tmp_path, "causal-lm", tiny("text-generation"), device="cuda", optimizer=optimizer, log_every=10)
    with pytest.raises(TrainingError, match="is not finite"):
        train(config)
    assert json.loads((tmp_path / "run/stopped.json").read_text())["step"] < 10
