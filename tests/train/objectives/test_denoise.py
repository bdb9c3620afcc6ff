"""Denoising: lengths by hand, spans drawn as the papers say, and the text rebuilt from what was made of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from plainformer.errors import CheckpointError, UsageError
from plainformer.inputs.text.tokenizer import Tokenizer
from plainformer.train.draws import generator
from plainformer.train.objectives.base import Dropped
from plainformer.train.objectives.denoise import (
    Denoising,
    corrupted,
    corruption,
    infilling,
    random_spans,
    raw_length,
)
from tests.support import models
from tests.support.close import close
from tests.support.parity import load_ours
from tests.support.sentencepiece import corpus
from tests.support.tokenizers import byte_level, unigram
from tests.support.training import batch_of, check_batching, examples_of, fresh, small_t5, train_config

ROWS = [{"text": text} for text in corpus()[:12]]
MASK = 1000
SENTINELS = list(range(2099, 1999, -1))  # <extra_id_0> has the highest id


@lru_cache
def bart_like() -> Tokenizer:
    made = byte_level.__wrapped__()
    made.backend.add_special_tokens(["<mask>"])
    return Tokenizer(made.backend, special_tokens={**made.special_tokens, "mask_token": "<mask>"})


def denoising(tokenizer: Tokenizer, config=None, **sections) -> Denoising:
    config = config or models.make("t5", vocab_size=900).config
    return Denoising(train_config("denoising", **sections), config, tokenizer)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory):
    return small_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory):
    ids = dict(pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0, forced_eos_token_id=None)
    config = transformers.BartConfig(
        **models.SEQ2SEQ, **ids, vocab_size=bart_like().vocab_size, max_position_embeddings=64, dropout=0.0
    )
    theirs = models.reference("BartForConditionalGeneration", config)
    return fresh(load_ours(theirs, tmp_path_factory.mktemp("bart"))).eval(), theirs


# ---- arithmetic ---------------------------------------------------------------------------------------------------


def test_lengths_of_t5() -> None:
    """T5's: 512 tokens to read, its end included, are 568 of text; 85 of them in 28 spans are hidden (15 %, mean 3)."""
    assert raw_length(511, 0.15, 3.0) == 568
    assert corrupted(568, 0.15, 3.0) == (85, 28)
    source, target = corruption(np.arange(568), random_spans(568, np.full(28, 3), generator(0)), SENTINELS)
    assert len(source) == 568 - 84 + 28 and len(target) == 84 + 29


@given(st.integers(2, 400), st.floats(0.01, 0.99), st.floats(1, 10))
@settings(deadline=None)
def test_something_is_hidden_and_something_read(length: int, share: float, mean: float) -> None:
    hidden, count = corrupted(length, share, mean)
    assert 1 <= count <= hidden < length and count <= length - hidden + 1


@given(st.integers(0, 10_000), st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(0, 60))
@settings(deadline=None)
def test_spans_do_not_overlap(seed: int, sizes: list[int], left: int) -> None:
    spans = random_spans(sum(sizes) + left, np.array(sizes), generator(seed))
    assert [stop - start for start, stop in spans] == sizes
    edges = [place for span in spans for place in span]
    assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= sum(sizes) + left
    if left >= len(sizes) - 1:
        assert all(spans[i][1] < spans[i + 1][0] for i in range(len(spans) - 1))


def test_every_arrangement_is_as_likely() -> None:
    """Three spans of one token in six: 4 arrangements with a gap between neighbours, and no other."""
    found: dict[tuple, int] = {}
    for seed in range(4000):
        spans = tuple(random_spans(6, np.array([1, 1, 1]), generator(seed)))
        found[spans] = found.get(spans, 0) + 1
    assert len(found) == 4 and min(found.values()) > 850


# ---- the text comes back ------------------------------------------------------------------------------------------


def rebuilt(source: list[int], target: list[int]) -> list[int]:
    """The text of T5's two halves."""
    hidden: dict[int, list[int]] = {}
    current = -1
    for token in target:
        if token in SENTINELS:
            current = token
            hidden[current] = []
        else:
            hidden[current].append(token)
    text: list[int] = []
    for token in source:
        text += hidden.pop(token) if token in SENTINELS else [token]
    assert list(hidden.values()) == [[]]  # the last sentinel
    return text


