"""Contrastive search against recorded answers of the reference, in batches, and at its limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plainformer.errors import InputError, UsageError
from plainformer.generation.search import generate, stream
from tests.support import recorded
from tests.support.ids import pad, prompts
from tests.support.models import make


@pytest.mark.parametrize("case", recorded.cases("contrastive"), ids=recorded.label)
def test_as_the_reference(case: dict[str, Any]) -> None:
    model = recorded.model(case["model"], case["seed"])
    found = generate(model, torch.tensor([case["prompt"]]), max_new_tokens=case["count"], **case["options"])
    assert [list(ids) for ids in found.token_ids] == case["tokens"]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bart", "t5"])
def test_alone_and_in_a_batch(name: str) -> None:
    model, rows = make(name), prompts((7, 2, 11))
    options: dict[str, Any] = dict(max_new_tokens=20, penalty_alpha=0.6, top_k=5, repetition_penalty=1.1)
    alone = [generate(model, row, **options) for row in rows]
    for side in ("left", "right"):
        ids, mask = pad(rows, side, 2)
        together = generate(model, ids, mask, **options)
        assert together.token_ids == tuple(one.token_ids[0] for one in alone)
        assert together.stop_reasons == tuple(one.stop_reasons[0] for one in alone)
        steps = list(stream(model, ids, mask, **options))
        for place in range(3):
            tokens = tuple(step[place] for step, _ in steps if step[place] is not None)
            assert tokens == together.token_ids[place]


@torch.no_grad()
def test_by_its_definition() -> None:
    """Without a cache, candidate by candidate."""
    model, row = make("llama"), prompts((6,))[0]
    alpha, k, ids = 0.5, 3, row
    for _ in range(8):
        scores = []
        likely = model(ids).logits[0, -1].softmax(-1).topk(k)
        for p, token in zip(likely.values, likely.indices, strict=True):
            states = model(torch.cat((ids, token.view(1, 1)), 1)).last_hidden_state[0]
            cosines = torch.cosine_similarity(states[:-1], states[-1:], dim=-1)
            scores.append(float((1 - alpha) * p - alpha * cosines.max()))
        best = likely.indices[scores.index(max(scores))]
        ids = torch.cat((ids, best.view(1, 1)), 1)
    found = generate(model, row, max_new_tokens=8, eos_ids=(), penalty_alpha=alpha, top_k=k)
    assert list(found.token_ids[0]) == ids[0, 6:].tolist()


def test_ends_of_its_settings() -> None:
    model, row = make("llama"), prompts((6,))[0]
    greedy = generate(model, row, max_new_tokens=9).token_ids
    assert generate(model, row, max_new_tokens=9, penalty_alpha=0.0).token_ids == greedy
    assert generate(model, row, max_new_tokens=9, penalty_alpha=0.7, top_k=1).token_ids == greedy
    assert len(generate(model, row, max_new_tokens=3, penalty_alpha=0.7, top_k=500, eos_ids=()).token_ids[0]) == 3
    only = generate(model, row, max_new_tokens=4, penalty_alpha=0.9, eos_ids=(), allowed_tokens=lambda ids: [7, 8])
    assert set(only.token_ids[0]) <= {7, 8}


def test_the_last_position() -> None:
    """The token that is picked has gone through the model, so a table of positions ends one earlier than in greedy mode."""
    model = make("gpt2", n_positions=16)
    rows = prompts((12, 3))
    options: dict[str, Any] = dict(max_new_tokens=9, eos_ids=(), penalty_alpha=0.6)
    together = generate(model, *pad(rows, "left"), **options)
    assert [len(ids) for ids in together.token_ids] == [4, 9]
    assert together.token_ids[1] == generate(model, rows[1], **options).token_ids[0]
    with pytest.raises(InputError, match="16 tokens fills the 16 positions"):
        generate(model, prompts((16,))[0], **options)


def test_what_is_refused() -> None:
    model, row = make("llama"), prompts((4,))[0]
    for options, message in (
        ({"penalty_alpha": 1.5}, "penalty_alpha=1.5 is not"),
        ({"penalty_alpha": 0.5, "top_k": 0}, "top_k=0"),
        ({"penalty_alpha": 0.5, "do_sample": True}, "choose different modes"),
        ({"penalty_alpha": 0.5, "num_return_sequences": 2}, "no effect in contrastive mode"),
        ({"penalty_alpha": 0.5, "suppress_first": range(61)}, "every token"),
    ):
        with pytest.raises(UsageError, match=message):
            generate(model, row, **options)
