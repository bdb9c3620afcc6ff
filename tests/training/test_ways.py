"""Options of a run that change how it learns: what is frozen, compiled layers, a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn

import plainformer as pf
from plainformer.train.record import read_lines
from plainformer.training import train
from tests.support.runs import run_config

Tiny = Callable[[str], Path]


def test_a_frozen_backbone_keeps_its_bits(tiny: Tiny, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "the cat {n}", "label": "{n % 3}"}}\n' for n in range(24)))
    config = run_config(
        tmp_path,
        "text-classification",
        tiny("fill-mask"),
        data={"train": {"path": str(rows)}, "validation": None},
        length={"steps": 3},
        evaluate={"every": None, "batch_size": 32},
    )
    result = train(replace(config, model=replace(config.model, train="head")))
    before = pf.load_model(tiny("fill-mask"), prepare=False, backend="plain").state_dict()
    after = pf.load_model(result.folder / "last", prepare=False, backend="plain").state_dict()
    backbone = [name for name in after if not name.startswith("head.")]
    assert len(backbone) > 10
    for name in backbone:
        if name in before:  # a pooler is the new head's
            assert torch.equal(after[name], before[name]), name
    first = pf.with_head(tiny("fill-mask"), "sequence", labels=["0", "1", "2"], seed=config.seed).model.state_dict()
    changed = [name for name in after if name.startswith("head.") and not torch.equal(after[name], first[name])]
    assert "head.out.weight" in changed


@pytest.mark.slow
def test_compiled_layers_learn_the_same(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch traces layers for its compiler, whose own work is left out: it needs a C++ compiler, and minutes."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    losses, states = [], []
    for compiled in (False, True):
        config = run_config(
            tmp_path, "causal-lm", tiny("text-generation"), batches={"packed": False}, length={"steps": 3}, log_every=1
        )
        model = replace(config.model, dropout=0.0)
        folder = str(tmp_path / f"run-{compiled}")
        result = train(replace(config, model=model, folder=folder, compile=compiled))
        losses.append([line["loss"] for line in read_lines(result.folder / "metrics.jsonl") if "loss" in line])
        states.append(pf.load_model(result.folder / "last", prepare=False).state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert states[0].keys() == states[1].keys()


def test_a_budget_of_tokens_is_spent_in_whole_steps(tiny: Tiny, tmp_path: Path) -> None:
    config = run_config(
        tmp_path, "causal-lm", tiny("text-generation"), length={"steps": None, "tokens": 3000}, log_every=1
    )
    result = train(config)
    tokens = [line["tokens"] for line in read_lines(result.folder / "metrics.jsonl") if "tokens" in line]
    assert result.ended == "done" and len(tokens) == result.total_steps
    mean = tokens[-1] / len(tokens)
    assert abs(tokens[-1] - 3000) <= 1.5 * mean
