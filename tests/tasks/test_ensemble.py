"""Several models answer as one: the mean of what each would answer alone, or the majority; what cannot be combined is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plainformer
from plainformer.errors import CheckpointError, UsageError
from plainformer.tasks.base import Task
from plainformer.tasks.ensemble import Ensemble, ensemble, shares, votes_of
from tests.support.models import save

TEXTS = ["the cat sat on the mat", "who is in paris", "good", "the dog ran"]
INPUTS: dict[str, Any] = {
    "text-classification": TEXTS,
    "token-classification": TEXTS,
    "question-answering": [("who sat", "the cat sat on the mat in paris"), ("where", "the dog ran in france")],
    "multiple-choice": [("the cat", ["sat", "ran", "is good"]), ("who", ["the dog", "paris"])],
    "image-classification": [np.full((8, 8, 3), level, np.uint8) for level in (0, 90, 250)],
    "audio-classification": [
        {"array": np.sin(np.arange(size) * 0.1).astype(np.float32), "sampling_rate": 16000} for size in (1200, 900)
    ],
}


def members(name: str, folder: Path, count: int = 3, **changes: Any) -> list[Task]:
    return [plainformer.load(save(name, folder / f"{seed}", seed=seed, **changes)) for seed in range(count)]


@pytest.mark.parametrize("name", INPUTS)
def test_the_answer_is_the_mean_of_the_members(name: str, tmp_path: Path) -> None:
    own = members(name, tmp_path)
    together = ensemble(own, "mean", "RUN")
    assert isinstance(together, type(own[0])) and isinstance(together, Ensemble) and together.ref == "RUN"
    inputs = INPUTS[name]
    found = together(inputs)
    assert len(found) == len(inputs) and type(together(inputs[0])) is type(found[0])
    if name == "token-classification":
        found, alone = together(inputs, aggregation="none"), [one(inputs, aggregation="none") for one in own]
        options = own[0].make_options({"aggregation": "none"})
        scores = [one.predict(one.encode(inputs, options), options).numpy() for one in own]
        assert any(len({answer[place] for answer in alone}) > 1 for place in range(len(inputs)))  # they do not agree
        for place, spans in enumerate(found):
            mean = np.mean([score[place] for score in scores], 0)[1 : 1 + len(spans)]
            assert [span.score for span in spans] == pytest.approx(mean.max(-1).tolist(), rel=1e-5)
            assert [span.label for span in spans] == [own[0].config.labels[best] for best in mean.argmax(-1)]
    elif name == "question-answering":
        options = own[0].make_options({})
        encoded = own[0].encode(inputs, options)
        mean = torch.stack([one.predict(encoded, options) for one in own]).mean(0)
        expected = own[0].decode(encoded, mean, options)
        assert [one.text for one in found] == [one.text for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], rel=1e-5)
    else:
        alone = [one(inputs) for one in own]
        for place, one in enumerate(found):
            mean = np.mean([_scores(answer[place]) for answer in alone], 0)
            assert _scores(one) == pytest.approx(mean.tolist(), rel=1e-6) and one.score == max(_scores(one))


def _scores(answer: Any) -> list[float]:
    return [getattr(one, "score", one) for one in answer.scores]


@pytest.mark.parametrize("name", ["text-classification", "multiple-choice"])
def test_the_majority_wins(name: str, tmp_path: Path) -> None:
    own = members(name, tmp_path, 5)
    inputs = INPUTS[name]
    alone = [one(inputs) for one in own]
    which = "label" if name == "text-classification" else "index"
    for place, one in enumerate(ensemble(own, "majority", "RUN")(inputs)):
        votes = Counter(getattr(answer[place], which) for answer in alone)
        most = max(votes.values())
        assert votes[getattr(one, which)] == most and one.score == most / 5
        assert sum(_scores(one)) == pytest.approx(1)


def test_of_equally_many_votes_the_mean_decides() -> None:
    one, other = [0.6, 0.4, 0.0], [0.1, 0.9, 0.0]
    assert shares([one, other], "majority", False) == ([0.5, 0.5, 0.0], 1)
    assert shares([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0]], "majority", False) == ([0.5, 0.5, 0.0], 0)
    assert shares([[0.9, 0.6], [0.7, 0.2], [0.1, 0.8]], "majority", True) == ([2 / 3, 2 / 3], 0)
    voted = votes_of([torch.tensor([one]), torch.tensor([other])])
    assert voted.argmax(-1).item() == 1 and voted[0].tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-6)
    assert votes_of([torch.tensor([one])] * 3)[0].tolist() == [1.0, 0.0, 0.0]


def test_numbers_have_a_mean_and_no_majority(tmp_path: Path) -> None:
    own = members("text-classification", tmp_path, 2, problem_type="regression", id2label={"0": "stars"})
    found = ensemble(own, "mean", "RUN")(TEXTS[0])
    assert found.score == pytest.approx(np.mean([one(TEXTS[0]).score for one in own]), rel=1e-6)
    with pytest.raises(UsageError, match="hardly ever equal"):
        ensemble(own, "majority", "RUN")


@pytest.mark.parametrize("name", ["text-generation", "text2text", "speech", "embedding", "fill-mask"])
def test_what_has_no_mean_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot answer .* as one"):
        ensemble(members(name, tmp_path, 2), "mean", "RUN")


def test_members_must_have_the_same_labels(tmp_path: Path) -> None:
    one = plainformer.load(save("text-classification", tmp_path / "a"))
    other = plainformer.load(save("text-classification", tmp_path / "b", id2label={"0": "x", "1": "y", "2": "z"}))
    with pytest.raises(CheckpointError, match="do not answer the same"):
        ensemble([one, other], "mean", "RUN")
