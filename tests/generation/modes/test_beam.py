"""Beam search: the best answer of all where beams are many; order, scores, patience, early stopping, streaming, prefixes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from plainformer.generation.result import Generation
from plainformer.generation.search import generate, stream
from plainformer.loading import load_model
from plainformer.model.transformer import Transformer
from tests.support import models as make
from tests.support.close import close
from tests.support.generation import ENDS, batch, pair, prompts

FEW = 6  # tokens of the vocabularies small enough to try everything
END = 2
STEPS = 4


@cache
def small(name: str, seed: int) -> Transformer:
    with TemporaryDirectory() as folder:
        sizes: dict[str, Any] = dict(vocab_size=FEW, pad_token_id=0, bos_token_id=1, eos_token_id=END)
        if name == "gpt2":
            config: Any = transformers.GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=4, n_positions=48)
            make.save_model(Path(folder), "GPT2LMHeadModel", config, seed)
        else:
            config = transformers.BartConfig(
                **sizes, **make.SEQ2SEQ, decoder_start_token_id=1, forced_eos_token_id=None
            )
            make.save_model(Path(folder), "BartForConditionalGeneration", config, seed)
        return load_model(folder, backend="plain")


def continuations() -> Iterator[tuple[int, ...]]:
    """All answers of at most STEPS tokens that END ends, or the limit."""
    others = [token for token in range(FEW) if token != END]
    for length in range(1, STEPS + 1):
        for start in product(others, repeat=length - 1):
            yield (*start, END)
    yield from product(others, repeat=STEPS)


@torch.no_grad()
def log_probability(model: Transformer, prompt: Tensor, answer: tuple[int, ...], start: Tensor | None = None) -> float:
    """Of the answer's tokens, by one run without a cache."""
    new = torch.tensor([answer])
    if model.config.encoder is None:
        logits = model(torch.cat((prompt, new), dim=1)).logits
    else:
        begin = torch.tensor([[model.config.decoder_start_id]]) if start is None else start
        logits = model(prompt, decoder_input_ids=torch.cat((begin, new), dim=1)).logits
    return float(logits[:, -len(answer) - 1 : -1].log_softmax(-1).gather(-1, new[..., None]).double().sum())


