"""A plan as a whole: peak, phase, what fits, what is assumed; each failure of other tools that was reported to them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import plainformer
from plainformer.config import ModelConfig
from plainformer.config.layout import Layout
from plainformer.errors import UsageError
from plainformer.families import config_from_dict
from plainformer.plan.devices import find_device, of_size
from plainformer.plan.planned import Plan, planned
from plainformer.plan.published import published
from plainformer.plan.result import ACTIVATIONS, CACHE, GRADIENTS, LOGITS, OPTIMIZER, WEIGHTS
from plainformer.plan.workload import Workload
from tests.support.configs import tiny
from tests.support.every_config import every_config
from tests.support.processes import modules_after

TRAINING = Workload(purpose="training")


def shape(name: str) -> ModelConfig:
    return config_from_dict(dict(next(one for one in published() if one.name == name).config))


LLAMA = shape("Llama-2-7b")


def test_no_torch() -> None:
    code = "import plainformer.plan, plainformer.planning, plainformer.plan.planned, plainformer.plan.fit\n"
    assert not modules_after(code) & {"torch", "numpy"}
    code += "import plainformer\nprint(repr(plainformer.plan(params='7B', purpose='training')))"
    assert not modules_after(code) & {"torch", "numpy", "huggingface_hub"}


def test_a_plan_is_little_work() -> None:
    """In calls, which a busy machine does not change: 23,000 take 3 ms (benchmarks/RESULTS.md)."""
    planned(LLAMA)
    for workload in (Workload(), TRAINING):
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            planned(LLAMA, workload)
        finally:
            sys.setprofile(None)
        assert 1_000 < calls < 35_000


@pytest.mark.parametrize("name", [*list(every_config())[::7], *(name for name in every_config() if "no-terms" in name)])
def test_every_model_has_a_plan(name: str) -> None:
    config = every_config()[name]
    text = config.input_frontend.kind == "tokens"
    length = min(config.input_stack.max_positions or 64, 24) if text else 24
    asks = [Workload(prompt=length - 8, new=8 if config.decoder is not None else 0, batch=2, seconds=0.2)]
    asks += [Workload(purpose="training", length=length, target_length=8, batch=2, seconds=0.2)]
    for workload in asks:
        plan = planned(config, workload, device=of_size(10**9))
        assert plan.peak == max(sum(parts.values()) for parts in plan.parts.values()) > 0
        assert plan.phase in plan.parts and plan.fits and plan.headroom == 10**9 - plan.total
        assert json.loads(json.dumps(plan.to_dict()))["peak"] == plan.peak
        assert plan.lines() and "<table>" in plan._repr_html_() and plan.name in str(plan)


def test_training_has_activations_and_logits_which_grow_with_batch_and_length() -> None:
    """accelerate and DeepSpeed: 0.49 GB said, 14.7 to 21 GB used (DeepSpeed#4527): states alone."""
    one, eight = planned(LLAMA, TRAINING), planned(LLAMA, Workload(purpose="training", batch=8))
    for part in (ACTIVATIONS,):
        small, large = (max(parts.get(part, 0) for parts in plan.parts.values()) for plan in (one, eight))
        assert large > 6 * small > 0
    assert any(LOGITS in parts for parts in one.parts.values())
    assert one.parts["step"][OPTIMIZER] == pytest.approx(8 * one.parameters, rel=1e-6)
    long = planned(LLAMA, Workload(purpose="training", length=4096))
    assert long.peak > one.peak + 4 * (one.peak - one.parts["step"][WEIGHTS] * 4)
    assert any("length=512" in note for note in map(str, one.to_dict()["notes"]))


def test_the_cache_is_that_of_the_layers() -> None:
    """unsloth#4757: 81.4 in place of 10.4 GB: from the number of parameters. Here by key-value heads and windows."""
    grouped, full = planned(shape("Llama-3.1-8B"), Workload(new=0)), planned(LLAMA, Workload(new=0))

    def cache(plan: Plan) -> int:
        return max(parts.get(CACHE, 0) for parts in plan.parts.values())

    assert cache(full) == 4 * cache(grouped) == 2 * 32 * 32 * 128 * 512 * 4
    half = planned(LLAMA, Workload(new=0, dtype="bf16"))
    assert cache(half) == cache(full) // 2
    narrow = planned(LLAMA, Workload(new=0, cache="int8"))
    assert cache(full) / 4 < cache(narrow) < cache(full) / 3.5  # ollama#10128: 52 in place of 10 GB


def test_the_default_context_is_said_and_not_the_longest() -> None:
    """llmfit#302: 26 GB, because the model could have 128k tokens."""
    plan = planned(shape("Llama-3.1-8B"))
    assert any("prompt=512 and new=512 by default" in note for note in plan.to_dict()["notes"])
    said = planned(shape("Llama-3.1-8B"), Workload(prompt=100, new=10)).to_dict()["notes"]
    assert not any("by default" in note for note in said)


def test_what_no_tensor_has_is_a_row_with_its_source() -> None:
    """ "Says that it fits, then runs out of memory": the margin is not in a formula."""
    plan = planned(LLAMA, device=find_device("H100"))
    rows = {item.name: item for item in plan.beside}
    assert {"CUDA context and kernels", "fragmentation"} == set(rows)
    assert rows["CUDA context and kernels"].note and plan.total == plan.peak + sum(item.bytes for item in plan.beside)
    assert "max_memory_allocated" in plan.comparable_to and "nvidia-smi" in plan.comparable_to
    many = planned(LLAMA, TRAINING, Layout(dp=4, zero=3, tp=2), find_device("H100"))
    assert {"NCCL, tensor-parallel group", "NCCL, data-parallel group"} <= {item.name for item in many.beside}
    assert planned(LLAMA, device=of_size(10**11)).beside == ()


def test_gb_and_gib_are_both_there() -> None:
    text = str(planned(LLAMA, device=find_device("A100 80GB")))
    assert "26.954   25.103" in text and "85.20 GB (79.35 GiB)" in text


def test_encoders_have_no_cache() -> None:
    """gpustack#2412: 13.8 GiB said for a reranker, 0.93 used."""
    plan = planned(shape("bert-base-uncased"), Workload(batch=8))
    assert not any(CACHE in parts for parts in plan.parts.values())
    assert plan.peak < 4 * 4 * plan.parameters


def test_layouts_that_cannot_work_come_first_with_all_reasons() -> None:
    with pytest.raises(UsageError, match="9 attention heads") as caught:
        planned(shape("SmolLM2-135M"), layout=Layout(tp=2, pp=31))
    assert "30 layers" in str(caught.value) and "give tp= one of 1, 3" in str(caught.value).replace("tp one", "tp= one")
    assert isinstance(planned(shape("SmolLM2-135M"), layout=Layout(tp=3)), Plan)


def test_ranks_that_hold_the_same_are_one_entry() -> None:
    plan = planned(LLAMA, TRAINING, Layout(dp=2, zero=3, tp=2, pp=4))
    ranks = [rank for entry in plan.devices for rank in entry.ranks]
    assert sorted(ranks) == list(range(16)) and len(plan.devices) < 16
    assert plan.peak == max(entry.bytes for entry in plan.devices)
    assert plan.devices[0].place.startswith("stage 1 of 4")
    last = next(entry for entry in plan.devices if 15 in entry.ranks)
    assert last.phases != plan.devices[0].phases  # the head and the embeddings are on different stages


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_zero_divides_what_it_says(zero: int) -> None:
    """DeepSpeed's estimators know no ZeRO-1, and are wrong about the gradients of ZeRO-2 (#5102)."""
    plan = planned(LLAMA, TRAINING, Layout(dp=8, zero=zero))  # type: ignore[arg-type]
    step = plan.worst.phases[[phase.name for phase in plan.worst.phases].index("clip")].parts()
    whole = 4 * plan.parameters
    share = {name: step[name] / whole for name in (WEIGHTS, GRADIENTS, OPTIMIZER)}
    assert share[WEIGHTS] == pytest.approx(1 / 8 if zero >= 2 else 1, rel=0.02)
    assert share[GRADIENTS] == pytest.approx(1 / 8 if zero >= 2 else 1, rel=0.02)
    assert share[OPTIMIZER] == pytest.approx(2 if zero == 0 else 2 / 8, rel=0.2)


def test_layouts_need_less_the_more_they_share() -> None:
    peaks = [planned(LLAMA, TRAINING, Layout(dp=8, zero=zero)).peak for zero in (0, 1, 2, 3)]  # type: ignore[arg-type]
    assert peaks == sorted(peaks, reverse=True)
    assert planned(LLAMA, TRAINING, Layout(tp=4)).peak < planned(LLAMA, TRAINING, Layout(tp=2)).peak
    assert planned(LLAMA, layout=Layout(pp=4)).peak < planned(LLAMA).peak / 3


def test_options_without_effect_are_refused() -> None:
    for options in (
        {"optimizer": "sgd"},
        {"purpose": "training", "prompt": 3},
        {"lora_rank": 4, "purpose": "training"},
    ):
        with pytest.raises(UsageError, match="has no effect"):
            Workload(**options)
    with pytest.raises(UsageError, match="checkpointing"):
        Workload(purpose="training", checkpointing="some")
    assert Workload(purpose="training", checkpointing="3").recomputed_every == 3


def test_the_time_is_a_bound_with_its_assumptions() -> None:
    from plainformer.plan.asked import TargetOptions

    plan = planned(LLAMA, Workload(dtype="bf16"), device=find_device("H100"))
    bound = plan.time
    assert bound is not None and bound.limits["token"] == "memory"
    # One token reads 13.2 GB of matrices, and 0.4 GB of keys and values, at 0.7 x 3.35 TB/s.
    assert bound.seconds["token"] == pytest.approx((2 * 6.607e9 + 768 * 524288) / (0.7 * 3.35e12), rel=0.01)
    assert bound.tokens_per_second == pytest.approx(1 / bound.seconds["token"])
    assert any("70% of 3,350 GB/s" in one for one in bound.assumptions)
    fast = planned(
        LLAMA, Workload(dtype="bf16"), None, find_device("H100"), TargetOptions(device="H100", bandwidth_share=1.0)
    )
    assert fast.time is not None and fast.time.seconds["token"] == pytest.approx(0.7 * bound.seconds["token"])
    training = planned(
        LLAMA, Workload(purpose="training", precision="bf16", length=2048), device=find_device("H100")
    ).time
    assert training is not None
    assert training.seconds["step"] == pytest.approx(6 * 6.607e9 * 2048 / (0.45 * 989e12), rel=0.1)
    assert planned(LLAMA, device=of_size(10**11)).time is None
    albert = config_from_dict(tiny("albert", "AlbertForMaskedLM") | {"num_hidden_layers": 12})
    few = config_from_dict(tiny("albert", "AlbertForMaskedLM") | {"num_hidden_layers": 1})
    long, short = (planned(one, device=find_device("H100")).time for one in (albert, few))
    assert long is not None and short is not None and long.seconds["prefill"] > 4 * short.seconds["prefill"]


def test_a_pipeline_waits() -> None:
    one, many = (
        planned(LLAMA, Workload(purpose="training", accumulate=count), Layout(pp=4), find_device("H100")).time
        for count in (1, 16)
    )
    assert one is not None and many is not None
    assert one.seconds["step"] * 16 > 2.5 * many.seconds["step"]
    assert any("75%" in said for said in one.assumptions)


def test_pf_plan_is_the_package_called() -> None:
    assert isinstance(plainformer.plan(LLAMA, batch=2), Plan)
    code = "import plainformer.plan.result, plainformer\nprint(plainformer.plan(params='1B').fits)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
