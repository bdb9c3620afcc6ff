"""Scores against the reference's loss, ranks by counting, and independence of batch and padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

import plainformer as pf
from plainformer.errors import InputError, UsageError
from plainformer.generation.score import TokenScores, score_tokens
from tests.support.close import close
from tests.support.models import GPT2, LLAMA, randomise


def reference(folder: Path, kind: str) -> tuple[transformers.PreTrainedModel, pf.Transformer]:
    torch.manual_seed(0)
    config = {
        "gpt2": lambda: transformers.GPT2Config(**{k: v for k, v in GPT2.items() if k != "model_type"}),
        "llama": lambda: transformers.LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"}),
    }[kind]()
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomise(model)
    model.tie_weights()
    model.save_pretrained(folder)
    return model, pf.load_model(folder)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.no_grad()
def test_the_sum_is_the_loss(kind: str, tmp_path: Path) -> None:
    theirs, ours = reference(tmp_path, kind)
    ids = torch.randint(3, 200, (3, 17), generator=torch.Generator().manual_seed(1))
    for row, scores in zip(ids, score_tokens(ours, ids), strict=True):
        loss = theirs(row[None], labels=row[None]).loss.item()  # the mean over the 16 tokens that have one before them
        assert scores.total == pytest.approx(-loss * 16, rel=1e-5)
        assert scores.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
        log_probabilities = theirs(row[None]).logits[0, :-1].log_softmax(-1)
        chosen = log_probabilities.gather(-1, row[1:, None])
        close(torch.tensor(scores.log_probabilities), chosen[:, 0])
        assert list(scores.ranks) == ((log_probabilities > chosen).sum(-1) + 1).tolist()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_padding_changes_nothing(kind: str, tmp_path: Path) -> None:
    _, ours = reference(tmp_path, kind)
    ids = torch.randint(3, 200, (3, 12), generator=torch.Generator().manual_seed(2))
    lengths = (12, 2, 7)
    alone = [score_tokens(ours, row[None, :length])[0] for row, length in zip(ids, lengths, strict=True)]
    for side in ("left", "right"):
        padded, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for index, length in enumerate(lengths):
            place = slice(0, length) if side == "right" else slice(12 - length, 12)
            padded[index, place], mask[index, place] = ids[index, :length], 1
        for found, expected in zip(score_tokens(ours, padded, mask), alone, strict=True):
            assert found.ranks == expected.ranks
            close(found.log_probabilities, expected.log_probabilities)


def test_probabilities_of_all_continuations_sum_to_one(tiny: Callable[[str], Path]) -> None:
    model = pf.load_model(tiny("text-generation"))
    vocabulary = torch.arange(model.config.vocab_size or 0)
    rows = torch.stack((torch.full_like(vocabulary, 7), vocabulary), dim=1)
    scores = score_tokens(model, rows)
    close(math.fsum(math.exp(row.total) for row in scores), 1)
    assert sorted(row.ranks[0] for row in scores) == list(range(1, len(vocabulary) + 1))


def test_texts(tiny: Callable[[str], Path]) -> None:
    task = pf.load(tiny("chat"))
    texts = ["hello, world", "né", "the cat sat on the mat"] * 7  # more than one batch
    found = task.score(texts)
    one = task.score(texts[0])
    close(found[0].log_probability, one.log_probability, rel=2e-5)
    for text, scored in zip(texts, found, strict=True):
        first, *rest = scored.tokens
        assert first.log_probability is None and first.rank is None
        assert scored.log_probability == pytest.approx(math.fsum(token.log_probability for token in rest))
        assert scored.perplexity == pytest.approx(math.exp(-scored.log_probability / len(rest)))
        assert all(token.text == text[token.start : token.end] for token in scored.tokens)
    assert one.to_dict()["tokens"][1]["rank"] >= 1


def test_what_cannot_be_scored(tiny: Callable[[str], Path]) -> None:
    model = pf.load_model(tiny("text-generation"))
    with pytest.raises(InputError, match="one token"):
        score_tokens(model, torch.tensor([[5]]))
    with pytest.raises(InputError, match="input 1 has one token"):
        score_tokens(model, torch.tensor([[5, 6], [5, 0]]), torch.tensor([[1, 1], [1, 0]]))
    with pytest.raises(InputError, match="no real token"):
        score_tokens(model, torch.tensor([[5, 6], [5, 0]]), torch.tensor([[1, 1], [0, 0]]))
    for name in ("text2text", "fill-mask"):
        with pytest.raises(UsageError, match="predicts no next token"):
            score_tokens(pf.load_model(tiny(name)), torch.tensor([[5, 6]]))
    task = pf.load(tiny("text-generation"))
    with pytest.raises(InputError, match="limit is 48"):
        task.score("x" * 60)
    assert len(task.score("x" * 60, truncate=True).tokens) == 48
    with pytest.raises(InputError, match="not a text"):
        task.score([["a"]])
    assert task.score([]) == []


def test_a_hopeless_text_has_infinite_perplexity() -> None:
    assert TokenScores((-1e4,), (9,)).perplexity == math.inf


# ---- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "length", "stride"), [(40, 16, 4), (40, 16, 15), (17, 16, 1), (41, 9, 7), (16, 16, 3)]
)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_windows_score_each_token_once_after_enough_others(
    kind: str, count: int, length: int, stride: int, tmp_path: Path
) -> None:
    """By brute force: each token alone, behind what the docstring says stands before it."""
    _, ours = reference(tmp_path, kind)
    ids = torch.randint(3, 200, (1, count), generator=torch.Generator().manual_seed(4))
    found = score_tokens(ours, ids, max_length=length, stride=stride)[0]
    assert len(found.log_probabilities) == len(found.ranks) == count - 1
    windows = 1 + max(0, math.ceil((count - length) / stride))
    starts = [index * stride for index in range(windows)]
    for place in range(1, count):
        start = next(start for start in starts if place < start + length)
        context = place - start
        assert context == place if place < length else context >= length - stride
        alone = score_tokens(ours, ids[:, start : place + 1])[0]
        close(found.log_probabilities[place - 1], alone.log_probabilities[-1], rel=2e-5)
        assert found.ranks[place - 1] == alone.ranks[-1]


def test_windows_in_a_batch(tmp_path: Path) -> None:
    _, ours = reference(tmp_path, "llama")
    ids = torch.randint(3, 200, (3, 30), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :22] = mask[2, :9] = 0
    found = score_tokens(ours, ids, mask, max_length=10, stride=6)
    for row, own, scores in zip(ids, mask.bool(), found, strict=True):
        alone = score_tokens(ours, row[own][None], max_length=10, stride=6)[0]
        close(scores.log_probabilities, alone.log_probabilities)


def test_long_texts(tiny: Callable[[str], Path]) -> None:
    task = pf.load(tiny("text-generation"), backend="plain")  # 48 positions
    text = "the cat sat on the mat. " * 6
    found = task.score(text, stride=16)
    assert len(found.tokens) == len(text) and found.tokens[0].rank is None
    assert all(token.rank is not None for token in found.tokens[1:])
    first = task.score(text[:48])
    close([t.log_probability for t in found.tokens[1:48]], [t.log_probability for t in first.tokens[1:]])
    assert found.perplexity == pytest.approx(math.exp(-found.log_probability / (len(text) - 1)))
    short = task.score([text, "the"], stride=4, max_length=20)
    assert len(short[0].tokens) == len(text) and len(short[1].tokens) == 3
    with pytest.raises(InputError, match="limit is 20"):
        task.score(text, max_length=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "not a whole number"),
        ({"stride": 48}, "give at most 47"),
        ({"stride": 8, "max_length": 8}, "give at most 7"),
        ({"stride": 8, "max_length": 49}, "48 positions"),
        ({"stride": 8, "truncate": True}, "pass one of the two"),
        ({"stride": True}, "not a whole number"),
    ],
)
def test_windows_that_cannot_be(tiny: Callable[[str], Path], options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pf.load(tiny("text-generation"), backend="plain").score("the cat " * 10, **options)
    with pytest.raises(UsageError, match="sets no limit"):
        pf.load(tiny("chat"), backend="plain").score("the cat", stride=4)
    with pytest.raises(UsageError, match="no effect without stride"):
        score_tokens(pf.load_model(tiny("chat")), torch.tensor([[5, 6]]), max_length=4)
