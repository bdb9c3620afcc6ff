"""Every family learns in every form what it learns in one process: losses to 5e-6, norms and gradients to 1e-5, and curves.

Forms of data parallelism drop numbers, the same ones as one process does. Ranks of the others draw for what is theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from plainformer.config.layout import Layout
from plainformer.parallel.mesh import start
from tests.support.parallel import FAMILIES, Ran, Steps, differences, dropping, with_adapters
from tests.support.ranks import run_ranks


class Case(NamedTuple):
    """What one process does once, however many forms are compared with it."""

    family: str
    dropout: float
    layers: int
    micro: int
    adapted: bool = False


SHORT, CURVE = 2, 20
FORMS: dict[int, list[tuple[Layout, int]]] = {
    2: [
        (Layout(dp=2), CURVE),
        (Layout(dp=2, zero=1), SHORT),
        (Layout(dp=2, zero=2), SHORT),
        (Layout(dp=2, zero=3), CURVE),
        (Layout(tp=2), CURVE),
        (Layout(pp=2), CURVE),
    ],
    3: [(Layout(dp=3, zero=1), SHORT), (Layout(dp=3, zero=3), SHORT)],
    4: [
        (Layout(dp=4, zero=3), SHORT),
        (Layout(tp=4), SHORT),
        (Layout(pp=4), SHORT),
        (Layout(dp=2, tp=2, zero=1), SHORT),
        (Layout(dp=2, tp=2, zero=3), SHORT),
        (Layout(dp=2, pp=2), SHORT),
        (Layout(dp=2, pp=2, zero=1, schedule="gpipe"), SHORT),
        (Layout(dp=2, pp=2, zero=3), SHORT),
        (Layout(tp=2, pp=2), SHORT),
    ],
    8: [
        (Layout(dp=8, zero=3), SHORT),
        (Layout(dp=2, tp=2, pp=2, zero=3), SHORT),
        (Layout(dp=2, tp=4), SHORT),
        (Layout(dp=2, pp=4, zero=1), SHORT),
    ],
}
ADAPTED: dict[int, list[Layout]] = {
    2: [Layout(dp=2, zero=1), Layout(dp=2, zero=3), Layout(tp=2), Layout(pp=2)],
    4: [Layout(tp=2, pp=2), Layout(dp=2, tp=2, zero=3), Layout(dp=2, pp=2, zero=2)],
    8: [Layout(dp=2, tp=2, pp=2, zero=3)],
}
SOME = ("llama", "t5", "albert", "qwen3", "whisper")  # those that differ most
WALKED = {2: FAMILIES, 3: SOME, 4: FAMILIES, 8: SOME}


def cases(world: int) -> list[tuple[Case, Layout, int]]:
    """What some processes walk: who learns, in which form, how many steps."""
    found = [(case_of(family, layout), layout, count) for family in WALKED[world] for layout, count in FORMS[world]]
    for family in ("llama", "gpt2", "t5", "albert"):
        for layout in ADAPTED.get(world, []):
            found.append((case_of(family, layout)._replace(dropout=0.0, adapted=True), layout, SHORT))
    return found


def case_of(family: str, layout: Layout) -> Case:
    pair = family in ("t5", "whisper")
    layers = 4 if layout.pp == 4 and not pair else 2
    return Case(family, 0.1 if layout.tp * layout.pp == 1 else 0.0, layers, 9 if layout.dp == 8 else 3)


def steps_of(case: Case, layout: Layout | None = None) -> Steps:
    change = with_adapters if case.adapted else lambda model: None
    config = dropping(case.family, case.dropout, case.layers)
    return Steps(config, None if layout is None else start(layout), change=change)


@pytest.fixture(scope="module")
def alone() -> dict[Case, Ran]:
    """What one process learns."""
    most: dict[Case, int] = {}
    for world in FORMS:
        for case, _, count in cases(world):
            most[case] = max(count, most.get(case, 0))
    return {case: steps_of(case).learn(count, case.micro) for case, count in most.items()}


def _walk(rank: int, world: int, alone: dict[Case, Ran]) -> list[str]:
    found = []
    for case, layout, count in cases(world):
        own = steps_of(case, layout).learn(count, case.micro)
        found += [f"{case}, {layout}: {one}" for one in differences(own, alone[case])]
    return found


@pytest.mark.parametrize("world", FORMS)
def test_every_form_is_one_process(world: int, alone: dict[Case, Ran]) -> None:
    for found in run_ranks(_walk, world, world, alone):
        assert found == []


def test_curves_are_of_what_learns(alone: dict[Case, Ran]) -> None:
    """Some gradients are clipped, others are not, and weights change."""
    curves = [ran for ran in alone.values() if len(ran.losses) == CURVE]
    assert any(max(ran.norms) > 1 for ran in curves) and any(min(ran.norms) < 1 for ran in curves)
    assert all(len(set(ran.losses)) == CURVE for ran in curves)