@pytest.mark.parametrize("name", ["gpt2", "bart"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_of_all(name: str, seed: int) -> None:
    """With beams enough for every beginning, beam search is exhaustive: its n best are the n best of all answers."""
    model = small(name, seed)
    prompt = torch.tensor([[3, 5, 4, 1]])
    everything = [(log_probability(model, prompt, answer), answer) for answer in continuations()]
    for length_penalty in (0.0, 1.0, 2.0, -1.0):
        scored = sorted(((lp / len(a) ** length_penalty, a) for lp, a in everything), reverse=True)
        found = generate(
            model,
            prompt,
            num_beams=1000,
            num_return_sequences=12,
            length_penalty=length_penalty,
            early_stopping="never",
            max_new_tokens=STEPS,
        )
        best, score_of = [score for score, _ in scored[:12]], {answer: score for score, answer in scored}
        close(found.scores, best)
        # Each answer has the score of its rank: two whose scores differ by rounding alone may change places.
        close([score_of[answer] for answer in found.token_ids], best)
        assert len(set(found.token_ids)) == 12


MODES: dict[str, dict[str, Any]] = {
    "beam": {"num_beams": 4, "num_return_sequences": 4},
    "beam-sample": {"num_beams": 4, "num_return_sequences": 4, "do_sample": True, "seed": 7},
    "diverse beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.9, "num_return_sequences": 4},
}


@pytest.mark.parametrize("name", ["llama", "mistral", "bart", "t5"])
@pytest.mark.parametrize("mode", ["beam", "beam-sample"])
@pytest.mark.parametrize("length_penalty", [None, 0.0, 1.8, -0.7])
def test_scores_are_log_probabilities(name: str, mode: str, length_penalty: float | None) -> None:
    """Each answer's score is what the model itself gives it; answers come best first and no two are the same."""
    both = pair(name)
    rows = prompts(both, (6, 3, 8))
    penalty = {"length_penalty": length_penalty} if length_penalty is not None else {}
    options: dict[str, Any] = {**MODES[mode], **penalty, "max_new_tokens": 7, "eos_ids": ENDS}
    found = generate(both.ours, **batch(both, rows), **options)
    assert found.scores is not None and found.log_probabilities is None and found.cache is None
    asked = generate(both.ours, **batch(both, rows), **options, output_scores=True)
    assert (asked.token_ids, asked.scores) == (found.token_ids, found.scores) and asked.log_probabilities is not None
    for tokens, score, chances in zip(asked.token_ids, asked.scores, asked.log_probabilities, strict=True):
        assert len(chances) == len(tokens)
        close(sum(chances) / len(tokens) ** (1.0 if length_penalty is None else length_penalty), score, rel=2e-5)
    for index, row in enumerate(rows):
        place = slice(4 * index, 4 * index + 4)
        answers, scores = found.token_ids[place], found.scores[place]
        assert list(scores) == sorted(scores, reverse=True) and len(set(answers)) == 4
        for answer, score in zip(answers, scores, strict=True):
            length = len(answer) ** (1.0 if length_penalty is None else length_penalty)
            close(score, log_probability(both.ours, row, answer) / length, rel=2e-5)


def answers(name: str = "llama", **options: Any) -> Generation:
    both = pair(name)
    rows = batch(both, prompts(both, (6, 3, 8, 5)))
    return generate(both.ours, **rows, **{"max_new_tokens": 12, "eos_ids": ENDS, **options})


def test_fewer_answers_are_the_first_ones() -> None:
    for mode, options in MODES.items():
        four = answers(**options)
        two = answers(**{**options, "num_return_sequences": 2})
        assert two.token_ids == tuple(row for i, row in enumerate(four.token_ids) if i % 4 < 2), mode
        assert answers(**{**options, "num_return_sequences": 1}).token_ids == four.token_ids[::4]


def test_groups_shun_each_others_words() -> None:
    """Diversity spreads the answers' first words; without its penalty two groups would take the same ones."""

    def first_words(penalty: float) -> int:
        found = answers(num_beams=6, num_beam_groups=3, diversity_penalty=penalty, num_return_sequences=6)
        return sum(len({row[0] for row in found.token_ids[i : i + 6]}) for i in range(0, 24, 6))

    assert first_words(50.0) > first_words(1e-6)
    same = answers(num_beams=6, num_beam_groups=3, diversity_penalty=1e-9, num_return_sequences=6)
    plain = answers(num_beams=2, num_return_sequences=2)
    assert [row for i in range(0, 24, 6) for row in same.token_ids[i : i + 6 : 3]] == list(plain.token_ids)


def test_early_stopping_and_patience() -> None:
    """True stops with enough answers; patience says how many are enough; "never" goes on while one could still win."""
    ends = list(range(0, 99, 3))

    def best(**options: Any) -> list[float]:
        found = answers(num_beams=3, eos_ids=ends, max_new_tokens=20, **options)
        assert found.scores is not None
        return list(found.scores)

    early, usual, never = best(early_stopping=True), best(early_stopping=False), best(early_stopping="never")
    patient = best(early_stopping=True, patience=4.0)
    hasty = best(early_stopping=True, patience=0.34)
    for worse, better in ((hasty, early), (early, patient), (early, never), (usual, never)):
        assert all(a <= b + 1e-6 for a, b in zip(worse, better, strict=True))
    assert sum(hasty) < sum(early) < sum(patient)  # with these weights each waits for something better
    many = answers(num_beams=3, num_return_sequences=3, patience=3.0, early_stopping=True, eos_ids=ends)
    assert len(many.token_ids) == 12 and len(set(many.token_ids)) > 8
    wide = answers(num_beams=3, num_return_sequences=3, patience=1.0, early_stopping=True, eos_ids=ends)
    assert many.scores is not None and wide.scores is not None and sum(many.scores) >= sum(wide.scores)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_streaming(mode: str, name: str) -> None:
    """What is streamed is never taken back: it is the best answer, token by token, before the search has ended."""
    both = pair(name)
    inputs = batch(both, prompts(both, (6, 3, 8)))
    for ends in (ENDS, list(range(0, 99, 5)), ()):
        options: dict[str, Any] = {**MODES[mode], "max_new_tokens": 14, "eos_ids": ends}
        whole = generate(both.ours, **inputs, **options)
        told: list[list[int]] = [[], [], []]
        steps = stream(both.ours, **inputs, **options)
        count = 0
        for tokens, reasons in steps:
            count += 1
            assert len(tokens) == len(reasons) == 3
            for row in range(3):
                if (token := tokens[row]) is not None:
                    told[row].append(token)
                assert whole.token_ids[4 * row][: len(told[row])] == tuple(told[row])
                assert reasons[row] in (None, whole.stop_reasons[4 * row])
                assert reasons[row] is None or len(told[row]) == len(whole.token_ids[4 * row])
        assert [tuple(row) for row in told] == list(whole.token_ids[::4])
        assert reasons == list(whole.stop_reasons[::4])
        assert count >= max(len(row) for row in told)


def test_a_stream_begins_before_the_end() -> None:
    """Where beams agree, tokens come out while the search goes on."""
    both = pair("gpt2")
    seen: list[int] = []
    row = prompts(both, (6,))[0]
    watched = stream(both.ours, row, num_beams=2, max_new_tokens=20, eos_ids=(), stop_when=lambda ids: seen.append(0))
    next(watched)
    early = len(seen)
    list(watched)
    assert early < len(seen)


@pytest.mark.parametrize("name", ["bart", "t5", "whisper"])
@pytest.mark.parametrize("mode", [{}, {"do_sample": True, "seed": 2, "num_return_sequences": 4}, *MODES.values()])
def test_forced_prefixes(name: str, mode: dict[str, Any]) -> None:
    """An answer goes on from `decoder_input_ids`, which it does not repeat; each row from its own."""
    both = pair(name)
    rows = prompts(both, (6, 3, 8))
    start = torch.tensor([[2, 9, 17], [2, 40, 8], [7, 7, 5]])
    options: dict[str, Any] = {**mode, "max_new_tokens": 6, "eos_ids": ENDS}
    found = generate(both.ours, **batch(both, rows), decoder_input_ids=start, **options)
    per = len(found.token_ids) // 3
    for index, row in enumerate(rows):
        begin = start[index : index + 1]
        alone = generate(both.ours, **batch(both, [row]), decoder_input_ids=begin, **options)
        assert found.token_ids[per * index : per * (index + 1)] == alone.token_ids
        if "num_beams" in mode and "num_beam_groups" not in mode and name != "whisper":
            assert alone.scores is not None
            for answer, score in zip(alone.token_ids, alone.scores, strict=True):
                expected = log_probability(both.ours, row, answer, begin) / len(answer)
                close(score, expected, rel=2e-5)
    changed = start.clone()
    changed[:, 1:] = torch.tensor([60, 61])
    assert generate(both.ours, **batch(both, rows), decoder_input_ids=changed, **options).token_ids != found.token_ids


def test_where_there_are_fewer_answers_than_asked_for() -> None:
    """Rows that no answer is left for are empty, and say so: each prompt keeps its number of rows."""
    both = pair("gpt2")
    rows = batch(both, prompts(both, (4, 2)))
    step = {0: [90], 90: [91, 92], 91: [93], 92: [93]}
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "eos_ids": [93], "max_new_tokens": 5}
    whole = generate(
        both.ours,
        rows["input_ids"] % 80,
        rows["attention_mask"],
        allowed_tokens=lambda ids: step[ids[-1] if ids[-1] >= 90 else 0],
        **options,
    )
    assert whole.stop_reasons == ("eos", "eos", "exhausted") * 2
    assert set(whole.token_ids[:2]) == set(whole.token_ids[3:5]) == {(90, 91, 93), (90, 92, 93)}
    assert whole.token_ids[2] == whole.token_ids[5] == ()
    assert whole.scores is not None and whole.scores[2] == -torch.inf
