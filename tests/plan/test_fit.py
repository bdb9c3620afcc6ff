"""What fits: the answer does, a step further does not, and brute force finds the same."""

from __future__ import annotations

import pytest

from plainformer.config import ModelConfig
from plainformer.config.layout import Layout
from plainformer.errors import UsageError
from plainformer.families import config_from_dict
from plainformer.plan.asked import LayoutOptions, TargetOptions
from plainformer.plan.devices import find_device, of_size
from plainformer.plan.fit import at_length, candidates, fit_batch, fit_context, fit_layout, fit_models
from plainformer.plan.planned import Plan, planned
from plainformer.plan.published import published
from plainformer.plan.workload import Workload
from tests.support.configs import tiny

GB = 10**9


def shape(name: str) -> ModelConfig:
    return config_from_dict(dict(next(one for one in published() if one.name == name).config))


SMALL = shape("SmolLM2-135M")


@pytest.mark.parametrize(
    "workload",
    [
        Workload(),
        Workload(copies=4, dtype="bf16"),
        Workload(purpose="training"),
        Workload(purpose="training", checkpointing="all"),
    ],
)
def test_the_largest_batch_fits_and_the_next_does_not(workload: Workload) -> None:
    plan = planned(SMALL, workload, device=of_size(8 * GB))
    most = plan.largest_batch
    assert most and plan.with_workload(batch=most).fits and not plan.with_workload(batch=most + 1).fits
    found = fit_batch(plan)
    assert found.plans[0].workload.batch == most and found.rejected is not None
    assert f"{most} rows" in found.answer and " GB there, in " in found.why and f"{most + 1} rows" in found.why
    assert plan.headroom_rows == most - 1


def test_the_peak_grows_with_batch_and_length_so_that_halving_is_right() -> None:
    for workload in (Workload(), Workload(purpose="training")):
        plan = planned(SMALL, workload, device=of_size(2 * GB))
        fits = [bool(plan.with_workload(batch=rows).fits) for rows in range(1, 60)]
        assert fits == sorted(fits, reverse=True)
        assert sum(fits) == min(plan.largest_batch or 0, 59)
        lengths = [at_length(plan, tokens).peak for tokens in range(1, 300, 7)]
        assert lengths == sorted(lengths)


def test_the_largest_context() -> None:
    plan = planned(SMALL, device=of_size(1 * GB))
    found = fit_context(plan)
    most = plan.largest_context
    assert most and found.plans[0].context == most and found.rejected is not None and not found.rejected.fits
    assert found.rejected.context == most + 1 and "may follow the prompt" in found.answer
    assert plan.headroom_tokens == most - 1024


def test_a_table_of_positions_is_a_limit_too() -> None:
    plan = planned(shape("bert-base-uncased"), device=of_size(100 * GB))
    found = fit_context(plan)
    assert plan.largest_context == 512 and "no more positions" in found.answer and found.rejected is None


def test_nothing_fits() -> None:
    plan = planned(SMALL, device=of_size(GB // 10))
    assert plan.largest_batch == 0 == plan.largest_context
    assert fit_batch(plan).plans == () == fit_context(plan).plans
    assert "not even one row" in fit_batch(plan).answer
    assert "not even one row of one token fits" in str(plan)


def test_what_there_is_nothing_to_fit_to() -> None:
    plan = planned(SMALL)
    assert plan.fits is plan.headroom is plan.largest_batch is plan.largest_context is None
    for fit in (fit_batch, fit_context, lambda one: fit_layout(one, LayoutOptions()), lambda one: fit_models([one])):
        with pytest.raises(UsageError, match="memory"):
            fit(plan)
    picture = planned(config_from_dict(tiny("vit", "ViTForImageClassification")), device=of_size(GB))
    assert picture.largest_context is None
    with pytest.raises(UsageError, match="reads no text"):
        fit_context(picture)


def _made(config: ModelConfig, memory: int, **options: object) -> Plan:
    target = TargetOptions(memory=str(memory))
    return planned(config, Workload(purpose="training", **options), None, of_size(memory), target)  # type: ignore[arg-type]


def test_a_layout_of_fewest_devices_and_why_the_next_cheaper_one_does_not_fit() -> None:
    plan = planned(shape("Llama-3.2-1B"), Workload(purpose="training"), device=find_device("RTX 3060"))
    asked = LayoutOptions(devices=4)
    found = fit_layout(plan, asked)
    tried = list(candidates(plan, asked))
    fewest = min(one.layout.world for one in tried if one.fits)
    assert found.plans[0].layout.world == fewest and all(one.fits for one in found.plans) and len(found.plans) == 3
    same = [one for one in tried if one.fits and one.layout.world == fewest]
    rates = [one.time.tokens_per_second or 0 for one in same if one.time is not None]
    best = found.plans[0].time
    assert best is not None and best.tokens_per_second == max(rates)
    assert found.rejected is not None and not found.rejected.fits
    assert found.rejected.layout.world <= fewest and found.rejected.phase in found.why and "12.48 GB there" in found.why


def test_what_was_asked_for_stays() -> None:
    plan = _made(SMALL, 2 * GB, checkpointing="all")
    for one in candidates(plan, LayoutOptions(devices=8, tp=1, zero=3)):
        assert (one.layout.tp, one.workload.checkpointing) == (1, "all")
        assert one.layout.zero == (3 if one.layout.dp > 1 else 0)
    assert {one.layout.tp for one in candidates(plan, LayoutOptions(devices=9))} == {1, 3}  # 9 heads


def test_no_layout_fits() -> None:
    found = fit_layout(_made(shape("Llama-2-7b"), GB), LayoutOptions(devices=2))
    assert found.plans == () and "no layout of up to 2 devices fits" in found.answer and "nearest" in found.why


def test_models_that_fit() -> None:
    plans = [
        planned(shape(name), Workload(dtype="bf16"), device=of_size(8 * GB))
        for name in ("gpt2", "Llama-3.2-3B", "Llama-2-7b")
    ]
    found = fit_models(plans)
    assert found.plans[0] is plans[1] and found.rejected is plans[2] and "14.29 GB needed, 8.00 GB there" in found.why
    assert "no published model" in fit_models([planned(SMALL, device=of_size(1000))]).answer


def test_a_layout_that_leaves_devices_over_is_refused() -> None:
    with pytest.raises(UsageError, match="do not divide 8 devices"):
        LayoutOptions(devices=8, tp=3).layout()
    assert LayoutOptions(devices=8, nodes=2, tp=2, pp=2, zero=3).layout() == Layout(dp=4, zero=3, tp=2, pp=2)
    for options in ({"zero": 2}, {"nodes": 2}, {"schedule": "gpipe"}):
        with pytest.raises(UsageError, match="has no effect"):
            LayoutOptions(**options).layout()
    with pytest.raises(UsageError, match="are 4 ranks"):
        LayoutOptions(devices=8, dp=2, tp=2).layout()
