"""Speculative decoding: the same tokens as without it, the same distribution, and where it stops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plainformer.errors import UsageError
from plainformer.generation.search import generate, stream
from plainformer.model.transformer import Transformer
from tests.support.ids import pad, prompts
from tests.support.models import CONFIGS, like, make


@pytest.mark.parametrize("name", list(CONFIGS))
def test_greedy_tokens_are_the_same(name: str) -> None:
    """Long enough that the windows' caches slide, alone and in a batch."""
    model = make(name)
    rows = prompts((7, 2, 40))
    count = 160 if name in ("mistral", "gemma2") else 40
    plain = generate(model, *pad(rows, "left"), max_new_tokens=count, eos_ids=())
    drafts: tuple[dict[str, Any], ...] = (
        {"draft_model": model},
        {"draft_model": like(model, 0.02)},
        {"draft_model": make(name, 1)},
        {"prompt_lookup": 2},
    )
    accepted = []
    for given in drafts:
        found = generate(model, *pad(rows, "right"), max_new_tokens=count, eos_ids=(), **given)
        assert found.token_ids == plain.token_ids and found.stop_reasons == plain.stop_reasons
        assert found.accepted is not None and found.accepted[0] <= found.accepted[1]
        accepted.append(found.accepted[0] / max(found.accepted[1], 1))
    assert accepted[0] == 1 and accepted[1] > 0


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_processors_and_stops(name: str) -> None:
    model, row = make(name), prompts((9,))[0]
    drafts: list[dict[str, Any]] = [
        {"draft_model": like(model, 0.05), "num_draft_tokens": 7},
        {"draft_model": model},
        {"prompt_lookup": 3, "num_draft_tokens": 4},
    ]
    free = generate(model, row, max_new_tokens=24, eos_ids=()).token_ids[0]
    cases: list[dict[str, Any]] = [
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "eos_ids": ()},
        {"encoder_repetition_penalty": 1.3, "eos_ids": ()} if name == "bart" else {"frequency_penalty": 0.7},
        {"min_new_tokens": 9, "eos_ids": list(set(free[:6]))},
        {"eos_ids": [free[6]]},
        {"eos_ids": (), "stop_when": lambda ids: len(ids) >= 5 and ids[-1] != ids[-2]},
        {"eos_ids": (), "suppress_first": [free[0]], "bad_words_ids": [[free[2], free[3]]]},
    ]
    for case in cases:
        plain = generate(model, row, max_new_tokens=24, **case)
        for draft in drafts:
            found = generate(model, row, max_new_tokens=24, **case, **draft)
            assert (found.token_ids, found.stop_reasons) == (plain.token_ids, plain.stop_reasons)
            steps = list(stream(model, row, max_new_tokens=24, **case, **draft))
            assert [step[0][0] for step in steps] == list(plain.token_ids[0])
            assert [step[1][0] for step in steps] == [None] * (len(steps) - 1) + list(plain.stop_reasons)


def test_a_model_that_drafts_for_itself_is_always_right() -> None:
    model, row = make("llama"), prompts((9,))[0]
    assert generate(model, row, max_new_tokens=25, eos_ids=(), draft_model=model).accepted == (20, 20)
    drawn = generate(model, row, max_new_tokens=25, eos_ids=(), draft_model=model, do_sample=True, seed=1, top_p=0.9)
    assert drawn.accepted == (20, 20)


def test_the_next_turn_goes_on_from_its_cache() -> None:
    model, row = make("mistral"), prompts((9,))[0]
    first = generate(model, row, max_new_tokens=30, eos_ids=(), prompt_lookup=2)
    assert first.cache is not None and first.cache.length == 9 + 29
    longer = torch.cat((row, torch.tensor([first.token_ids[0]]), prompts((4,), 5)[0]), 1)
    on = generate(model, longer, max_new_tokens=12, eos_ids=(), cache=first.cache)
    assert on.token_ids == generate(model, longer, max_new_tokens=12, eos_ids=()).token_ids


def test_positions_of_the_draft_run_out() -> None:
    model, draft = make("gpt2"), make("gpt2", n_positions=16)
    row = prompts((10,))[0]
    plain = generate(model, row, max_new_tokens=30, eos_ids=())
    assert generate(model, row, max_new_tokens=30, eos_ids=(), draft_model=draft).token_ids == plain.token_ids
    full = prompts((250,))[0]
    whole = generate(model, full, max_new_tokens=30, eos_ids=())
    assert generate(model, full, max_new_tokens=30, eos_ids=(), draft_model=model).token_ids == whole.token_ids


def chi_square(counts: Counter[Any], expected: dict[Any, float]) -> tuple[float, int]:
    """The statistic and its degrees of freedom; cells expected fewer than five times are one."""
    assert set(counts) <= set(expected)
    large = {cell: value for cell, value in expected.items() if value >= 5}
    rest = sum(expected.values()) - sum(large.values())
    total = sum((counts[cell] - value) ** 2 / value for cell, value in large.items())
    others = sum(counts.values()) - sum(counts[cell] for cell in large)
    if rest > 1:
        total += (others - rest) ** 2 / rest
    return total, len(large) - (rest <= 1)


