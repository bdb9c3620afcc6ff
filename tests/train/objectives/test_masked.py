"""Masked language modelling: how often tokens are chosen and what becomes of them, and the reference's loss."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
import torch
import transformers
from scipy import stats

from plainformer.errors import CheckpointError
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.train.draws import generator
from plainformer.train.objectives.base import Dropped
from plainformer.train.objectives.collate import NONE
from plainformer.train.objectives.masked import MaskedLanguageModel, some
from tests.support import models
from tests.support.close import close
from tests.support.parity import load_ours
from tests.support.sentencepiece import corpus
from tests.support.tokenizers import byte_level, minilm, unigram
from tests.support.training import batch_of, check_batching, examples_of, fresh, train_config

TEXTS = corpus()[:40]
ROWS = [{"text": text} for text in TEXTS]


@lru_cache
def with_mask(name: str) -> Tokenizer:
    """A tokenizer of each algorithm that has a mask token: WordPiece, byte-level BPE, Unigram."""
    if name == "wordpiece":
        return minilm()
    made = {"bpe": byte_level, "unigram": unigram}[name].__wrapped__()
    made.backend.add_special_tokens(["<mask>"])
    return Tokenizer(made.backend, special_tokens={**made.special_tokens, "mask_token": "<mask>"})


def masked(tokenizer: Tokenizer, config=None, **sections) -> MaskedLanguageModel:
    config = config or models.make("t5", vocab_size=31000).config
    return MaskedLanguageModel(train_config("masked-lm", **sections), config, tokenizer)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory):
    sizes = dict(models.TINY, vocab_size=with_mask("bpe").vocab_size, max_position_embeddings=64)
    theirs = models.reference("BertForMaskedLM", transformers.BertConfig(**sizes))
    return fresh(load_ours(theirs, tmp_path_factory.mktemp("bert"))).eval(), theirs


@pytest.mark.parametrize("name", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize("whole", [False, True])
def test_shares(name: str, whole: bool) -> None:
    """15 % of the tokens; of those 80 % masked, 10 % replaced, 10 % kept; special tokens never: within 3 deviations."""
    tokenizer = with_mask(name)
    objective = masked(tokenizer, loss=dict(whole_words=whole))
    examples = [example for example in examples_of(objective, ROWS) if len(np.unique(example["units"])) > 8]
    seen = chosen = 0
    kinds: Counter[str] = Counter()
    for epoch in range(60):
        for number, example in enumerate(examples):
            ids, labels = objective.hide(example, generator(0, epoch, number))
            was = example["input_ids"]
            hidden = labels != NONE
            assert (labels[hidden] == was[hidden]).all() and (ids[~hidden] == was[~hidden]).all()
            assert (example["units"][hidden] >= 0).all()
            assert not set(ids[hidden].tolist()) & (tokenizer.special_ids - {tokenizer.mask_id})
            seen, chosen = seen + int((example["units"] >= 0).sum()), chosen + int(hidden.sum())
            kinds["mask"] += int((ids[hidden] == tokenizer.mask_id).sum())
            kinds["same"] += int((ids[hidden] == was[hidden]).sum())
    # Choosing without replacement varies less than independent draws do, and whole words more, by their length.
    spread = (seen * 0.15 * 0.85) ** 0.5 * (3 if whole else 1)
    assert abs(chosen - 0.15 * seen) < 3 * spread
    for share, kind in ((0.8, "mask"), (0.1, "same")):
        slack = chosen / len(objective.ordinary) if kind == "same" else 0  # a random token may be the same one
        assert abs(kinds[kind] - share * chosen) < 3 * (chosen * share * (1 - share)) ** 0.5 + slack, kind


def test_every_position_is_chosen_alike() -> None:
    objective = masked(with_mask("bpe"))
    (example,) = objective.encode({"text": TEXTS[0]}).examples
    found = np.stack([objective.hide(example, generator(0, epoch, 7))[1] != NONE for epoch in range(3000)])
    counts = found.sum(0)[example["units"] >= 0]
    assert stats.chisquare(counts).pvalue > 1e-3
    pairs = np.corrcoef(found[:, example["units"] >= 0].T) - np.eye(len(counts))
    assert np.abs(pairs).max() < 5 / 3000**0.5 + 0.15 / len(counts) * 2


def test_replacements_are_any_ordinary_token() -> None:
    tokenizer = with_mask("bpe")
    objective = masked(tokenizer)
    units = np.arange(4000, dtype=np.int32)
    example = {"input_ids": np.full(4000, tokenizer.token_to_id("a")), "units": units}
    found: Counter[int] = Counter()
    for epoch in range(200):
        ids, labels = objective.hide(example, generator(0, epoch, 0))
        found.update(ids[(labels != NONE) & (ids != tokenizer.mask_id)].tolist())
    del found[tokenizer.token_to_id("a")]
    others = sorted(set(objective.ordinary.tolist()) - {tokenizer.token_to_id("a")})
    assert stats.chisquare([found[i] for i in others]).pvalue > 1e-3


def test_an_epoch_is_a_function_of_its_numbers() -> None:
    objective = masked(with_mask("bpe"))
    examples = examples_of(objective, ROWS[:6])
    first, again, later = (batch_of(objective, examples, epoch=epoch) for epoch in (0, 0, 1))
    assert torch.equal(first.inputs["input_ids"], again.inputs["input_ids"])
    assert torch.equal(first.targets["places"], again.targets["places"])
    assert not torch.equal(first.inputs["input_ids"], later.inputs["input_ids"])
    # A text is masked in the same way whatever is in the batch with it.
    alone = batch_of(objective, examples[3:4], first=3)
    assert (
        alone.inputs["input_ids"][0].tolist() == first.inputs["input_ids"][3, : len(examples[3]["input_ids"])].tolist()
    )


@pytest.mark.parametrize("name", ["wordpiece", "bpe", "unigram"])
def test_whole_words(name: str) -> None:
    """Words as people see them, whatever the tokens; tokens of a word are hidden together or not at all."""
    tokenizer = with_mask(name)
    objective = masked(tokenizer, loss=dict(whole_words=True))
    text = "Hello tokenization wordings naïve, zyxwvutq 1,000 don't"
    (example,) = objective.encode({"text": text}).examples
    row = tokenizer.encode(text, max_length=None)
    units = example["units"]
    places = [np.flatnonzero(units == unit) for unit in range(units.max() + 1)]
    said = ["".join(text[start:end] for start, end in (row.offsets[i] for i in own)).strip() for own in places]
    assert {"Hello", "tokenization", "wordings", "naïve", "zyxwvutq"} <= set(said)
    assert (np.bincount(units[units >= 0]) > 1).any()
    for epoch in range(50):
        _, labels = objective.hide(example, generator(0, epoch, 0))
        hidden = set(units[labels != NONE].tolist())
        assert (labels[np.isin(units, list(hidden))] != NONE).all()


def test_special_tokens_in_a_text_are_never_hidden() -> None:
    tokenizer = with_mask("bpe")
    objective = masked(tokenizer)
    (example,) = objective.encode({"text": "hello <mask> world<|end|>"}).examples
    special = np.isin(example["input_ids"], list(tokenizer.special_ids))
    assert special.sum() == 2 and (example["units"][special] == -1).all()


def test_short_texts_teach_too() -> None:
    draw = generator(0, 0, 0)
    assert all(
        some(np.array([-1, 0, -1], dtype=np.int32), 0.15, draw).tolist() == [False, True, False] for _ in range(20)
    )
    assert not some(np.array([-1, -1], dtype=np.int32), 0.15, draw).any()
    part = np.array([7, 8, 8, 9, -1], dtype=np.int32)  # of a longer text
    assert {tuple(some(part, 0.15, draw).tolist()) for _ in range(50)} == {
        (True, False, False, False, False),
        (False, True, True, False, False),
        (False, False, False, True, False),
    }
    with pytest.raises(Dropped, match="without tokens"):
        masked(with_mask("bpe")).encode({"text": "<mask>"})


def test_no_mask_token_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no mask token"):
        masked(byte_level())


def test_long_texts() -> None:
    text = {"text": " ".join(TEXTS[:3])}
    whole = masked(minilm(), data=dict(max_length=1000)).encode(text).examples[0]["input_ids"]
    cut = masked(minilm(), data=dict(max_length=20, too_long="cut")).encode(text)
    assert len(cut.examples[0]["input_ids"]) == 20 and cut.cut == len(whole) - 20
    assert cut.examples[0]["input_ids"][-1] == minilm().sep_id
    windows = masked(minilm(), data=dict(max_length=20)).encode(text)
    joined = [token for one in windows.examples for token in one["input_ids"][1:-1].tolist()]
    assert joined == whole[1:-1].tolist() and windows.cut == 0
    with pytest.raises(Dropped, match="longer than max_length"):
        masked(minilm(), data=dict(max_length=20, too_long="drop")).encode(text)


def test_loss_is_the_references(bert) -> None:
    ours, theirs = bert
    objective = masked(with_mask("bpe"), ours.config)
    batch = batch_of(objective, examples_of(objective, ROWS[:5]))
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    labels = torch.full(ids.shape, -100).flatten()
    labels[batch.targets["places"]] = batch.targets["labels"]
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels.view(ids.shape)).loss
    close(objective.loss(ours, batch).total / batch.count, expected, "loss", rel=1e-6)


def test_any_batching_gives_one_gradient(bert) -> None:
    objective = masked(with_mask("bpe"), bert[0].config, loss=dict(whole_words=True))
    check_batching(bert[0], objective, examples_of(objective, ROWS[:8]))


def test_shown() -> None:
    objective = masked(minilm())
    shown = objective.shown(objective.encode(ROWS[0]).examples[0])
    assert shown[0] == ("[CLS]", "") and any(label for _, label in shown)
    assert any(token == "[MASK]" and label not in ("", "[MASK]") for token, label in shown)