class Plainly(Denoising):
    """What is hidden of ids, without a model or a tokenizer."""

    def __init__(self, share: float, mean: float) -> None:
        self.sentinels, self.share, self.mean = SENTINELS, share, mean
        self.before = self.after = np.zeros(0, dtype=np.int64)


@given(st.integers(0, 10_000), st.integers(2, 300), st.floats(0.02, 0.8), st.floats(1, 6))
@settings(deadline=None)
def test_corruption_can_be_undone(seed: int, length: int, share: float, mean: float) -> None:
    ids = np.random.default_rng(seed).integers(0, 900, length)
    mean = max(mean, corrupted(length, share, 1.0)[0] / 90)  # as many spans as there are sentinels
    source, target = Plainly(share, mean).hide(ids, generator(seed))
    assert rebuilt(source.tolist(), target.tolist()) == ids.tolist()
    used = [token for token in source.tolist() if token in SENTINELS]
    assert used == SENTINELS[: len(used)]
    hidden, count = corrupted(length, share, mean)
    assert len(used) == count and len(source) == length - hidden + count and len(target) == hidden + count + 1


@given(st.integers(0, 10_000), st.integers(1, 120), st.floats(0.02, 0.98), st.floats(1, 6))
@settings(deadline=None)
def test_infilling_can_be_undone(seed: int, length: int, share: float, mean: float) -> None:
    """What was not hidden is in the text, in order, with what the masks stand for between; and 30 % are 30 %."""
    read = infilling(np.arange(length), share, mean, MASK, generator(seed)).tolist()
    text, missing, gap = [], 0, False
    for token in [*read, length]:
        if token == MASK:
            gap = True
            continue
        missing += token - len(text)
        assert token == len(text) or gap  # nothing is missing without a mask
        text += range(len(text), token + 1)  # what the masks before it stand for, and itself
        gap = False
    assert text == list(range(length + 1)) and missing == length - sum(token != MASK for token in read)
    kept = sum(token != MASK for token in read)
    assert abs((length - kept) - share * length) < 1 or length - kept == 1
    assert len(read) <= length and MASK in read


def test_spans_of_infilling_are_poissons() -> None:
    """Lengths of what is hidden, empty spans included, are Poisson(3), but for the last, which is shortened."""
    counts = np.zeros(16)
    for seed in range(400):
        ids = np.arange(400)
        read = infilling(ids, 0.3, 3.0, MASK, generator(seed))
        kept = [-1, *[int(token) for token in read if token != MASK], 400]
        lengths = np.diff(kept) - 1
        lengths = lengths[lengths > 0]
        counts += np.bincount(lengths, minlength=16)[:16]
        counts[0] += (read == MASK).sum() - len(lengths)
    expected = np.exp(-3) * np.cumprod([1, *(3 / k for k in range(1, 16))])
    assert np.abs(counts / counts.sum() - expected).max() < 0.015


# ---- the objective ------------------------------------------------------------------------------------------------


def test_the_tokenizer_says_which() -> None:
    sentinels = denoising(unigram()).sentinels
    assert len(sentinels) == 100 and sentinels[0] == unigram().token_to_id("<extra_id_0>")
    assert denoising(unigram()).share == 0.15 and denoising(bart_like()).share == 0.3
    assert denoising(bart_like(), loss=dict(mask_share=0.2)).share == 0.2
    with pytest.raises(CheckpointError, match="neither sentinels"):
        denoising(byte_level())


def test_tokens_that_the_model_lacks_are_said_first() -> None:
    with pytest.raises(CheckpointError, match=r"'<extra_id_0>' has the id \d+, and the model 61 tokens"):
        denoising(unigram(), models.make("t5").config)
    with pytest.raises(CheckpointError, match=r"'<mask>' has the id \d+, and the model 61 tokens"):
        denoising(bart_like(), models.make("t5").config)


