"""Random rows and logits: the same numbers as the reference library's classes give, bit for bit in fp32."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.generation.logits_process as reference
from torch import Tensor
from transformers import PreTrainedConfig, WatermarkingConfig
from transformers import WatermarkDetector as TheirDetector

from plainformer.generation.processors.context import Processor
from plainformer.generation.processors.control import (
    AllowedTokens,
    ExponentialDecay,
    ForcedBos,
    ForcedEos,
    MinLength,
    MinNewTokens,
    RemoveInvalid,
    Renormalize,
    Suppress,
    SuppressFirst,
)
from plainformer.generation.processors.penalties import (
    BadWords,
    EncoderNoRepeatNgram,
    EncoderRepetitionPenalty,
    NoRepeatNgram,
    RepetitionPenalty,
    SequenceBias,
)
from plainformer.generation.processors.sampling import Epsilon, Eta, MinP, Temperature, TopH, TopK, TopP, Typical
from plainformer.generation.processors.timestamps import WhisperTimestamps
from plainformer.generation.processors.watermark import Watermark, WatermarkDetector
from tests.support.rows import context, random_ids, random_logits

SEEDS = range(12)
PAIRS: dict[str, tuple[Processor, Callable[[], Any]]] = {
    "temperature": (Temperature(0.7), lambda: reference.TemperatureLogitsWarper(0.7)),
    "top_k": (TopK(5, 2), lambda: reference.TopKLogitsWarper(5, min_tokens_to_keep=2)),
    "top_k_of_all": (TopK(500), lambda: reference.TopKLogitsWarper(500)),
    "top_p": (TopP(0.8), lambda: reference.TopPLogitsWarper(0.8)),
    "top_p_of_five": (TopP(0.1, 5), lambda: reference.TopPLogitsWarper(0.1, min_tokens_to_keep=5)),
    "top_p_of_none": (TopP(0.0), lambda: reference.TopPLogitsWarper(0.0)),
    "top_p_of_all": (TopP(1.0), lambda: reference.TopPLogitsWarper(1.0)),
    "min_p": (MinP(0.1), lambda: reference.MinPLogitsWarper(0.1)),
    "min_p_of_five": (MinP(0.5, 5), lambda: reference.MinPLogitsWarper(0.5, min_tokens_to_keep=5)),
    "typical": (Typical(0.7), lambda: reference.TypicalLogitsWarper(0.7)),
    "typical_of_five": (Typical(0.2, 5), lambda: reference.TypicalLogitsWarper(0.2, min_tokens_to_keep=5)),
    "epsilon": (Epsilon(0.01), lambda: reference.EpsilonLogitsWarper(0.01)),
    "epsilon_of_five": (Epsilon(0.2, 5), lambda: reference.EpsilonLogitsWarper(0.2, min_tokens_to_keep=5)),
    "eta": (Eta(0.05), lambda: reference.EtaLogitsWarper(0.05)),
    "eta_of_five": (Eta(0.5, 5), lambda: reference.EtaLogitsWarper(0.5, min_tokens_to_keep=5)),
    "top_h": (TopH(0.4), lambda: reference.TopHLogitsWarper(0.4)),
    "repetition": (RepetitionPenalty(1.3), lambda: reference.RepetitionPenaltyLogitsProcessor(1.3)),
    "repetition_of_new": (
        RepetitionPenalty(0.8, scope="new"),
        lambda: reference.RepetitionPenaltyLogitsProcessor(0.8, prompt_ignore_length=6),
    ),
    "ngram_1": (NoRepeatNgram(1), lambda: reference.NoRepeatNGramLogitsProcessor(1)),
    "ngram_2": (NoRepeatNgram(2), lambda: reference.NoRepeatNGramLogitsProcessor(2)),
    "ngram_3": (NoRepeatNgram(3), lambda: reference.NoRepeatNGramLogitsProcessor(3)),
    "ngram_of_more": (NoRepeatNgram(50), lambda: reference.NoRepeatNGramLogitsProcessor(50)),
    "bad_words": (
        BadWords([[3], [1, 2], [2, 4], [0, 5, 1]], [3]),
        lambda: reference.NoBadWordsLogitsProcessor([[3], [1, 2], [2, 4], [0, 5, 1]], 3),
    ),
    "sequence_bias": (
        SequenceBias([([3], 1.5), ([1, 3], -0.3), ([2, 3], 0.7), ([4, 2, 3], 0.1), ([1], 0.01)]),
        lambda: reference.SequenceBiasLogitsProcessor(
            [[[3], 1.5], [[1, 3], -0.3], [[2, 3], 0.7], [[4, 2, 3], 0.1], [[1], 0.01]]
        ),
    ),
    "allowed": (
        AllowedTokens(lambda row: [row[-1], 7]),
        lambda: reference.PrefixConstrainedLogitsProcessor(lambda batch, row: [int(row[-1]), 7], 1),
    ),
    "allowed_beams": (
        AllowedTokens(lambda row: [row[-1]], rows_per_prompt=2),
        lambda: reference.PrefixConstrainedLogitsProcessor(lambda batch, row: [int(row[-1])], 2),
    ),
    "min_length": (MinLength(21, [2, 9]), lambda: reference.MinLengthLogitsProcessor(21, [2, 9])),
    "min_new": (MinNewTokens(15, [2]), lambda: reference.MinNewTokensLengthLogitsProcessor(6, 15, 2)),
    "forced_eos": (ForcedEos([2, 5], max_length=21), lambda: reference.ForcedEOSTokenLogitsProcessor(21, [2, 5])),
    "forced_bos": (ForcedBos(4), lambda: reference.ForcedBOSTokenLogitsProcessor(4)),
    "decay": (ExponentialDecay(3, 1.4, [2, 3]), lambda: reference.ExponentialDecayLengthPenalty((3, 1.4), [2, 3], 6)),
    "decay_downward": (ExponentialDecay(3, 0.9, [2]), lambda: reference.ExponentialDecayLengthPenalty((3, 0.9), 2, 6)),
    "suppress": (Suppress([1, 5, 7]), lambda: reference.SuppressTokensLogitsProcessor([1, 5, 7])),
    "suppress_first": (
        SuppressFirst([1, 5], step=14),
        lambda: reference.SuppressTokensAtBeginLogitsProcessor([1, 5], 20),
    ),
    "suppress_other": (SuppressFirst([1]), lambda: reference.SuppressTokensAtBeginLogitsProcessor([1], 6)),
    "remove_invalid": (RemoveInvalid(), reference.InfNanRemoveLogitsProcessor),
    "renormalize": (Renormalize(), reference.LogitNormalization),
}


@pytest.mark.parametrize("banned", [0.0, 0.5])
@pytest.mark.parametrize("name", PAIRS)
def test_same_numbers(name: str, banned: float) -> None:
    ours, make = PAIRS[name]
    theirs = make()
    for seed in SEEDS:
        ids, logits = random_ids(seed), random_logits(seed, banned=banned)
        expected = theirs(ids, logits.clone())
        assert torch.equal(ours(logits, context(ids, prompt=6)), expected), seed


def test_top_h_of_a_larger_vocabulary() -> None:
    for seed in SEEDS:
        logits = random_logits(seed, vocabulary=1000) / 2
        expected = reference.TopHLogitsWarper(0.9)(None, logits)
        assert torch.equal(TopH(0.9)(logits, context(random_ids(seed))), expected)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_encoder_rows(size: int) -> None:
    for seed in SEEDS:
        ids, source, logits = random_ids(seed), random_ids(seed + 100), random_logits(seed, vocabulary=8)
        rows = context(ids, prompt=1, encoder=source)
        theirs = reference.EncoderNoRepeatNGramLogitsProcessor(size, source)
        assert torch.equal(EncoderNoRepeatNgram(size)(logits, rows), theirs(ids, logits))
        penalty = reference.EncoderRepetitionPenaltyLogitsProcessor(1.3, source)
        assert torch.equal(EncoderRepetitionPenalty(1.3)(logits, rows), penalty(ids, logits))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_decoders_prompt_is_its_source(size: int) -> None:
    for seed in SEEDS:
        ids, logits = random_ids(seed), random_logits(seed, vocabulary=8)
        theirs = reference.EncoderNoRepeatNGramLogitsProcessor(size, ids[:, :9])
        assert torch.equal(EncoderNoRepeatNgram(size)(logits, context(ids, prompt=9)), theirs(ids, logits))


def whisper_rows(seed: int, length: int) -> Tensor:
    """Texts with timestamps 40 and up, often in pairs; 39 is <|notimestamps|>, 30 the end."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(8, length, generator=generator)
    text = torch.randint(0, 30, (8, length), generator=generator)
    time = 40 + torch.randint(0, 20, (8, length), generator=generator).sort(-1).values
    return torch.where(draws < 0.5, time, text)


