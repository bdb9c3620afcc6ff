"""Schedules beside the reference's, at every step; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from plainformer.config.training import ScheduleConfig
from plainformer.errors import UsageError
from plainformer.train.schedule import check_schedule, decay_steps, factor, warmup_steps

Make = Callable[[Any, int, int], Any]
LINEAR: Make = transformers.get_linear_schedule_with_warmup
COSINE: Make = transformers.get_cosine_schedule_with_warmup


def constant(optimizer: Any, warmup: int, total: int) -> Any:
    return transformers.get_constant_schedule_with_warmup(optimizer, warmup)


def cosine_to(share: float) -> Make:
    def make(optimizer: Any, warmup: int, total: int) -> Any:
        return transformers.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, total, min_lr_rate=share)

    return make


def wsd(decay: int) -> Make:
    def make(optimizer: Any, warmup: int, total: int) -> Any:
        return transformers.get_wsd_schedule(optimizer, warmup, decay, num_training_steps=total, decay_type="linear")

    return make


def reference(make: Make, warmup: int, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    scheduler = make(optimizer, warmup, total)
    rates = []
    for _ in range(total + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("total", [1, 2, 7, 100, 1013])
@pytest.mark.parametrize("warmup", [0, 0.06, 0.1, 1, 5])
@pytest.mark.parametrize(
    ("kind", "make"), [("linear", LINEAR), ("cosine", COSINE), ("constant", constant), ("wsd", None)]
)
def test_every_step_is_the_reference_s(kind: str, make: Make | None, warmup: float, total: int) -> None:
    config = ScheduleConfig(kind=kind, warmup=warmup, **({"decay": 0.3} if kind == "wsd" else {}))
    steps = warmup_steps(config, total)
    if steps >= total or (kind == "wsd" and steps + decay_steps(config, total) > total):
        pytest.skip("refused: see below")
    check_schedule(config, total)
    expected = reference(make or wsd(decay_steps(config, total)), steps, total)
    assert [factor(config, k, total) for k in range(total + 1)] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_final_share_is_the_reference_s() -> None:
    config = ScheduleConfig(kind="cosine", warmup=0, final=0.1)
    made = [factor(config, k, 50) for k in range(51)]
    assert made == pytest.approx(reference(cosine_to(0.1), 0, 50), rel=1e-12)
    assert made[-1] == pytest.approx(0.1)
    for kind in ("linear", "wsd"):
        config = ScheduleConfig(kind=kind, warmup=0, final=0.25)
        assert factor(config, 0, 40) == 1 and factor(config, 40, 40) == factor(config, 99, 40) == 0.25


@pytest.mark.parametrize(
    ("share", "total", "steps"), [(0.1, 100, 10), (0.07, 100, 7), (0.1, 101, 11), (0.1, 1, 0), (0.99, 5, 4), (3, 10, 3)]
)
def test_steps_of_the_warmup(share: float, total: int, steps: int) -> None:
    assert warmup_steps(ScheduleConfig(warmup=share), total) == steps


def test_a_share_is_rounded_as_the_reference_rounds_it(tmp_path: Any) -> None:
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), warmup_steps=0.06, use_cpu=True)
    config = ScheduleConfig(warmup=0.06)
    for total in range(2, 400):
        assert abs(warmup_steps(config, total) - arguments.get_warmup_steps(total)) <= (total % 50 == 0)


def test_shares_that_add_up_to_one_always_fit() -> None:
    for total in range(2, 300):
        check_schedule(ScheduleConfig(kind="wsd", warmup=0.3, decay=0.7), total)


@pytest.mark.parametrize(
    ("options", "total", "message"),
    [
        ({"warmup": 11}, 10, "warmup=11.*would not end"),
        ({"kind": "wsd", "warmup": 0.5, "decay": 0.6}, 10, "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], total: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_schedule(ScheduleConfig(**options), total)
