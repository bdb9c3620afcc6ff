"""What one process of a run of several does, without drawing its curves."""

from __future__ import annotations

from typing import Any
from unittest import mock

from plainformer.config.building import build
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Written
from plainformer.train import record
from plainformer.training import Event, train


def go_on(rank: int, data: dict[str, Any], until: int) -> str:
    """Train until a step is written down; the first process, which hears of it, asks all to stop."""
    reached = False

    def hear(event: Event) -> None:
        nonlocal reached
        reached = reached or (event.kind == "learnt" and event.values["step"] >= until)

    return _trained(data, on_event=hear, stop=lambda: reached)


def all_of(rank: int, runs: list[dict[str, Any]]) -> list[str]:
    """Train several runs, one after the other."""
    return [_trained(data) for data in runs]


def _trained(data: dict[str, Any], **options: Any) -> str:
    with mock.patch.multiple(record, draw_plots=lambda folder: [], _board=lambda folder, step: None):
        return train(build(TrainConfig, Written(data)), **options).ended