def exact(model: Transformer, row: Tensor, temperature: float) -> dict[tuple[int, int], float]:
    """Probabilities of the first two tokens, none of which may repeat the last one of the prompt."""

    def after(ids: Tensor) -> Tensor:
        logits_V = (model(ids).logits[0, -1].double()).clone()
        logits_V[int(row[0, -1])] = -float("inf")
        return (logits_V / temperature).softmax(-1)

    found = {}
    for a, p in enumerate(after(row).tolist()):
        if p > 0:
            second = after(torch.cat((row, torch.tensor([[a]])), 1)).tolist()
            found.update({(a, b): p * q for b, q in enumerate(second) if q > 0})
    return found


@pytest.mark.parametrize("given", ["draft_model", "prompt_lookup"])
def test_samples_have_exactly_the_models_distribution(given: str) -> None:
    """Chi-square over the first two tokens and the first alone: 2500 draws, p > 0.001 each."""
    small = dict(vocab_size=9, hidden_size=16, num_hidden_layers=1)
    model = make("llama", std=0.5, **small)
    draft = like(model, 0.3)
    row = torch.tensor([[5, 6, 7, 5, 6, 8, 5, 6]])
    options: dict[str, Any] = {"draft_model": draft} if given == "draft_model" else {"prompt_lookup": 2}
    draws = 2500
    drawn = generate(
        model, row, max_new_tokens=3, eos_ids=(), do_sample=True, seed=11, temperature=1.3, num_return_sequences=draws,
        suppress=[6], num_draft_tokens=2, **options
    )  # fmt: skip
    assert drawn.accepted is not None and 0.1 < drawn.accepted[0] / drawn.accepted[1] < 0.95, drawn.accepted
    pairs = exact(model, row, 1.3)
    found = Counter((ids[0], ids[1]) for ids in drawn.token_ids)
    statistic, freedom = chi_square(found, {pair: p * draws for pair, p in pairs.items()})
    assert statistic < _limit(freedom), (statistic, freedom)
    first = Counter(ids[0] for ids in drawn.token_ids)
    alone = {a: sum(p for (x, _), p in pairs.items() if x == a) * draws for a, _ in pairs}
    statistic, freedom = chi_square(first, alone)
    assert statistic < _limit(freedom), (statistic, freedom)


def _limit(freedom: int) -> float:
    """The chi-square value passed once in a thousand times (Wilson and Hilferty 1931)."""
    part = 2 / (9 * freedom)
    return float(freedom * (1 - part + 3.09 * part**0.5) ** 3)


def test_rows_of_one_prompt_draw_from_their_own_streams() -> None:
    model, rows = make("bart"), prompts((9, 4))
    given: dict[str, Any] = dict(max_new_tokens=8, do_sample=True, seed=3, draft_model=like(model, 0.1))
    several = generate(model, *pad(rows, "left"), num_return_sequences=3, **given)
    assert len(several.token_ids) == 6 and len(set(several.token_ids)) > 2
    for index, row in enumerate(rows):
        alone = generate(model, row, num_return_sequences=2, **given)
        assert alone.token_ids == several.token_ids[3 * index : 3 * index + 2]
        assert generate(model, row, **given).token_ids == alone.token_ids[:1]
    steps = list(stream(model, rows[0], num_return_sequences=3, **given))
    for place in range(3):
        tokens = tuple(step[place] for step, _ in steps if step[place] is not None)
        assert tokens == several.token_ids[place]
    assert tuple(steps[-1][1]) == several.stop_reasons[:3]


def test_a_decoder_drafts_for_an_encoder_decoder() -> None:
    model, row = make("bart"), prompts((9,))[0]
    plain = generate(model, row, max_new_tokens=15)
    assert generate(model, row, max_new_tokens=15, draft_model=make("llama")).token_ids == plain.token_ids
    memory = model.encode(row)
    found = generate(model, encoder_output=memory, max_new_tokens=15, draft_model=like(model, 0.05))
    assert found.token_ids == plain.token_ids


def test_an_encoders_input_is_looked_up() -> None:
    """A text that the decoder repeats is found in the encoder's input."""
    model = make("bart")
    text = list(range(10, 22))
    found = generate(
        model,
        torch.tensor([text]),
        max_new_tokens=12,
        eos_ids=(),
        prompt_lookup=2,
        forced=dict(enumerate(text, 1)),
    )
    assert found.token_ids == (tuple(text),) and found.accepted == (10, 10)


def test_what_is_refused(tmp_path: Path) -> None:
    model, row = make("llama"), prompts((4,))[0]
    with pytest.raises(UsageError, match="vocabulary of 40 tokens"):
        generate(model, row, draft_model=make("llama", vocab_size=40))
    with pytest.raises(UsageError, match="the model is not"):
        generate(model, row, draft_model=make("bart"))
    with pytest.raises(UsageError, match="is not a model"):
        generate(model, row, draft_model="gpt2")
    with pytest.raises(UsageError, match="at most 64"):
        generate(make("mistral"), row, prompt_lookup=2, num_draft_tokens=65)
    with pytest.raises(UsageError, match="without sampling"):
        generate(model, row, prompt_lookup=2, num_return_sequences=2)
    for given in ({"draft_model": model, "prompt_lookup": 2}, {"prompt_lookup": 2, "num_beams": 2}):
        with pytest.raises(UsageError, match="choose different modes"):
            generate(model, row, **given)
    bart, narrow = make("bart"), make("bart", d_model=16)
    with pytest.raises(UsageError, match="encoder states of width 32"):
        generate(bart, encoder_output=bart.encode(row), draft_model=narrow)
