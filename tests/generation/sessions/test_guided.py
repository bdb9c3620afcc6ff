"""DoLa against recorded answers, guidance against the reference's processor; both in batches, beams and samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plainformer.errors import InputError, UsageError
from plainformer.generation.search import generate
from plainformer.generation.sessions.guided import candidate_layers
from tests.support import recorded
from tests.support.close import close
from tests.support.ids import pad, prompts
from tests.support.models import make

WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"do_sample": True, "seed": 5, "num_return_sequences": 3},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"num_alternatives": 2},
)
CONTRASTS: tuple[dict[str, Any], ...] = ({"dola_layers": "low"}, {"dola_layers": [0, 1]}, {"guidance_scale": 1.8})


@pytest.mark.parametrize("case", recorded.cases("dola"), ids=recorded.label)
def test_dola_as_the_reference(case: dict[str, Any]) -> None:
    model = recorded.model(case["model"], case["seed"])
    found = generate(model, torch.tensor([case["prompt"]]), max_new_tokens=case["count"], **case["options"])
    assert [list(ids) for ids in found.token_ids] == case["tokens"]


@pytest.mark.parametrize("case", recorded.cases("diverse_beam"), ids=recorded.label)
def test_diverse_beams_as_the_reference(case: dict[str, Any]) -> None:
    """The reference wrote the first of the end tokens for each of them, and padding behind it."""
    model = recorded.model(case["model"], case["seed"])
    found = generate(model, torch.tensor([case["prompt"]]), max_new_tokens=case["count"], **case["options"])
    ends = case["options"].get("eos_ids", [2])
    for ours, theirs in zip(found.token_ids, case["tokens"], strict=True):
        expected = theirs[: theirs.index(ends[0]) + 1] if ends[0] in theirs else theirs
        assert [ends[0] if token in ends else token for token in ours] == expected
    close(found.scores, case["scores"], rel=2e-5)


def test_dola_candidates() -> None:
    """As the reference's, whose list for three tied layers is empty."""
    tied, free = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
    expected: dict[tuple[int, str, bool], list[int]] = {
        (1, "low", True): [0],
        (2, "low", True): [1],
        (3, "low", True): [2],
        (4, "low", True): [2],
        (12, "low", True): [2, 4],
        (12, "low", False): [0, 2, 4],
        (12, "high", True): [6, 8, 10],
        (3, "high", False): [1],
        (42, "low", True): list(range(2, 20, 2)),
        (42, "high", False): list(range(22, 42, 2)),
    }
    for (layers, wanted, ties), numbers in expected.items():
        changes = {"num_hidden_layers": layers, "hidden_size": 8, "intermediate_size": 8, **(tied if ties else free)}
        assert candidate_layers(make("llama", **changes), wanted) == numbers


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("way", [0, 1])
def test_guidance_as_the_reference(name: str, way: int) -> None:
    reference, ours = recorded.pair(name, 1)
    row, negative = prompts((8,))[0], prompts((4,), 7)[0] if way else None
    given = {} if negative is None else {"negative_prompt_ids": negative}
    for scale in (1, 1.5, 3.0):
        expected = reference.generate(
            row, do_sample=False, max_new_tokens=14, guidance_scale=scale, repetition_penalty=1.1, **given
        )[0, 8:].tolist()
        own = {} if negative is None else {"negative_ids": negative}
        found = generate(ours, row, max_new_tokens=14, guidance_scale=scale, repetition_penalty=1.1, **own)
        assert list(found.token_ids[0]) == expected


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bart", "t5"])
@pytest.mark.parametrize("contrast", CONTRASTS, ids=str)
def test_in_every_mode_alone_and_in_a_batch(name: str, contrast: dict[str, Any]) -> None:
    model, rows = make(name), prompts((7, 2, 11))
    for way in WAYS:
        options = {"max_new_tokens": 8, "eos_ids": (), **contrast, **way}
        alone = [generate(model, row, **options).token_ids for row in rows]
        together = generate(model, *pad(rows, "left", 1), **options).token_ids
        assert together == tuple(ids for one in alone for ids in one), way
        if not model.config.encoder:
            assert generate(model, *pad(rows, "right"), prefill_chunk=3, **options).token_ids == together


