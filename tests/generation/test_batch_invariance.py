"""A prompt alone gives what it gives in any batch: tokens, why they end, and scores; in every mode that runs batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import event, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from plainformer.generation.cache import cache as cache_module
from plainformer.generation.result import Generation
from plainformer.generation.search import generate, stream
from plainformer.generation.sessions.session import Session
from tests.support.close import close
from tests.support.generation import ENDS, Pair, batch, pair, prompts

FAMILIES = ("gpt2", "mistral", "gemma2", "bart", "t5")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "alternatives": {"num_alternatives": 3},
    "sample": {"do_sample": True},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "beam-sample": {"num_beams": 3, "do_sample": True, "num_return_sequences": 3},
    "diverse beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7, "num_return_sequences": 3},
}
SAMPLERS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.7},
    {"top_k": 9, "top_p": 0.9},
    {"typical_p": 0.6},
    {"min_p": 0.02, "top_n_sigma": 2.0},
    {"eta_cutoff": 0.02, "epsilon_cutoff": 0.01},
    {"xtc_probability": 0.5},
]
BEAMS: list[dict[str, Any]] = [
    {},
    {"length_penalty": 0.0, "early_stopping": True},
    {"length_penalty": 1.7, "early_stopping": "never"},
    {"length_penalty": -0.5, "patience": 2.0},
]
CONTROLS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.5},
    {"presence_penalty": 0.8, "frequency_penalty": 0.4},
    {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 3},
    {"encoder_repetition_penalty": 1.4, "dry_multiplier": 0.8},
    {"min_new_tokens": 4, "suppress": [20, 21]},
    {"bad_words_ids": [[9], [30, 31]], "sequence_bias": {(33,): 2.0, (33, 40): 3.0}},
    {"exponential_decay": (2, 1.5), "forced_eos_id": 23},
    {"allowed_tokens": lambda ids: [(ids[-1] * 5 + k) % 90 for k in range(9)]},
    {"forced": {3: 17, 12: 40}},
    {"prefill_chunk": 3},
    {"min_length": 9},
]
LENGTHS: list[dict[str, Any]] = [{"max_new_tokens": 6}, {"max_new_tokens": 13}, {"max_length": 15}]
STOPS: list[dict[str, Any]] = [{}, {}, {"stop_when": lambda ids: sum(ids) % 11 == 3}]


@pytest.fixture(scope="module", autouse=True)
def short_slack() -> Iterator[None]:
    """Windowed layers slide several times within a test's few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "SLACK", 2)
        yield


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    mode = draw(st.sampled_from(sorted(MODES)))
    event(mode)
    found = {**MODES[mode], **draw(st.sampled_from(CONTROLS)), **draw(st.sampled_from(LENGTHS))}
    found |= draw(st.sampled_from(STOPS))
    if found.get("do_sample"):
        found |= {**draw(st.sampled_from(SAMPLERS)), "seed": draw(st.integers(0, 99))}
    if "num_beams" in found:
        found |= draw(st.sampled_from(BEAMS))
    if draw(st.booleans()):
        found["output_scores"] = True
    return found


class Choices:
    """A watcher that keeps what each step's tokens were picked from."""

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor | None]] = []

    def processed(self, name: str, before_RV: Tensor, after_RV: Tensor) -> None:
        pass

    def picked(self, logits_RV: Tensor, picked_R: Tensor, draws_R: Tensor | None, session: Session) -> None:
        self.steps.append((logits_RV, draws_R))

    def beams(self, *_: object) -> None:
        pass

    def searched(self, *_: object) -> None:
        pass

    def tie(self, row: int, step: int, one: int, other: int) -> bool:
        """Whether two tokens are equally likely, or the number drawn stands on the border between them."""
        logits_RV, draws_R = self.steps[step]
        if draws_R is None or (self.steps[0][1] is None and step == 0):
            return abs(float(logits_RV[row, one] - logits_RV[row, other])) < 1e-4
        border = float(logits_RV[row].double().softmax(-1)[: max(one, other)].sum())
        width = float(logits_RV[row].double().softmax(-1)[min(one, other) + 1 : max(one, other)].sum())
        return width < 1e-4 and abs(border - float(draws_R[row])) < 1e-4


def tied(alone: Generation, together: Generation, row: int, first: int, choices: Choices) -> bool:
    """Whether the first difference is one that rounding may make."""
    mine, theirs = alone.token_ids[row], together.token_ids[first + row]
    if not choices.steps:  # beams
        assert alone.scores is not None and together.scores is not None
        scale = max(1.0, abs(together.scores[first + row]))
        return abs(alone.scores[row] - together.scores[first + row]) <= 2e-5 * scale
    step = next((i for i, (one, other) in enumerate(zip(mine, theirs, strict=False)) if one != other), None)
    return step is not None and choices.tie(row, step, mine[step], theirs[step])


def compare(alone: Generation, together: Generation, first: int, choices: Choices) -> bool:
    """One prompt's rows; False where tokens differ and no tie is why."""
    for row in range(len(alone.token_ids)):
        mine, theirs = alone.token_ids[row], together.token_ids[first + row]
        if mine != theirs:
            note(f"row {row}: {mine} alone, {theirs} in the batch")
            if not tied(alone, together, row, first, choices):
                return False
            event("a tie")
            return True
        assert alone.stop_reasons[row] == together.stop_reasons[first + row]
        if alone.scores is not None and together.scores is not None:
            close(alone.scores[row], together.scores[first + row], rel=2e-5)
        assert (alone.log_probabilities is None) == (together.log_probabilities is None)
        if alone.log_probabilities is not None and together.log_probabilities is not None:
            close(alone.log_probabilities[row], together.log_probabilities[first + row], rel=2e-5)
    return True


