"""The plan beside brute force: every example, or every token, exactly once in an epoch, whatever was asked before."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.config.training import BatchConfig, LengthConfig
from plainformer.errors import CheckpointError, InputError, PlainformerError, UsageError
from plainformer.train.plan import Piece, Plan, Step, evaluation_batches, load_plan, make_plan

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=60).filter(any)


def plan_of(lengths: list[int], *, packs: bool = False, epochs: int = 3, seed: int = 0, **batches: object) -> Plan:
    if packs:
        batches.setdefault("row_length", 16)
    return make_plan(lengths, BatchConfig(**batches), LengthConfig(epochs=epochs), seed, packs=packs)


def tokens_of(step: Step, lengths: list[int]) -> list[tuple[int, int]]:
    """(example, place) of every token of a step, in order."""
    pieces = [piece for micro in step.micro for row in micro for piece in row]
    return [(p.example, t) for p in pieces for t in range(p.start, lengths[p.example] if p.stop is None else p.stop)]


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.booleans(), st.integers(0, 3))
def test_every_example_comes_exactly_once_in_an_epoch(
    lengths: list[int], size: int, by_length: bool, seed: int
) -> None:
    plan = plan_of(lengths, size=size, by_length=by_length, seed=seed)
    assert plan.total_steps == 3 * -(-len(lengths) // size)
    seen: Counter[int] = Counter()
    for k in range(plan.total_steps):
        step = plan.step(k)
        assert (step.step, step.epoch) == (k, k // plan.steps_per_epoch)
        rows = [row for micro in step.micro for row in micro]
        assert all(len(row) == 1 and row[0] == Piece(row[0].example) for row in rows)
        seen.update(row[0].example for row in rows)
        assert plan.seen(k + 1).tolist() == [seen[i] for i in range(len(lengths))]
        assert plan.tokens_seen(k + 1).tolist() == [seen[i] * lengths[i] for i in range(len(lengths))]
        if (k + 1) % plan.steps_per_epoch == 0:
            assert set(seen.values()) == {step.epoch + 1} and len(seen) == len(lengths)
    assert plan.seen(0).sum() == 0


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(2, 20), st.integers(0, 3))
def test_every_token_comes_exactly_once_in_a_packed_epoch(
    lengths: list[int], size: int, row_length: int, seed: int
) -> None:
    plan = plan_of(lengths, packs=True, size=size, row_length=row_length, seed=seed, epochs=2)
    seen: Counter[tuple[int, int]] = Counter()
    for k in range(plan.total_steps):
        step = plan.step(k)
        for row in (row for micro in step.micro for row in micro):
            held = tokens_of(Step(0, 0, ((row,),)), lengths)
            assert 0 < len(held) <= row_length
            assert all(piece.stop is None or piece.start < piece.stop <= lengths[piece.example] for piece in row)
        seen.update(tokens_of(step, lengths))
        counted = [sum(seen[i, t] for t in range(n)) for i, n in enumerate(lengths)]
        assert plan.tokens_seen(k + 1).tolist() == counted
        whole = [min((seen[i, t] for t in range(n)), default=0) for i, n in enumerate(lengths)]
        assert plan.seen(k + 1).tolist() == whole
        if (k + 1) % plan.steps_per_epoch == 0:
            assert set(seen.values()) == {step.epoch + 1} and len(seen) == sum(lengths) == plan.tokens_per_epoch


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.booleans(), st.lists(st.integers(0, 1000), max_size=8), st.integers(0, 1000))
def test_a_step_does_not_depend_on_what_was_asked_before(
    lengths: list[int], packs: bool, before: list[int], wanted: int
) -> None:
    asked, fresh = plan_of(lengths, packs=packs, size=4), plan_of(lengths, packs=packs, size=4)
    for k in before:
        asked.step(k % asked.total_steps)
        asked.seen(k)
    assert asked.step(wanted % asked.total_steps) == fresh.step(wanted % fresh.total_steps)


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.booleans(), st.integers(1, 8), st.integers(0, 1000))
def test_micro_batches_divide_a_step_and_change_nothing_else(
    lengths: list[int], packs: bool, micro: int, wanted: int
) -> None:
    whole, divided = plan_of(lengths, packs=packs, size=8), plan_of(lengths, packs=packs, size=8, micro=micro)
    one, many = whole.step(wanted % whole.total_steps), divided.step(wanted % divided.total_steps)
    assert len(one.micro) == 1
    assert [row for part in many.micro for row in part] == list(one.micro[0])
    sizes = [len(part) for part in many.micro]
    assert all(size == micro for size in sizes[:-1]) and 0 < sizes[-1] <= micro


@pytest.mark.parametrize(("micro", "sizes"), [(8, [8]), (4, [4, 4]), (5, [5, 3]), (1, [1] * 8), (None, [8])])
def test_accumulation_is_8_or_4_and_4_or_5_and_3(micro: int | None, sizes: list[int]) -> None:
    assert [len(part) for part in plan_of([3] * 16, size=8, micro=micro).step(0).micro] == sizes


@pytest.mark.parametrize("packs", [False, True])
def test_accumulated_gradients_do_not_depend_on_micro_batches(packs: bool) -> None:
    """A token's gradient is a number; a step's is their sum over all its micro-batches by all their tokens."""
    lengths = [3, 9, 1, 14, 6, 2, 8, 30, 5, 4, 7]
    gradient = np.random.default_rng(0).normal(size=(len(lengths), max(lengths)))

    def steps(micro: int) -> list[float]:
        plan = plan_of(lengths, packs=packs, size=5, micro=micro)
        found = []
        for k in range(plan.total_steps):
            parts = [tokens_of(Step(0, 0, (part,)), lengths) for part in plan.step(k).micro]
            labels = sum(map(len, parts))
            found.append(sum(sum(gradient[token] for token in part) / labels for part in parts))
        return found

    assert all(steps(micro) == pytest.approx(steps(5), rel=1e-12) for micro in (1, 2, 3, 4))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def orders(seed: int) -> list[list[int]]:
        plan = plan_of([5] * 64, size=64, seed=seed, epochs=2)
        return [[row[0].example for row in plan.step(k).micro[0]] for k in range(2)]

    first, other = orders(0), orders(1)
    assert first[0] != first[1] and first[0] != other[0] and first == orders(0)


def test_the_order_is_a_fair_shuffle() -> None:
    """Each example is in each step equally often: chi-square over 2,000 epochs, by length too."""
    lengths = [1] * 10 + [9] * 10
    for by_length in (False, True):
        plan = plan_of(lengths, size=4, by_length=by_length, epochs=2000)
        counts = np.zeros((plan.steps_per_epoch, len(lengths)))
        for k in range(plan.total_steps):
            for row in plan.step(k).micro[0]:
                counts[k % plan.steps_per_epoch, row[0].example] += 1
        expected = 2000 * 4 / len(lengths)
        statistic = ((counts - expected) ** 2 / expected).sum(axis=1)
        assert statistic.max() < 50, statistic  # 19 degrees of freedom: P(> 50) = 1e-4


def test_batches_of_like_length_have_less_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 5000).tolist()

    def padding(by_length: bool) -> float:
        plan = plan_of(lengths, size=32, by_length=by_length, epochs=1)
        held = [[lengths[row[0].example] for row in plan.step(k).micro[0]] for k in range(plan.total_steps)]
        found = 1 - sum(lengths) / sum(max(each) * len(each) for each in held)
        assert plan.padding() == pytest.approx(found)
        return found

    assert padding(True) < 0.03 < 0.4 < padding(False)


def test_the_rest_of_an_epoch_is_not_its_longest_examples() -> None:
    lengths = list(range(1, 102))
    rests = []
    for seed in range(200):
        plan = plan_of(lengths, size=10, seed=seed, epochs=1)
        steps = [[row[0].example for row in plan.step(k).micro[0]] for k in range(plan.total_steps)]
        (rest,) = [each for each in steps if len(each) < 10]
        rests.append(lengths[rest[0]])
    assert abs(np.mean(rests) - 51) < 4 * 29.2 / np.sqrt(200)


@pytest.mark.parametrize("packs", [False, True])
def test_step_one_million_is_near(packs: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 600, 1_000_000)
    begin = time.process_time()
    plan = make_plan(lengths, BatchConfig(size=32), LengthConfig(steps=1_000_001), 0, packs=packs, row_length=512)
    plan.step(1_000_000)
    assert time.process_time() - begin < 1
    plan.step(999_999)
    begin = time.process_time()
    for k in range(1_000_000 - 20, 1_000_000):
        plan.step(k)
    assert time.process_time() - begin < 1


def test_lengths_of_a_run() -> None:
    lengths = [10] * 7

    def steps(**length: int) -> int:
        return make_plan(
            lengths, BatchConfig(size=2), LengthConfig(**length), 0, packs=False, epochs_default=5
        ).total_steps

    assert steps() == 20 and steps(epochs=3) == 12 and steps(steps=9) == 9
    assert (steps(tokens=70), steps(tokens=1), steps(tokens=71), steps(tokens=140)) == (4, 1, 5, 8)


@pytest.mark.parametrize("packs", [False, True])
def test_one_example_is_enough(packs: bool) -> None:
    plan = plan_of([5], packs=packs, size=32)
    assert plan.total_steps == 3 and plan.step(2) == Step(2, 2, (((Piece(0),),),))


def test_what_cannot_be_planned_is_said() -> None:
    def make(lengths: list[int], packs: bool = False, **batches: object) -> Plan:
        return make_plan(lengths, BatchConfig(**batches), LengthConfig(steps=1), 0, packs=packs)

    cases: list[tuple[type[PlainformerError], str, dict[str, object]]] = [
        (InputError, "no examples", {"lengths": []}),
        (InputError, "single token", {"lengths": [0, 0]}),
        (UsageError, "need a length", {"lengths": [1], "packs": True}),
    ]
    for kind, message, arguments in cases:
        with pytest.raises(kind, match=message):
            make(**arguments)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="of a plan of 1 step"):
        make([1]).step(1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 8), st.none() | st.integers(1, 20))
def test_evaluation_takes_every_token_once(lengths: list[int], size: int, longest: int | None) -> None:
    batches = evaluation_batches(lengths, size, longest)
    assert batches == evaluation_batches(np.array(lengths), size, longest)
    assert all(len(batch) == size for batch in batches[:-1])
    held = [tokens_of(Step(0, 0, ((row,),)), lengths) for batch in batches for row in batch]
    assert [len(row) for row in held] == sorted(map(len, held), reverse=True)
    assert Counter(token for row in held for token in row) == Counter(
        (i, t) for i, n in enumerate(lengths) for t in range(n)
    )
    assert {row[0].example for batch in batches for row in batch} == set(range(len(lengths)))


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [2]), (7, [4, 3]), (0, [])])
def test_evaluation_of_a_few(count: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in evaluation_batches([3] * count, 4)] == sizes


@pytest.mark.parametrize("packs", [False, True])
def test_a_plan_is_read_back(packs: bool, tmp_path: Path) -> None:
    plan = plan_of([3, 0, 70, 5, 9], packs=packs, size=2)
    plan.save(tmp_path)
    again = load_plan(tmp_path)
    assert all(again.step(k) == plan.step(k) for k in range(plan.total_steps))
    (tmp_path / "lengths.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(CheckpointError, match=r"lengths.npy cannot be read.+\n.+new folder"):
        load_plan(tmp_path)
    with pytest.raises(UsageError, match="folder of a training run"):
        load_plan(tmp_path / "nowhere")


def test_two_processes_plan_the_same() -> None:
    program = (
        "import json; from plainformer.config.training import *; from plainformer.train.plan import make_plan\n"
        "for packs in (False, True):\n"
        "    plan = make_plan(range(1, 80), BatchConfig(size=4), LengthConfig(epochs=2), 7, packs=packs, row_length=32)\n"
        "    print(json.dumps([repr(plan.step(k)) for k in range(plan.total_steps)]))\n"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for packs, line in zip((False, True), other.splitlines(), strict=True):
        plan = make_plan(range(1, 80), BatchConfig(size=4), LengthConfig(epochs=2), 7, packs=packs, row_length=32)
        assert [repr(plan.step(k)) for k in range(plan.total_steps)] == json.loads(line)
