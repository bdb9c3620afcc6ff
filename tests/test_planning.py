"""`plainformer.plan(...)` by reference, and its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import plainformer as pf
from plainformer.config.layout import Layout
from plainformer.config.training import OBJECTIVES
from plainformer.errors import CheckpointError, UsageError
from plainformer.planning.runs import HEADS, LABELLED
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
    wrong: tuple[dict[str, Any], ...] = ({"width": 100, "heads": 3}, {"heads": 32, "kv_heads": 5}, {"width": 1 << 30})
    for options in wrong:
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


def test_targets_of_adapters_are_the_checkpoints_names() -> None:
    common: dict[str, Any] = {"params": "135M", "purpose": "training", "trainable": "lora", "lora_rank": 4}
    every = pf.plan(**common, lora_targets="all-linear")
    some = pf.plan(**common, lora_targets="q_proj,v_proj")
    one = pf.plan(**common, lora_targets="model.layers.3.self_attn.q_proj")
    usual = pf.plan(**common)
    stack = usual.config.decoder
    assert stack is not None
    numbers = {"q": stack.hidden_size + stack.num_heads * stack.head_dim}
    gradients = [made.parts["clip"]["gradients"] for made in (every, usual, some, one)]
    assert gradients == sorted(gradients, reverse=True) and gradients[-1] == 4 * 4 * numbers["q"]
    with pytest.raises(UsageError, match="lora_targets='query' is not a linear"):
        pf.plan(**common, lora_targets="query")
    with pytest.raises(UsageError, match="lora_rank=5000 is more than"):
        pf.plan(**{**common, "lora_rank": 5000})


@pytest.mark.parametrize(
    ("family", "architecture", "options", "said"),
    [
        ("llama", "LlamaForCausalLM", {"image_size": "224"}, "reads no images"),
        ("llama", "LlamaForCausalLM", {"seconds": 3.0}, "reads no waveforms"),
        ("llama", "LlamaForCausalLM", {"purpose": "training", "target_length": 3}, "not an encoder-decoder"),
        ("llama", "LlamaForCausalLM", {"zero": 3, "dp": 2}, "without purpose='training'"),
        ("bert", "BertForMaskedLM", {"new": 3}, "writes no text"),
        ("vit", "ViTForImageClassification", {"prompt": 3}, "reads no text"),
        ("vit", "ViTForImageClassification", {"image_size": "7"}, "less than a patch"),
        ("wav2vec2", "Wav2Vec2ForCTC", {"seconds": 0.001}, "too short"),
        ("whisper", "WhisperForConditionalGeneration", {"seconds": 5.0}, "30 s"),
    ],
)
def test_options_that_change_nothing(family: str, architecture: str, options: dict[str, Any], said: str) -> None:
    from plainformer.families import config_from_dict

    with pytest.raises(UsageError, match=said):
        pf.plan(config_from_dict(tiny(family, architecture)), **options)


def test_numbers_of_parameters() -> None:
    assert pf.plan(params="1e9").parameters == pf.plan(params="1B").parameters
    wrong: tuple[dict[str, Any], ...] = ({"params": "1k"}, {"params": "7T"}, {"params": "7B", "layers": 2000})
    for options in wrong:
        with pytest.raises(UsageError):
            pf.plan(**options)


def test_data_parallel_devices_hold_the_whole_model_each() -> None:
    one, four = (pf.plan(params="7B", dp=dp) for dp in (1, 4))
    assert four.rule.sentences == one.rule.sentences
    assert pf.plan(params="7B", tp=2, dp=2).rule.sentences[0] == "divided among 2 devices, that is 14.00 GB each"


def test_a_run_is_planned_as_it_is_divided(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "config.json").write_text(json.dumps(tiny("llama", "LlamaForCausalLM")))
    run = {
        "objective": "causal-lm",
        "folder": "run",
        "data": {"train": {"path": "x.jsonl"}},
        "batches": {"size": 8, "micro": 2},
    }
    run |= {"model": {"ref": str(tmp_path)}, "parallel": {"tp": 2, "zero": 2}}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run))
    made = pf.plan(file)
    assert made.layout == Layout(tp=2, zero=2) and made.workload.accumulate == 4
    wide = pf.plan(file, devices=8)
    assert wide.layout == Layout(dp=4, zero=2, tp=2) and wide.workload.accumulate == 1


def test_little_is_done_for_a_plan() -> None:
    """A plan is asked for many times over while something is fitted: calls are counted, for time depends on the machine."""
    import sys

    pf.plan(params="7B", purpose="training")
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        pf.plan(params="7B", purpose="training", batch=2)
    finally:
        sys.setprofile(None)
    assert calls < 40_000


def test_decoding_is_a_phase_if_something_is_decoded() -> None:
    assert [phase.name for phase in pf.plan(params="7B", new=1).ranks[0].phases] == ["load", "prefill"]


def test_a_decoder_can_have_too_few_positions() -> None:
    from plainformer.families import config_from_dict

    made = pf.plan(config_from_dict(tiny("whisper", "WhisperForConditionalGeneration")), new=100_000)
    assert any("it could not run" in note for note in made.notes)


def test_what_fits_in_python() -> None:
    """The same searches as the command line's, each with an answer of its own type."""
    batch = pf.plan(params="135M", memory="1GB", fit="batch")
    assert batch.rows == pf.plan(params="135M", memory="1GB").largest_batch
    assert batch.rejected is not None and batch.plans[0].fits and not batch.rejected.fits
    context = pf.plan(params="135M", memory="1GB", fit="context")
    assert context.tokens == context.plans[0].context and "does not fit: " in str(context)
    models = pf.plan(params="7B", dtype="bf16", memory="24GB", fit="model")
    assert models.names[0] == "gemma-2-9b" and [one.name for one in models.plans] == list(models.names)
    layouts = pf.plan(params="1B", purpose="training", device="RTX 3060", devices=4, fit="layout")
    worlds = [one.layout.world for one in layouts.plans]
    assert worlds == sorted(worlds) and len(worlds) == 3 and layouts.rejected is not None
    assert layouts.rejected.phase in layouts.why and all(isinstance(one, pf.Fitted) for one in (batch, models, layouts))
    with pytest.raises(UsageError, match="fit='everything'"):
        pf.plan(params="1B", memory="1GB", fit="everything")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="needs to know the memory"):
        pf.plan(params="1B", fit="batch")