@pytest.mark.parametrize("first", [None, 0, 7])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 7])
def test_whisper_timestamps(length: int, first: int | None) -> None:
    config = SimpleNamespace(
        no_timestamps_token_id=39, eos_token_id=30, bos_token_id=30, max_initial_timestamp_index=first
    )
    theirs = reference.WhisperTimeStampLogitsProcessor(config, begin_index=3)
    ours, skipping = WhisperTimestamps(39, 30, first), WhisperTimestamps(39, 30, first, skip=2)
    for seed in SEEDS:
        ids = torch.cat((torch.tensor([[31, 32, 33]] * 8), whisper_rows(seed, length)), dim=1)
        logits = random_logits(seed, rows=8, vocabulary=60)
        expected = theirs(ids, logits)
        assert torch.equal(ours(logits, context(ids, prompt=3)), expected), seed
        assert torch.equal(skipping(logits, context(ids, prompt=1)), expected), seed


WATERMARKS = [
    dict(),
    dict(greenlist_ratio=0.5, bias=1.0, hashing_key=1234567),
    dict(context_width=3),
    dict(seeding_scheme="selfhash"),
    dict(seeding_scheme="selfhash", context_width=4, greenlist_ratio=0.4, bias=2.5),
]


@pytest.mark.parametrize("options", WATERMARKS)
def test_watermark(options: dict[str, Any]) -> None:
    theirs = reference.WatermarkLogitsProcessor(vocab_size=200, device="cpu", **options)
    ours = Watermark(200, **options)
    for seed in range(3):
        ids, logits = random_ids(seed, vocabulary=200), random_logits(seed, vocabulary=200, banned=0.2)
        assert torch.equal(ours(logits, context(ids)), theirs(ids, logits)), seed


@pytest.mark.parametrize("options", WATERMARKS)
@pytest.mark.parametrize("once", [False, True])
def test_watermark_detector(options: dict[str, Any], once: bool) -> None:
    config = PreTrainedConfig(vocab_size=50, bos_token_id=1)
    config.vocab_size = 50
    theirs = TheirDetector(config, "cpu", WatermarkingConfig(**options), ignore_repeated_ngrams=once)
    ours = WatermarkDetector(Watermark(50, **options), ignore_repeated_ngrams=once, bos_id=1)
    ids = random_ids(5, rows=2, length=30, vocabulary=50)
    ids[:, 0] = 1
    expected = theirs(ids, return_dict=True)
    for row, result in enumerate(ours.detect(row) for row in ids):
        assert result.tokens_scored == expected.num_tokens_scored[row]
        assert result.green_tokens == expected.num_green_tokens[row]
        assert result.green_fraction == pytest.approx(expected.green_fraction[row], rel=1e-12)
        assert result.z_score == pytest.approx(expected.z_score[row], rel=1e-12)
        assert result.p_value == pytest.approx(expected.p_value[row], rel=1e-12)
        assert result.confidence == pytest.approx(expected.confidence[row], rel=1e-12)
        assert result.watermarked == expected.prediction[row]
