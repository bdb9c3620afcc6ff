"""The section `parallel` of a run: which layout it asks for, and what is refused before a process starts."""

from __future__ import annotations

from typing import Any

import pytest

from plainformer.config.layout import Layout
from plainformer.config.parallel import ParallelConfig, processes
from plainformer.errors import UsageError


@pytest.mark.parametrize(
    ("asked", "count", "layout"),
    [
        ({}, None, Layout()),
        ({}, 4, Layout(dp=4)),
        ({"zero": 3}, 4, Layout(dp=4, zero=3)),
        ({"zero": 3}, 1, Layout(dp=1, zero=3)),  # the same command on one process
        ({"tp": 2, "zero": 2}, 8, Layout(dp=4, tp=2, zero=2)),
        ({"tp": 2, "pp": 2, "schedule": "gpipe"}, 8, Layout(dp=2, tp=2, pp=2, schedule="gpipe")),
    ],
)
def test_what_tensor_and_pipeline_parallel_leave_is_data_parallel(
    asked: dict[str, Any], count: int | None, layout: Layout
) -> None:
    assert ParallelConfig(**asked).layout(count) == layout


@pytest.mark.parametrize(
    ("asked", "count", "what", "fix"),
    [
        ({"zero": 3}, None, "is for several processes, and this is one", "torchrun --nproc-per-node 2 "),
        ({"tp": 4}, None, "is for several processes, and this is one", "torchrun --nproc-per-node 4 "),
        ({"timeout": 60}, None, "has no effect in one process", ""),
        ({"tp": 3}, 4, "4 processes cannot be divided by parallel.tp=3", "1, 2, 4"),
        ({"tp": 2, "pp": 3}, 8, "8 processes cannot be divided by parallel.tp=2 · parallel.pp=3", "a multiple of 6"),
        ({"devices": 2}, 4, "is for one process, and torchrun started 4", ""),
    ],
)
def test_what_cannot_be_divided_is_refused_with_what_can(
    asked: dict[str, Any], count: int | None, what: str, fix: str
) -> None:
    with pytest.raises(UsageError) as caught:
        ParallelConfig(**asked).layout(count)
    assert what in caught.value.what and fix in caught.value.fix


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"zero": 4}, "zero=4 is not a whole number from 0 to 3"),
        ({"tp": 0}, "tp=0 is not a whole number"),
        ({"schedule": "gpipe"}, "schedule has no effect without pp=2 or more"),
        ({"timeout": 0}, "timeout=0 is not a number in (0, inf)"),
        ({"devices": 1}, "devices=1 is neither a number of devices nor several"),
        ({"devices": "cpu"}, "devices='cpu' is neither"),
        ({"devices": "cpu,gpu"}, "devices='cpu,gpu' is neither"),
        ({"devices": 2, "zero": 1}, "devices=2 is for one process, and zero=1 for several"),
    ],
)
def test_options_that_cannot_work_are_refused(asked: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        ParallelConfig(**asked)
    assert caught.value.what.startswith(what)


def test_devices_of_one_process() -> None:
    assert ParallelConfig().on("cuda:1") == ["cuda:1"]
    assert ParallelConfig(devices=2).on("cuda") == ["cuda:0", "cuda:1"]
    assert ParallelConfig(devices=3).on("cpu") == ["cpu"] * 3
    assert ParallelConfig(devices="cuda:0, cuda:2").on("cuda") == ["cuda:0", "cuda:2"]
    with pytest.raises(UsageError, match="are not all of"):
        ParallelConfig(devices="cpu,cuda:0").on("cpu")


def test_the_number_of_processes_is_torchruns() -> None:
    assert processes({}) is None
    assert processes({"WORLD_SIZE": "4"}) == 4
