"""Every task through the same battery (tests/support/battery.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import plainformer
from plainformer.tasks import TASKS
from tests.support.battery import check_task
from tests.support.battery_cases import BATTERY
from tests.support.models import save


def test_no_task_is_left_out() -> None:
    assert set(BATTERY) == set(TASKS)


@pytest.mark.parametrize("name", BATTERY)
def test_what_holds_for_every_task(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint, changes, items, option, options = BATTERY[name]
    folder = save(checkpoint, tmp_path / "made", **changes) if changes else tiny(checkpoint)
    task = plainformer.load(str(folder), task=name, backend="plain")
    check_task(task, items, tmp_path / "saved", option, sides=name != "question-answering", **options)
