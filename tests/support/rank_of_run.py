"""What one process of a run of several does, in a module that is quick to import: each rank imports it anew."""

from __future__ import annotations

from typing import Any

from plainformer.config.building import build
from plainformer.config.training import TrainConfig
from plainformer.config.yaml import Written
from plainformer.training import Event, train


def go_on(rank: int, data: dict[str, Any], until: int) -> str:
    """Train until a step is written down; the first process, which hears of it, asks all to stop."""
    reached = False

    def hear(event: Event) -> None:
        nonlocal reached
        reached = reached or (event.kind == "learnt" and event.values["step"] >= until)

    return train(build(TrainConfig, Written(data)), on_event=hear, stop=lambda: reached).ended


def all_of(rank: int, runs: list[dict[str, Any]]) -> list[str]:
    """Train several runs, one after the other."""
    return [train(build(TrainConfig, Written(data))).ended for data in runs]
