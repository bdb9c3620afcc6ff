"""What generation's results say of likelihood: one meaning a field, in every mode."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from plainformer.generation.score import score_tokens
from tests.support import models as make
from tests.support.cli import Cli, done
from tests.support.close import close

TEXT = "the cat sat on the mat, the cat"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    folder = tmp_path_factory.mktemp("gpt2")
    model = make.gpt2(folder, n_positions=96)
    return model, make.load(folder), folder


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("bart")
    return make.bart(folder, {"forced_bos_token_id": 1}), make.load(folder)


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "seed": 3},
    "alternatives": {"num_alternatives": 3},
    "beam": {"num_beams": 3, "num_return_sequences": 3},
    "beam-sample": {"num_beams": 3, "do_sample": True, "seed": 1},
    "contrastive": {"penalty_alpha": 0.4, "top_k": 3},
    "lookup": {"prompt_lookup": 2},
    "lookup, sampled": {"prompt_lookup": 2, "do_sample": True, "seed": 5, "num_return_sequences": 2},
}


@pytest.mark.parametrize("mode", MODES)
def test_without_processors_they_are_the_models_own(mode: str, gpt2: tuple[Any, Any, Path]) -> None:
    _, task, _ = gpt2
    result = task(TEXT, max_new_tokens=8, output_scores=True, **MODES[mode])
    bare = task(TEXT, max_new_tokens=8, **MODES[mode])
    assert bare.log_probability is None and bare.log_probabilities is None and bare.token_ids == result.token_ids
    for answer in (result, *result.alternatives):
        ids = torch.tensor([[*result.prompt_ids, *answer.token_ids]])
        expected = score_tokens(task.model, ids)[0].log_probabilities[-len(answer.token_ids) :]
        close(answer.log_probabilities, expected, rel=2e-5)
        assert answer.log_probability == pytest.approx(math.fsum(answer.log_probabilities))
        assert (answer.score is not None) is ("num_beams" in MODES[mode])
        if answer.score is not None:
            assert answer.score == pytest.approx(answer.log_probability / answer.new_tokens, rel=1e-4)


@pytest.mark.parametrize("own", [{}, {"num_beams": 3, "length_penalty": 0.4}])
@pytest.mark.parametrize("processors", [{"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 1, "min_new_tokens": 4}])
def test_after_processors_they_are_the_references(
    own: dict[str, Any], processors: dict[str, Any], gpt2: tuple[Any, Any, Path]
) -> None:
    """`compute_transition_scores(normalize_logits=True)`: of the distribution that each token was picked from."""
    model, task, _ = gpt2
    result = task("the cat", max_new_tokens=7, output_scores=True, **own, **processors)
    found = model.generate(
        torch.tensor([result.prompt_ids]),
        max_new_tokens=7,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        **own,
        **processors,
    )
    beams = getattr(found, "beam_indices", None)
    expected = model.compute_transition_scores(found.sequences, found.scores, beams, normalize_logits=True)
    count = result.new_tokens
    assert found.sequences[0, len(result.prompt_ids) :].tolist()[:count] == list(result.token_ids)
    close(result.log_probabilities, expected[0, :count], rel=2e-5)
    if own:
        close(result.score, found.sequences_scores[0], rel=2e-5)


def test_forced_tokens_are_no_part_of_it(bart: tuple[Any, Any]) -> None:
    """Of beams, the forced first token runs in the search, and is not of the answer."""
    _, task = bart
    for beams in (1, 3):
        result = task("the cat", max_new_tokens=6, num_beams=beams, output_scores=True)
        assert len(result.log_probabilities) == len(result.token_ids) == result.new_tokens <= 6
        assert result.log_probability < -0.01
        assert list(result.input_ids) == task.tokenizer.encode("the cat").input_ids


def _choice_probability(model: Any, task: Any, prompt: list[int], choices: list[str], ids: tuple[int, ...]) -> float:
    """The product of each token's share among those that may go on to one of the choices, or end one."""
    texts = {
        i: task.tokenizer.decode([i]) for i in range(task.tokenizer.vocab_size) if i not in task.tokenizer.special_ids
    }
    total, written = 1.0, ""
    for place, token in enumerate(ids):
        p_V = model(torch.tensor([[*prompt, *ids[:place]]])).logits[0, -1].double().softmax(-1)
        allowed = [i for i, text in texts.items() if any(choice.startswith(written + text) for choice in choices)]
        allowed += [2] if written in choices else []
        total *= float(p_V[token] / p_V[allowed].sum())
        written += texts.get(token, "")
    assert written in choices
    return total


@torch.no_grad()
def test_of_choices_the_probability_is_there_unasked(gpt2: tuple[Any, Any, Path]) -> None:
    model, task, _ = gpt2
    choices = ["yes", "no", "never"]
    for prompt in ("the cat", "is it", "a"):
        result = task(prompt, choices=choices)
        expected = _choice_probability(model, task, list(result.prompt_ids), choices, result.token_ids)
        assert result.score is None and math.exp(result.log_probability) == pytest.approx(expected, rel=1e-4)
    assert task("a", choices=choices, output_scores=False).log_probability is None


def test_json_has_ids(gpt2: tuple[Any, Any, Path], cli: Cli) -> None:
    _, task, folder = gpt2
    flags = ["--max-new-tokens", "5", "--output-scores", "--json", "--backend", "plain"]
    (told,) = done(cli("run", str(folder), "the cat", *flags)).json()
    result = task("the cat", max_new_tokens=5, output_scores=True)
    assert told["token_ids"] == list(result.token_ids) and told["prompt_ids"] == list(result.prompt_ids)
    assert told["log_probability"] == pytest.approx(result.log_probability) and "score" not in told
    assert task.tokenizer.decode(told["token_ids"], skip_special_tokens=True) == told["text"]
    assert json.loads(json.dumps(result.to_dict()))["token_ids"] == told["token_ids"]
    lines = done(cli("run", str(folder), "the cat", "--num-beams", "2", "--num-return-sequences", "2")).lines
    assert lines[0].startswith("[1] (score -")
