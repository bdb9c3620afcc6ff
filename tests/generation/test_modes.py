"""Greedy, sampling, beams and sampled beams: the same tokens as the reference library, for every generating family.

The reference answers each prompt alone; ours are rows of one padded batch. Where the reference draws, it draws by our
random numbers. Options rotate over the families, so that each is met by several.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plainformer.generation.search import generate
from tests.support.close import close
from tests.support.generation import CASES, ENDS, Margins, batch, our_multinomial, pair, prompts, reference_run

STEPS = 9
LENGTHS = (7, 2, 5)
# name of the reference's option → name of ours, where they differ.
OURS = {
    "suppress_tokens": "suppress",
    "begin_suppress_tokens": "suppress_first",
    "exponential_decay_length_penalty": "exponential_decay",
    "forced_bos_token_id": "forced_bos_id",
    "forced_eos_token_id": "forced_eos_id",
    "renormalize_logits": "renormalize",
    "remove_invalid_values": "remove_invalid",
    "prefix_allowed_tokens_fn": "allowed_tokens",
    "encoder_repetition_penalty": "encoder_repetition_penalty",
}
CONTROLS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"min_new_tokens": 4, "suppress_tokens": [9, 30, 31]},
    {"begin_suppress_tokens": [7, 8, *range(40, 60)], "forced_eos_token_id": 23},
    {"bad_words_ids": [[12], [13, 14], [40, 41]], "encoder_repetition_penalty": 1.5},
    {"sequence_bias": {(33,): 3.0, (33, 34): 4.0, (50, 51): -5.0}, "remove_invalid_values": True},
    {"exponential_decay_length_penalty": (3, 1.3), "encoder_no_repeat_ngram_size": 2},
    {"prefix_allowed_tokens_fn": lambda _, ids: [(int(ids[-1]) * 7 + k) % 90 for k in range(12)]},
]
SAMPLERS: list[dict[str, Any]] = [
    {"temperature": 1.3, "top_k": 0},
    {"top_k": 12, "temperature": 0.8},
    {"top_p": 0.85, "top_k": 0, "repetition_penalty": 1.2},
    {"min_p": 0.05, "top_k": 0, "min_new_tokens": 3},
    {"typical_p": 0.7, "top_k": 0},
    {"epsilon_cutoff": 0.01, "top_k": 0, "temperature": 1.5},
    {"eta_cutoff": 0.05, "top_k": 0, "renormalize_logits": True},
    {"top_h": 0.6, "top_k": 0},
    {"top_k": 30, "top_p": 0.9, "no_repeat_ngram_size": 1, "suppress_tokens": [5, 6]},
]
BEAMS: list[dict[str, Any]] = [
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 4, "length_penalty": 0.0, "early_stopping": True, "num_return_sequences": 2},
    {"num_beams": 2, "length_penalty": 2.0, "early_stopping": "never", "no_repeat_ngram_size": 2},
    {"num_beams": 3, "length_penalty": -1.0, "early_stopping": False, "num_return_sequences": 2, "min_new_tokens": 3},
    {"num_beams": 5, "length_penalty": 0.6, "repetition_penalty": 1.3, "num_return_sequences": 5},
    {"num_beams": 3, "length_penalty": 1.0, "early_stopping": "never", "renormalize_logits": True},
    {"num_beams": 2, "early_stopping": True, "bad_words_ids": [[12], [13, 14]], "num_return_sequences": 2},
]
EVERY = pytest.mark.parametrize("place, name", list(enumerate(CASES)), ids=list(CASES))


def ours_of(options: dict[str, Any]) -> dict[str, Any]:
    named = {OURS.get(name, name): value for name, value in options.items() if (name, value) != ("top_k", 0)}
    if (function := named.get("allowed_tokens")) is not None:
        named["allowed_tokens"] = lambda ids: function(0, ids)
    return named


def check(name: str, options: dict[str, Any], seed: int | None = None, monkeypatch: Any = None) -> None:
    """Every row of our padded batch against the reference's answer to that prompt alone."""
    both = pair(name)
    rows = prompts(both, LENGTHS, seed=len(name))
    inputs = batch(both, rows, "left" if len(name) % 2 else "right", 2)
    while True:
        more: dict[str, Any] = {} if seed is None else {"do_sample": True, "seed": seed}
        margins = Margins()
        found = generate(
            both.ours, **inputs, max_new_tokens=STEPS, eos_ids=ENDS, watcher=margins, **ours_of(options), **more
        )
        if margins.least > 1e-5:
            break
        assert seed is not None, "two tokens are equally likely: choose other prompts"
        seed += 100
    count = options.get("num_return_sequences", 1)
    assert len(found.token_ids) == len(rows) * count
    for index, row in enumerate(rows):
        if seed is not None:
            monkeypatch.setattr(torch, "multinomial", our_multinomial(seed))
        expected = reference_run(both, row, max_new_tokens=STEPS, do_sample=seed is not None, **options)
        # Where samplers leave fewer answers than were asked for, the reference fills up with what they have cut off.
        missing = found.stop_reasons[index * count : (index + 1) * count].count("exhausted")
        place = slice(index * count, (index + 1) * count - missing)
        assert list(found.token_ids[place]) == expected.rows[: count - missing], (options, index)
        for ids, reason in zip(found.token_ids[place], found.stop_reasons[place], strict=True):
            assert reason == ("eos" if ids[-1] in ENDS else "length")
        if expected.scores is not None:
            assert found.scores is not None
            close(found.scores[place], expected.scores[: count - missing], rel=2e-5)
            assert missing == 0 or (seed is not None and expected.scores[count - missing] < -1e8)


@EVERY
def test_greedy(place: int, name: str) -> None:
    for turn in (0, 3):
        check(name, CONTROLS[(place + turn) % len(CONTROLS)])


@EVERY
def test_sampling(place: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for turn in (0, 4):
        options = SAMPLERS[(place + turn) % len(SAMPLERS)]
        check(name, {**options, "num_return_sequences": 1 + turn // 2}, 5 + place, monkeypatch)


@EVERY
def test_beams(place: int, name: str) -> None:
    for turn in (0, 3):
        check(name, {"num_beams": 3, **BEAMS[(place + turn) % len(BEAMS)]})


@EVERY
def test_sampled_beams(place: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for turn in (0, 4):
        beams, sampler = BEAMS[(place + turn) % len(BEAMS)], SAMPLERS[(place + turn) % len(SAMPLERS)]
        check(name, {**sampler, **beams}, 3 + place, monkeypatch)
