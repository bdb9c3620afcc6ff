"""Every family learns in every form what it learns in one process: losses to 5e-6, norms and gradients to 1e-5, and curves.

Forms of data parallelism drop numbers, the same ones as one process does. Ranks of the others draw for what is theirs.

Each family takes a part of the forms in turn, so that each form has families that differ, and each family has forms of each
kind: data parallel with whole and with shared-out gradients, divided heads, stages. On two processes each has a curve, too.
All families in all stages and with all divisions of heads are in `test_pipeline.py` and `test_tensor.py`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
import torch

from plainformer.config.layout import Layout
from plainformer.parallel.gather import Share
from tests.support.parallel import FAMILIES, Ran, Steps, differences, dropping, with_adapters
from tests.support.ranks import run_ranks
from tests.support.shares import joined


class Case(NamedTuple):
    """What one process does once, however many forms are compared with it."""

    family: str
    dropout: float
    layers: int
    micro: int
    adapted: bool = False


SHORT, CURVE = 2, 20
# Processes → all forms; those of a family with the number n are every second, third ... from the n-th on, see TURNS.
FORMS: dict[int, list[Layout]] = {
    2: [Layout(dp=2), Layout(dp=2, zero=1), Layout(dp=2, zero=2), Layout(dp=2, zero=3), Layout(tp=2), Layout(pp=2)],
    3: [Layout(dp=3, zero=1), Layout(dp=3, zero=3)],
    4: [
        Layout(dp=4, zero=3),
        Layout(tp=4),
        Layout(pp=4),
        Layout(dp=2, tp=2, zero=1),
        Layout(dp=2, tp=2, zero=3),
        Layout(dp=2, pp=2),
        Layout(dp=2, pp=2, zero=1, schedule="gpipe"),
        Layout(tp=2, pp=2),
        Layout(dp=2, pp=2, zero=3),
    ],
    8: [
        Layout(dp=8, zero=3),
        Layout(dp=2, tp=2, pp=2, zero=3),
        Layout(dp=2, tp=4),
        Layout(dp=2, pp=4, zero=1),
    ],
}
TURNS = {2: 2, 3: 2, 4: 3, 8: 4}
CURVES: dict[int, list[tuple[str, Layout]]] = {
    2: [(family, FORMS[2][(0, 3, 4, 5)[number % 4]]) for number, family in enumerate(FAMILIES)],
    3: [("gpt2", FORMS[3][1])],
    4: [("t5", FORMS[4][4])],
    8: [("llama", FORMS[8][1])],
}
ADAPTED: dict[int, list[tuple[str, Layout]]] = {
    2: [
        *((family, Layout(dp=2, zero=1)) for family in ("llama", "albert")),
        *((family, Layout(dp=2, zero=3)) for family in ("gpt2", "t5")),
        *((family, Layout(tp=2)) for family in ("llama", "gpt2", "t5", "albert")),
        *((family, Layout(pp=2)) for family in ("gpt2", "t5", "albert")),
    ],
    4: [
        ("t5", Layout(tp=2, pp=2)),
        ("albert", Layout(tp=2, pp=2)),
        ("gpt2", Layout(dp=2, tp=2, zero=3)),
        ("llama", Layout(dp=2, pp=2, zero=2)),
    ],
    8: [("gpt2", Layout(dp=2, tp=2, pp=2, zero=3))],
}


def cases(world: int) -> list[tuple[Case, Layout, int]]:
    """What some processes walk: who learns, in which form, how many steps."""
    curves, found = CURVES[world], []
    for number, family in enumerate(FAMILIES):
        for layout in FORMS[world][number % TURNS[world] :: TURNS[world]]:
            if (family, layout) not in curves:
                found.append((case_of(family, layout), layout, SHORT))
    found += [(case_of(family, layout), layout, CURVE) for family, layout in curves]
    for family, layout in ADAPTED.get(world, []):
        found.append((case_of(family, layout)._replace(dropout=0.0, adapted=True), layout, SHORT))
    return found


def case_of(family: str, layout: Layout) -> Case:
    pair = family in ("t5", "whisper")
    layers = 4 if layout.pp == 4 and not pair else 2
    return Case(family, 0.1 if layout.tp * layout.pp == 1 else 0.0, layers, 9 if layout.dp == 8 else 3)


def steps_of(case: Case, layout: Layout | None = None) -> Steps:
    change = with_adapters if case.adapted else lambda model: None
    config = dropping(case.family, case.dropout, case.layers)
    return Steps(config, None if layout is None else joined(layout), change=change)


@cache
def alone(case: Case) -> Ran:
    """What one process learns, in as many steps as anyone takes."""
    most = max(count for world in FORMS for other, _, count in cases(world) if other == case)
    return steps_of(case).learn(most, case.micro)


def _walk(rank: int, world: int, expected: dict[Case, Ran]) -> list[str]:
    found = []
    for case, layout, count in cases(world):
        own = steps_of(case, layout).learn(count, case.micro)
        found += [f"{case}, {layout}: {one}" for one in differences(own, expected[case])]
    return found


@pytest.mark.parametrize("world", FORMS)
def test_every_form_is_one_process(world: int) -> None:
    for found in run_ranks(_walk, world, world, {case: alone(case) for case, *_ in cases(world)}):
        assert found == []


def test_every_family_is_everywhere() -> None:
    """On each number of processes; each form with some that differ; and a curve of 20 steps."""
    for world, layouts in FORMS.items():
        walked = [(case.family, layout) for case, layout, _ in cases(world)]
        assert {family for family, _ in walked} == set(FAMILIES)
        assert all(len({family for family, other in walked if other == layout}) >= 2 for layout in layouts)
    assert {family for family, _ in CURVES[2]} == set(FAMILIES)
    assert len({layout for _, layout in CURVES[2]}) == 4


def test_curves_are_of_what_learns() -> None:
    """Some gradients are clipped, others are not, and weights change."""
    curves = [alone(case_of(*one)) for world in CURVES for one in CURVES[world]]
    assert any(max(ran.norms) > 1 for ran in curves) and any(min(ran.norms) < 1 for ran in curves)
    assert all(len(set(ran.losses)) == CURVE for ran in curves)


def test_a_comparison_notices() -> None:
    """What is not as in one process: a loss, a norm, a gradient, one that is missing, one too many, a name that is lacking."""
    share, ones = Share("a", (2,), ((0, 2),)), torch.ones(2)
    expected = Ran([1.0, 2.0], [3.0], {"a": (ones, share), "b": (None, share)})
    same = {"a": (ones, share), "b": (None, share)}
    assert differences(Ran([1.0], [3.0], same), expected) == []
    for losses, norms, gradients, said in (
        ([1.1], [3.0], same, "loss differs"),
        ([1.0], [3.1], same, "norm differs"),
        ([1.0], [3.0], {**same, "a": (ones + 1e-4, share)}, "gradient of a differs"),
        ([1.0], [3.0], {**same, "a": (None, share)}, "a: one has no gradient"),
        ([1.0], [3.0], {**same, "b": (ones, share)}, "b: one has no gradient"),
        ([1.0], [3.0], {**same, "c": (ones, share)}, "c is not known"),
        ([1.0], [3.0], {"a": (ones, share)}, "b is not here"),
    ):
        (found,) = differences(Ran(losses, norms, gradients), expected)  # type: ignore[arg-type]
        assert said in found
    elsewhere = Ran([1.0], [3.0], {"a": (ones, share)}, holds=lambda name: name == "a")
    assert differences(elsewhere, expected) == []