def test_beams_find_the_best_guided_answer() -> None:
    """As many beams as beginnings: the search is exhaustive, and must find what scoring all answers finds."""
    model, row = make("llama", vocab_size=7), torch.tensor([[3, 4, 5, 6]])
    scale, best = 2.0, (-float("inf"), (0, 0))

    def guided(new: list[int]) -> torch.Tensor:
        log_p, log_q = (
            model(torch.cat((start, torch.tensor([new], dtype=torch.long)), 1)).logits[0, -1].log_softmax(-1)
            for start in (row, row[:, -1:])
        )
        return (scale * (log_p - log_q) + log_q).log_softmax(-1)

    with torch.inference_mode():
        first = guided([])
        for a in range(7):
            second = guided([a])
            for b in range(7):
                best = max(best, (float(first[a] + second[b]), (a, b)))
    found = generate(model, row, max_new_tokens=2, eos_ids=(), num_beams=7, guidance_scale=scale, length_penalty=0.0)
    assert found.token_ids[0] == best[1]
    assert found.scores is not None
    close(found.scores[0], best[0], rel=2e-5)


def test_an_encoder_decoder_is_guided_by_its_input() -> None:
    """Away from what it says behind another input."""
    model, row, other = make("bart"), prompts((8,))[0], prompts((5,), 3)[0]
    start = torch.tensor([[2]])
    log_p, log_q = (model(ids, decoder_input_ids=start).logits[:, -1].log_softmax(-1) for ids in (row, other))
    expected = int((2.5 * (log_p - log_q) + log_q).argmax())
    found = generate(model, row, max_new_tokens=1, guidance_scale=2.5, negative_ids=other)
    assert found.token_ids[0][0] == expected
    last = generate(model, row, max_new_tokens=6, guidance_scale=2.5)
    assert (
        last.token_ids == generate(model, row, max_new_tokens=6, guidance_scale=2.5, negative_ids=row[:, -1:]).token_ids
    )
    memory = model.encode(row)
    again = generate(model, encoder_output=memory, max_new_tokens=6, guidance_scale=2.5, negative_ids=row[:, -1:])
    assert again.token_ids == last.token_ids
    with pytest.raises(UsageError, match="pass negative_ids"):
        generate(model, encoder_output=memory, guidance_scale=2.5)


def test_the_next_turn_goes_on_from_its_cache() -> None:
    model, row = make("llama"), prompts((9,))[0]
    for contrast in CONTRASTS:
        given = {"max_new_tokens": 6, "eos_ids": (), **contrast}
        first = generate(model, row, **given)
        longer = torch.cat((row, torch.tensor([first.token_ids[0]]), prompts((4,), 5)[0]), 1)
        assert (
            generate(model, longer, cache=first.cache, **given).token_ids == generate(model, longer, **given).token_ids
        )


def test_what_is_refused() -> None:
    model, row = make("gpt2", n_positions=16), prompts((4,))[0]
    for options, message in (
        ({"dola_layers": "middle"}, "dola_layers='middle'"),
        ({"dola_layers": [2]}, "numbers from 0"),
        ({"dola_layers": []}, "numbers from 0"),
        ({"dola_layers": "low", "guidance_scale": 2.0}, "exclude each other"),
        ({"guidance_scale": "2"}, "is not a finite number"),
        ({"guidance_scale": 2.0, "negative_ids": row[0]}, r"give \(B, T\)"),
        ({"guidance_scale": 2.0, "negative_ids": [[1]]}, "not a tensor"),
        ({"guidance_scale": 2.0, "prompt_lookup": 2}, "no effect in speculative mode"),
        ({"dola_layers": "low", "penalty_alpha": 0.5}, "no effect in contrastive mode"),
    ):
        with pytest.raises(UsageError, match=message):
            generate(model, row, max_new_tokens=4, **options)
    with pytest.raises(InputError, match="negative_ids of 14 tokens"):
        generate(model, row, max_new_tokens=4, guidance_scale=2.0, negative_ids=prompts((14,))[0])
