"""Rows without their padding: the same numbers as each row alone, whichever rows are beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from plainformer.generation.cache.cache import KeyValueCache
from plainformer.model import stack as stack_module
from plainformer.model.packing import Packing, packing_of
from plainformer.model.transformer import ModelOutput
from tests.support.cases.stacks import CASES
from tests.support.close import close
from tests.support.parity import PAD, Case, build, load_ours, make_inputs

DECODERS = [case for case in CASES if case.model_class.endswith(("ForCausalLM", "GPT2LMHeadModel"))]
LENGTHS = (3, 7, 1, 7, 5, 2)
LENGTH = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=5)


@given(LENGTH)
def test_unpacking_undoes_packing(rows: list[tuple[int, int]]) -> None:
    width = max(start + length for start, length in rows)
    real_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (start, length) in enumerate(rows):
        real_BT[row, start : start + length] = True
    x_BTD = torch.randn(len(rows), width, 3) * real_BT[..., None]
    packing = packing_of(real_BT)
    assert packing is not None
    packed = packing.pack(x_BTD)
    assert packed.size(1) == int(real_BT.sum()) and torch.equal(packing.unpack(packed), x_BTD)
    for only, column in ((slice(0, 1), 0), (slice(-1, None), -1)):
        ends = packing.unpack_ends(packed.index_select(1, packing.ends(only)))[:, 0]
        assert torch.equal(ends, torch.stack([x_BTD[row][real_BT[row]][column] for row in range(len(rows))]))


@pytest.mark.parametrize("rows", [[[0, 0], [1, 1]], [[1, 0, 1], [1, 1, 1]]], ids=["an empty row", "a gap"])
def test_what_cannot_be_packed(rows: list[list[int]]) -> None:
    assert packing_of(torch.tensor(rows, dtype=torch.bool)) is None


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Packing | None]:
    """What was packed since the test began."""
    made: list[Packing | None] = []

    def noting(real_BT: Tensor) -> Packing | None:
        made.append(packing_of(real_BT))
        return made[-1]

    monkeypatch.setattr(stack_module, "packing_of", noting)
    return made


def unequal(case: Case, side: str) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], Tensor]:
    """Rows of different lengths: each alone, and padded as one batch; and which of that is real."""
    rows = [make_inputs(case, 1, length, seed=place) for place, length in enumerate(LENGTHS)]
    width = max(LENGTHS)

    def padded(x: Tensor, filler: int) -> Tensor:
        rest = width - x.size(1)
        return torch.nn.functional.pad(x, (0, rest) if side == "right" else (rest, 0), value=filler)

    batch = {
        name: torch.cat([padded(row[name], PAD if name == "input_ids" else 0) for row in rows]) for name in rows[0]
    }
    real_BT = torch.cat([padded(torch.ones_like(row["input_ids"]), 0) for row in rows])
    return rows, {**batch, "attention_mask": real_BT}, real_BT.bool()


def read(output: ModelOutput) -> tuple[Tensor, ...]:
    """The hidden states of the stack that reads the inputs."""
    states = output.encoder.hidden_states if output.encoder is not None else output.hidden_states
    assert states is not None
    return states


@pytest.mark.exact
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows_have_the_answers_that_they_have_alone(
    case: Case, side: str, tmp_path: Path, packings: list[Packing | None]
) -> None:
    model = load_ours(build(case), tmp_path)
    rows, batch, real_BT = unequal(case, side)
    with torch.inference_mode():
        found = model(**batch, output_hidden_states=True)
        alone = [model(**row, output_hidden_states=True) for row in rows]
    assert any(packings) == (model.config.input_stack.disentangled is None)
    states, of_rows = read(found), [read(output) for output in alone]
    for row, own in enumerate(of_rows):
        for layer, (state, of_row) in enumerate(zip(states, own, strict=True)):
            close(state[row][real_BT[row]], of_row[0], f"row {row}, layer {layer}")


@pytest.mark.exact
@pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
def test_a_prompt_leaves_the_cache_that_it_leaves_alone(
    case: Case, tmp_path: Path, packings: list[Packing | None]
) -> None:
    """Prompts of a batch with padding on the left, and one step after them."""
    model = load_ours(build(case), tmp_path)
    rows, batch, _ = unequal(case, "left")
    next_B1 = torch.arange(5, 5 + len(LENGTHS))[:, None]
    with torch.inference_mode():
        cache = KeyValueCache(model.config, len(LENGTHS))
        first = model(**batch, cache=cache, logits_to_keep=1, only_logits=True).logits
        mask = torch.cat((batch["attention_mask"], torch.ones_like(next_B1)), dim=1)
        second = model(next_B1, mask, cache=cache).logits
        for row, inputs in enumerate(rows):
            own = KeyValueCache(model.config, 1)
            close(first[row], model(**inputs, cache=own, logits_to_keep=1).logits[0])
            close(second[row], model(next_B1[row : row + 1], cache=own).logits[0])
    assert any(packings)


@pytest.mark.parametrize("what", ["a gradient", "attentions", "a hook", "an int8 cache"])
def test_what_needs_the_whole_batch_gets_it(what: str, tmp_path: Path, packings: list[Packing | None]) -> None:
    case = next(case for case in CASES if "llama" in case.name)
    model = load_ours(build(case), tmp_path)
    _, batch, _ = unequal(case, "left")
    options: dict[str, Any] = {"output_attentions": True} if what == "attentions" else {}
    if what == "a hook":
        model.main.layers[0].register_forward_hook(lambda *given: None)
    if what == "an int8 cache":
        options["cache"] = KeyValueCache(model.config, len(LENGTHS), kind="int8")
    with torch.set_grad_enabled(what == "a gradient"):
        model(**batch, **options)
    assert not packings
