"""Data parallel and ZeRO against one process: losses, gradients, norms and a curve, by the training loop's own steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plainformer.config.layout import Layout
from plainformer.parallel.mesh import start
from plainformer.parallel.sync import Turn, dealt
from tests.support.parallel import CONFIGS, Steps, differences
from tests.support.ranks import run_ranks

CURVE = 20


def _found(rank: int, zeros: tuple[int, ...]) -> list[str]:
    """Everything that is to be seen with some number of ranks; what is wrong, as texts."""
    said = []
    meshes = [start(Layout(dp=torch.distributed.get_world_size(), zero=zero)) for zero in zeros]  # type: ignore[arg-type]
    for name, make in CONFIGS.items():
        steps = CURVE if name == "qwen3" else 2
        expected = Steps(make()).learn(steps)
        for mesh in meshes:
            own = Steps(make(), mesh).learn(steps)
            said += [f"{name}, zero {mesh.layout.zero}: {one}" for one in differences(own, expected)]
            if not torch.equal(torch.tensor(own.history).isnan(), torch.tensor(expected.history).isnan()):
                said.append(f"{name}, zero {mesh.layout.zero}: other examples in the history")
    return said


@pytest.mark.parametrize("world", [2, 4])
def test_every_form_equals_one_process(world: int) -> None:
    found = run_ranks(_found, world, (0, 1, 2, 3))
    assert found == [[]] * world


@pytest.mark.parametrize(
    ("count", "ranks", "turns"),
    [
        (4, 2, [[(0, True), (2, True)], [(1, True), (3, True)]]),
        (3, 2, [[(0, True), (2, True)], [(1, True), (0, False)]]),
        (1, 3, [[(0, True)], [(0, False)], [(0, False)]]),
    ],
)
def test_micro_batches_are_dealt_out_by_their_number(
    count: int, ranks: int, turns: list[list[tuple[int, bool]]]
) -> None:
    assert [dealt(count, ranks, rank) for rank in range(ranks)] == [[Turn(*turn) for turn in own] for own in turns]


def test_devices_of_one_process_equal_one_device() -> None:
    for name in ("qwen3", "t5"):
        config: Any = CONFIGS[name]()
        own, expected = Steps(config, devices=["cpu", "cpu"]).learn(4), Steps(config).learn(4)
        assert differences(own, expected) == []
