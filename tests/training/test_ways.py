"""Options of a run that change how it learns: what is frozen, compiled layers, a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import plainformer as pf
from plainformer.config.building import as_config
from plainformer.errors import UsageError
from plainformer.train.record import read_lines
from plainformer.training import train
from tests.support.close import close
from tests.support.runs import run_config, run_data

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


def test_an_adapter_becomes_a_plain_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    """What is loaded of one is merged; so is what a run saves with `merge`."""
    data = run_data(tmp_path, "text-classification", tiny("embedding"), length={"steps": 5})
    runs = {}
    for merge in (False, True):
        model = {**data["model"], "lora": {"rank": 2, "merge": merge}}
        runs[merge] = train(as_config({**data, "folder": str(tmp_path / f"{merge}"), "model": model})).folder / "last"
    adapter, text = runs[False], "the cat sat"
    task = pf.load(adapter, backend="plain")
    pf.save(task, tmp_path / "plain")
    again = pf.load(tmp_path / "plain", backend="plain")
    assert again(text) == task(text) and not list((tmp_path / "plain").glob("adapter*"))
    weights, merged = load_file(tmp_path / "plain" / "model.safetensors"), load_file(runs[True] / "model.safetensors")
    assert weights.keys() == merged.keys()
    for name, tensor in weights.items():
        close(merged[name], tensor, name)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    ids = torch.randint(5, 90, (2, 9))
    with torch.no_grad():
        close(again.model(ids).logits, theirs(ids).logits, "logits")
    config = as_config({**data, "folder": str(tmp_path / "next"), "model": {"ref": str(adapter), "lora": {"rank": 2}}})
    with pytest.raises(UsageError, match="is an adapter itself"):  # its own could not be loaded
        train(config)
    with_merge = {"ref": str(adapter), "lora": {"rank": 2, "merge": True}}
    assert pf.load(train(as_config({**data, "folder": str(tmp_path / "next"), "model": with_merge})).folder)(text).label
