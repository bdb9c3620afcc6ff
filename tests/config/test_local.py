"""What ranks hold tiles the model: every number is held, and counted once, and the built model has just these parts."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plainformer.config import ModelConfig
from plainformer.config.layout import Layout
from plainformer.config.local import Local, _costs, chunk_rows, cuts, local, rows_of, zero1_owners
from plainformer.config.shapes import shapes
from plainformer.model.transformer import Transformer
from tests.support.shares import SHARED, config_of

SIZES = st.sampled_from([(4, 1), (4, 2), (4, 4), (6, 3), (6, 2), (12, 4), (8, 1)])


@st.composite
def divided(draw: Any) -> tuple[ModelConfig, Layout]:
    """A model and a layout that fits it."""
    name = draw(st.sampled_from(sorted(SHARED)))
    changes: dict[str, Any] = {}
    if name not in ("whisper", "vit", "wav2vec2"):
        changes["vocab_size"] = draw(st.integers(17, 103))
    if SHARED[name].get("num_key_value_heads"):
        heads, kv_heads = draw(SIZES)
        changes.update(
            num_attention_heads=heads, num_key_value_heads=kv_heads, num_hidden_layers=draw(st.integers(1, 5))
        )
        changes["hidden_size"] = 8 * heads
    config = config_of(name, **changes)
    layouts = [Layout(tp=tp, pp=pp, dp=dp) for tp in (1, 2, 3, 4, 6, 8) for pp in (1, 2, 3, 4) for dp in (1, 2)]
    return config, draw(st.sampled_from([layout for layout in layouts if not layout.problems(config)]))


def _ranks(config: ModelConfig, layout: Layout) -> list[Local]:
    """Return what each rank of the first replica holds."""
    found = [local(config, layout, rank) for rank in range(layout.world)]
    return [each for each in found if each.place.dp == 0]


def _slice(tensor: Tensor, part: Any) -> Tensor:
    return tensor if part.dim is None else tensor.narrow(part.dim, part.start, part.stop - part.start)


@settings(max_examples=60, deadline=None)
@given(divided())
def test_first_parts_are_the_checkpoint(case: tuple[ModelConfig, Layout]) -> None:
    config, layout = case
    sizes = shapes(config)
    values = {name: torch.arange(math.prod(shape)).view(shape) for name, shape in sizes.items()}
    found = {name: torch.full(shape, -1) for name, shape in sizes.items()}
    counted = {name: torch.zeros(shape, dtype=torch.long) for name, shape in sizes.items()}
    for here in _ranks(config, layout):
        for part in here.parts.values():
            if part.first:
                _slice(found[part.name], part).copy_(_slice(values[part.name], part))
                _slice(counted[part.name], part).add_(1)
    for name in sizes:
        assert torch.equal(found[name], values[name]), name
        assert bool((counted[name] == 1).all()), name


@settings(max_examples=30, deadline=None)
@given(divided())
def test_models_are_built_of_their_parts(case: tuple[ModelConfig, Layout]) -> None:
    config, layout = case
    for here in _ranks(config, layout):
        model = Transformer(config, here)
        built = {name: tuple(p.shape) for name, p in model.named_parameters()}
        assert built == {name: part.local_shape for name, part in here.parts.items()}
        assert model.num_parameters == sum(map(math.prod, shapes(config).values()))
        for own, kept in here.tied:
            assert model.get_parameter(own) is model.get_parameter(kept)
            assert here.part(own) == here.part(kept)


@settings(max_examples=60, deadline=None)
@given(divided())
def test_gradients_are_summed_where_ranks_hold_the_same_rows(case: tuple[ModelConfig, Layout]) -> None:
    config, layout = case
    for here in _ranks(config, layout):
        others = [other for other in _ranks(config, layout) if other.place.pp == here.place.pp and other is not here]
        others = [other for other in others if other.place != here.place]
        for name, part in here.parts.items():
            same = [other for other in others if _overlap(part, other.parts[name])]
            if part.dim is not None:
                assert (part.gradient == "sum") == bool(same), name
            else:
                assert part.gradient == "own" or name.split(".")[-2] in ("q_norm", "k_norm"), name
            assert all(other.parts[name].local_shape == part.local_shape for other in same), name


def _overlap(a: Any, b: Any) -> bool:
    return a.dim is None or max(a.start, b.start) < min(a.stop, b.stop)


def test_adapters_are_whole_and_summed_where_their_linear_is_cut() -> None:
    here = local(config_of("bert"), Layout(tp=2), 1)
    cut = here.part("encoder.layers.0.attention.out.adapter.low.a", (4, 32))
    assert (cut.shape, cut.dim, cut.gradient, cut.first) == ((4, 32), None, "sum", False)
    assert here.part("head.dense.adapter.low.b", (32, 4)).gradient == "own"
    assert local(config_of("bert"), Layout(tp=2), 0).part("head.dense.adapter.low.b", (32, 4)).first
    alone = local(config_of("bert"), Layout(dp=2), 1)
    assert alone.part("encoder.layers.0.attention.out.adapter.low.a", (4, 32)).gradient == "own"


@given(st.integers(0, 200), st.integers(1, 9))
def test_chunks_are_those_of_torch(rows: int, count: int) -> None:
    ours = [stop - start for start, stop in (chunk_rows(rows, count, index) for index in range(count))]
    theirs = [len(chunk) for chunk in torch.arange(rows).chunk(count)] if rows else []
    assert ours == theirs + [0] * (count - len(theirs))


def test_neighbours_have_the_same_key_value_head() -> None:
    assert [rows_of(16, 4, index, 2) for index in range(4)] == [(0, 8), (0, 8), (8, 16), (8, 16)]
    assert [rows_of(16, 2, index, 4) for index in range(2)] == [(0, 8), (8, 16)]


@given(st.integers(1, 12), st.integers(1, 6))
def test_stages_have_layers_in_order(layers: int, pp: int) -> None:
    config = config_of("llama", num_hidden_layers=layers)
    if pp <= layers:
        ends = cuts(config, pp)
        assert ends[0] == 0 and ends[-1] == layers and len(ends) == pp + 1
        assert all(start < stop for start, stop in pairwise(ends))


@pytest.mark.parametrize("pp", [2, 3, 4])
def test_the_largest_stage_is_as_small_as_it_can_be(pp: int) -> None:
    config = config_of("t5", num_layers=4, num_decoder_layers=3)
    costs = _costs(config)

    def largest(ends: Any) -> int:
        return max(sum(costs[start:stop]) for start, stop in pairwise(ends))

    choices = ([0, *inner, len(costs)] for inner in combinations(range(1, len(costs)), pp - 1))
    assert largest(cuts(config, pp)) == min(map(largest, choices))


def test_owners_are_given_the_largest_first() -> None:
    assert zero1_owners({"a": 5, "b": 9, "c": 4, "d": 1}, 2) == {"b": 0, "a": 1, "c": 1, "d": 0}