@pytest.mark.parametrize("tokenizer", [unigram, bart_like])
def test_windows_have_every_token_and_fit(tokenizer) -> None:
    text = " ".join(row["text"] for row in ROWS)
    ids = tokenizer().encode(text, add_special_tokens=False, max_length=None).input_ids
    objective = denoising(tokenizer(), data=dict(max_length=24))
    encoded = objective.encode({"text": text})
    joined = [token for one in encoded.examples for token in one["input_ids"].tolist()]
    assert len(encoded.examples) > 2 and joined == ids[: len(joined)] and len(ids) - len(joined) == encoded.cut <= 1
    for epoch in range(5):
        batch = batch_of(objective, encoded.examples, epoch=epoch)
        assert batch.inputs["input_ids"].size(1) <= 24
        if tokenizer is unigram:
            assert batch.inputs["input_ids"].size(1) == 24  # not a token less than can be read
    cut = denoising(tokenizer(), data=dict(max_length=24, too_long="cut")).encode({"text": text})
    assert len(cut.examples) == 1 and cut.cut == len(ids) - len(cut.examples[0]["input_ids"])
    with pytest.raises(Dropped, match="longer than max_length"):
        denoising(tokenizer(), data=dict(max_length=24, too_long="drop")).encode({"text": text})


def test_what_cannot_be_hidden() -> None:
    for text, why in (("a", "fewer than two"), ("x <extra_id_3> y", "sentinel tokens")):
        with pytest.raises(Dropped, match=why):
            denoising(unigram() if "extra" in text else bart_like()).encode({"text": text})
    with pytest.raises(UsageError, match="has 100 sentinels"):
        denoising(unigram(), data=dict(max_length=4000))


@pytest.mark.parametrize("tokenizer", [unigram, bart_like])
def test_an_epoch_is_a_function_of_its_numbers(tokenizer) -> None:
    objective = denoising(tokenizer())
    examples = examples_of(objective, ROWS)
    first, again, later = (batch_of(objective, examples, epoch=epoch) for epoch in (0, 0, 1))
    assert torch.equal(first.inputs["input_ids"], again.inputs["input_ids"])
    assert not torch.equal(first.inputs["input_ids"], later.inputs["input_ids"])
    alone = batch_of(objective, examples[3:4], first=3)
    size = alone.inputs["input_ids"].size(1)
    assert torch.equal(alone.inputs["input_ids"][0], first.inputs["input_ids"][3, :size])


def check_loss(model, theirs, objective: Denoising) -> None:
    examples = examples_of(objective, ROWS[:5])
    batch = batch_of(objective, examples)
    # Labels for the reference, from the decoder's input: what it reads next, and the end.
    pairs = [objective.hide(one["input_ids"], generator(0, 0, n)) for n, one in enumerate(examples)]
    labels = torch.full_like(batch.inputs["decoder_input_ids"], -100)
    for row, (_, target) in zip(labels, pairs, strict=True):
        row[: len(target)] = torch.from_numpy(target)
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    loss = objective.loss(model, batch)
    close(loss.total / batch.count, theirs(**inputs, labels=labels).loss, "loss", rel=1e-6)
    assert batch.count == sum(len(target) for _, target in pairs)


def test_loss_is_the_references(t5, bart) -> None:
    for (model, theirs), tokenizer in ((t5, unigram()), (bart, bart_like())):
        check_loss(model, theirs, denoising(tokenizer, model.config))


def test_any_batching_gives_one_gradient(t5, bart) -> None:
    for (model, _), tokenizer in ((t5, unigram()), (bart, bart_like())):
        objective = denoising(tokenizer, model.config, data=dict(max_length=30))
        check_batching(model, objective, examples_of(objective, ROWS[:8]))


def test_shown(t5) -> None:
    objective = denoising(unigram(), t5[0].config)
    shown = objective.shown(objective.encode(ROWS[0]).examples[0])
    written = [label for _, label in shown if label]
    assert written[0] == "<extra_id_0>" and written[-1] == "</s>"
    assert ("<pad>", "<extra_id_0>") in shown