def differences(both: Pair, rows: list[Tensor], side: str, extra: int, chosen: dict[str, Any]) -> list[int]:
    """The prompts that are answered otherwise alone than in the batch."""
    together = generate(both.ours, **batch(both, rows, side, extra), eos_ids=ENDS, **chosen)
    count, found = len(together.token_ids) // len(rows), []
    for index, row in enumerate(rows):
        choices = Choices()
        alone = generate(both.ours, row, eos_ids=ENDS, watcher=choices, **chosen)
        assert len(alone.token_ids) == count
        if not compare(alone, together, index * count, choices):
            found.append(index)
    return found


@given(
    family=st.sampled_from(FAMILIES),
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    side=st.sampled_from(["left", "right"]),
    extra=st.integers(0, 5),
    chosen=options(),
    seed=st.integers(0, 50),
)
@settings(max_examples=80, deadline=None)
def test_alone_and_together(
    family: str, lengths: list[int], side: str, extra: int, chosen: dict[str, Any], seed: int
) -> None:
    both = pair(family)
    rows = prompts(both, tuple(lengths), seed)
    found = differences(both, rows, side, extra, chosen)
    if found and "num_beams" in chosen and "seed" in chosen:
        # One of many numbers drawn may stand on a border; where it is no border, other numbers differ as well.
        event("drawn again")
        found = differences(both, rows, side, extra, {**chosen, "seed": chosen["seed"] + 1000})
    assert not found


@given(family=st.sampled_from(FAMILIES), chosen=options(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_stream_is_the_same(family: str, chosen: dict[str, Any], lengths: list[int]) -> None:
    """Streamed tokens, joined, are a prompt's row (in beam search the best one), and the last reasons are its reasons."""
    both = pair(family)
    inputs = batch(both, prompts(both, tuple(lengths)), "left", 1)
    whole = generate(both.ours, **inputs, eos_ids=ENDS, **chosen)
    steps = stream(both.ours, **inputs, eos_ids=ENDS, **chosen)
    got: list[tuple[list[int | None], list[Any]]] = []
    while True:
        try:
            got.append(next(steps))
        except StopIteration as end:
            assert end.value.token_ids == whole.token_ids and end.value.scores == whole.scores
            break
    every = chosen.get("num_return_sequences", 1) if "num_beams" in chosen else 1
    for row, (ids, reason) in enumerate(zip(whole.token_ids[::every], whole.stop_reasons[::every], strict=True)):
        assert tuple(tokens[row] for tokens, _ in got if tokens[row] is not None) == ids
        assert got[-1][1][row] == reason
        ended = [reasons[row] is not None for _, reasons in got]
        assert ended == sorted(ended), "a reason was taken back"


def ours(both: Pair, lengths: tuple[int, ...], **chosen: Any) -> Generation:
    return generate(both.ours, **batch(both, prompts(both, lengths)), max_new_tokens=8, eos_ids=ENDS, **chosen)


@pytest.mark.parametrize("family", FAMILIES)
def test_seeds(family: str) -> None:
    """A seed names a sample, whatever stands beside it; asking for more samples adds to them and changes none."""
    both = pair(family)
    inputs = batch(both, prompts(both, (4, 4, 4)))
    chosen: dict[str, Any] = {"max_new_tokens": 8, "eos_ids": ENDS, "do_sample": True, "temperature": 1.5}
    one = generate(both.ours, **inputs, **chosen, seed=[3, 4, 5]).token_ids
    other = generate(both.ours, **inputs, **chosen, seed=[9, 4, 3]).token_ids
    assert one[1] == other[1] and one[0] != other[0]
    three = generate(both.ours, **inputs, **chosen, seed=[3, 4, 5], num_return_sequences=3).token_ids
    two = generate(both.ours, **inputs, **chosen, seed=[3, 4, 5], num_return_sequences=2).token_ids
    assert [three[i] for i in (0, 1, 3, 4, 6, 7)] == list(two)
    assert three[::3] == one and len(set(three)) > 3
    again = generate(both.ours, **inputs, **chosen, seed=7).token_ids
    assert again == generate(both.ours, **inputs, **chosen, seed=7).token_ids
    assert again[0] == generate(both.ours, inputs["input_ids"][:1], **chosen, seed=7).token_ids[0]
    assert generate(both.ours, **inputs, **chosen).token_ids != generate(both.ours, **inputs, **chosen).token_ids


def test_a_function_is_not_asked_about_ended_rows() -> None:
    """What stands behind the end of a row or of a beam is no continuation that `allowed_tokens` could know."""
    both = pair("gpt2")

    def allowed(ids: list[int]) -> list[int]:
        new = [token for token in ids if token >= 80]
        return {0: [80, 81, 83], 80: [84], 81: [82], 82: [85], 85: [86], 83: [84]}[new[-1] if new else 0]

    inputs = batch(both, [row % 70 for row in prompts(both, (5, 2, 3, 4))])
    for mode in ({}, {"do_sample": True, "seed": 1}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True, "seed": 2}):
        found = generate(both.ours, **inputs, max_new_tokens=7, eos_ids=[84, 86], allowed_tokens=allowed, **mode)
        assert set(found.token_ids) <= {(80, 84), (83, 84), (81, 82, 85, 86)}
        assert set(found.stop_reasons) == {"eos"}
