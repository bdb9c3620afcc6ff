"""`plainformer.plan(...)` by reference, and its options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import plainformer as pf
from plainformer.config.layout import Layout
from plainformer.config.training import OBJECTIVES
from plainformer.errors import CheckpointError, UsageError
from plainformer.planning import HEADS, LABELLED
from plainformer.train.objectives import objective_class
from tests.support.configs import tiny


def test_options_by_name_and_ready_made() -> None:
    by_name = pf.plan(params="1B", purpose="training", batch=2, tp=2, device="H100")
    ready = pf.plan(None, pf.Workload(purpose="training"), Layout(tp=2), "H100", params="1B", batch=2)
    assert by_name.to_dict() == ready.to_dict()
    with pytest.raises(UsageError, match="no option 'batches'") as caught:
        pf.plan(params="1B", batches=2)
    assert "did you mean 'batch'" in str(caught.value)
    with pytest.raises(UsageError, match="layout is given"):
        pf.plan(None, None, Layout(), params="1B", tp=2)


def test_a_task_chooses_the_head(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny("bert", "BertForMaskedLM")))
    heads = {task: pf.plan(tmp_path, task=task).config.head.kind for task in ("fill-mask", "feature-extraction")}
    assert heads == {"fill-mask": "masked_lm", "feature-extraction": "none"}
    assert pf.plan(tmp_path / "config.json", task="fill-mask").parameters == pf.plan(tmp_path).parameters
    with pytest.raises(UsageError):
        pf.plan(tmp_path, task="nonsense")


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    for ref in (tmp_path, tmp_path / "config.json", tmp_path / "none"):
        with pytest.raises(CheckpointError):
            pf.plan(ref)


def test_sizes_that_do_not_fit_together() -> None:
    for options in ({"width": 100, "heads": 3}, {"heads": 32, "kv_heads": 5}, {"width": 1 << 30}):
        with pytest.raises((UsageError, CheckpointError)):
            pf.plan(params="7B", **options)
    near = pf.plan(params="100M")
    assert abs(near.parameters / 1e8 - 1) < 0.03 and "to come nearer to 100M" in near.notes[0]


def test_every_objective_has_its_head() -> None:
    assert {name: objective_class(name).head for name in OBJECTIVES} == HEADS
    assert set(LABELLED) <= set(HEADS.values())


def test_a_run_from_scratch_and_one_whose_labels_are_in_its_data(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "config.json").write_text(json.dumps(tiny("bert", "BertModel")))
    common = {"folder": "run", "data": {"train": {"path": "x.csv"}}}
    scratch = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    scratch |= {"intermediate_size": 128, "vocab_size": 300}
    runs = {
        "causal-lm": {"config": scratch},
        "text-classification": {"ref": str(tmp_path), "lora": {"rank": 4}},
    }
    for objective, model in runs.items():
        file = tmp_path / f"{objective}.yaml"
        model |= {"tokenizer": "x"} if "config" in model else {}
        file.write_text(yaml.safe_dump({**common, "objective": objective, "model": model}))
        made = pf.plan(file)
        assert made.workload.training and made.config.head.kind == HEADS[objective]
    assert made.workload.trainable == "lora" and made.workload.lora_rank == 4
    assert any("two are assumed" in note for note in made.notes)


def test_a_plan_of_what_a_run_saved(tmp_path: Path) -> None:
    from tests.support.models import save

    model = save("text-generation", tmp_path / "model")
    assert pf.plan(model).parameters == pf.load_model(model).num_parameters
