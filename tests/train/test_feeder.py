"""Batches come from a thread in order, ahead of time; what goes wrong there is raised here; it ends when told."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from plainformer.train.feeder import Feeder


def test_steps_come_in_order_and_ahead_of_time() -> None:
    prepared: list[int] = []

    def prepare(step: int) -> int:
        prepared.append(step)
        return step * step

    with Feeder(prepare, 3, 8) as feeder:
        found = []
        for square in feeder:
            until = time.monotonic() + 10
            while len(prepared) < min(5, len(found) + 3) and time.monotonic() < until:
                time.sleep(0.001)
            assert len(prepared) >= min(5, len(found) + 3)  # this one and two more
            found.append(square)
    assert found == [9, 16, 25, 36, 49]


def test_an_error_is_raised_where_its_step_is_asked_for() -> None:
    def prepare(step: int) -> int:
        if step == 2:
            raise ValueError("a bad example")
        return step

    found: list[int] = []
    with pytest.raises(ValueError, match="a bad example"), Feeder(prepare, 0, 5) as feeder:
        for step in feeder:
            found.append(step)
    assert found == [0, 1]


def test_it_ends_although_nobody_takes_what_it_made() -> None:
    before = threading.active_count()
    with Feeder(lambda step: torch.zeros(3), 0, 10**9) as feeder:
        next(iter(feeder))
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_waiting_is_measured() -> None:
    with Feeder(lambda step: time.sleep(0.05), 0, 3) as feeder:
        assert len(list(feeder)) == 3
    assert feeder.waited > 0.1
