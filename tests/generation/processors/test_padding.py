"""A row alone gets the same logits as in any batch: padding on the left, other rows, and their order change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plainformer.generation.processors.context import Context, Processor
from plainformer.generation.processors.control import (
    AllowedTokens,
    ExponentialDecay,
    Forced,
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
    Dry,
    EncoderNoRepeatNgram,
    EncoderRepetitionPenalty,
    FrequencyPenalty,
    NoRepeatNgram,
    PresencePenalty,
    RepetitionPenalty,
    SequenceBias,
)
from plainformer.generation.processors.sampling import (
    Epsilon,
    Eta,
    MinP,
    Mirostat,
    Temperature,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Xtc,
)
from plainformer.generation.processors.timestamps import WhisperTimestamps
from plainformer.generation.processors.watermark import Watermark
from tests.support.rows import random_logits

VOCABULARY = 12
PROCESSORS: list[Processor] = [
    AllowedTokens(lambda row: [len(row), row[0]]),
    ExponentialDecay(0, 1.5, [3]),
    Forced({2: 5, 6: 7}),
    ForcedBos(3),
    ForcedEos([3], max_length=6),
    ForcedEos([3], max_new_tokens=2),
    MinLength(6, [0, 3]),
    MinNewTokens(2, [3]),
    RemoveInvalid(),
    Renormalize(),
    Suppress([0, 2]),
    SuppressFirst([0]),
    SuppressFirst([0], step=2),
    BadWords([[2], [0, 1], [1, 1, 3], [0, 0, 0]]),
    Dry(allowed_length=1),
    Dry(sequence_breakers=[1], penalty_range=5),
    EncoderNoRepeatNgram(1),
    EncoderNoRepeatNgram(2),
    EncoderRepetitionPenalty(1.5),
    FrequencyPenalty(0.7),
    PresencePenalty(0.7),
    NoRepeatNgram(1),
    NoRepeatNgram(2),
    NoRepeatNgram(3),
    RepetitionPenalty(1.5),
    RepetitionPenalty(1.5, scope="new"),
    SequenceBias({(2,): 1.0, (0, 1): -2.0, (0, 0, 1): 3.0}),
    Epsilon(0.05),
    Eta(0.1),
    MinP(0.1),
    Temperature(0.5),
    TopH(0.5),
    TopK(3),
    TopNSigma(1.0),
    TopP(0.7),
    Typical(0.5),
    Xtc(0.05, 0.6, seed=4),
    WhisperTimestamps(7, 4, 1),
    Watermark(VOCABULARY, context_width=2),
    Watermark(VOCABULARY, seeding_scheme="selfhash", context_width=3),
]


def tokens(seed: int, length: int) -> Tensor:
    return torch.randint(0, 4, (length,), generator=torch.Generator().manual_seed(seed))


def batch(seed: int, new: int, source: bool) -> tuple[list[Context], Context]:
    """Rows of 1 to 6 prompt tokens, alone; and together, padded with a real token's id, 0, and then with others."""
    lengths = [1, 2, 6, 4]
    rows = [tokens(10 * seed + i, length + new) for i, length in enumerate(lengths)]
    sources = [tokens(999 * seed + i, length) for i, length in enumerate(lengths)]
    alone = [
        Context(row[None], length, encoder_ids=src[None] if source else None)
        for row, length, src in zip(rows, lengths, sources, strict=True)
    ]
    ids, real = torch.randint(0, 3, (4, 8 + new)), torch.zeros(4, 8 + new, dtype=torch.bool)
    encoder, encoder_real = torch.zeros(4, 7, dtype=torch.long), torch.zeros(4, 7, dtype=torch.bool)
    for i, (row, src) in enumerate(zip(rows, sources, strict=True)):
        ids[i, -len(row) :], real[i, -len(row) :] = row, True
        encoder[i, : len(src)], encoder_real[i, : len(src)] = src, True
    whole = Context(ids, 8, real, encoder if source else None, encoder_real if source else None)
    return alone, whole


@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("process", PROCESSORS, ids=lambda process: process.name)
def test_alone_and_in_a_batch(process: Processor, source: bool) -> None:
    for seed in range(6):
        for new in (0, 1, 2, 4):
            alone, whole = batch(seed, new, source)
            logits = random_logits(seed, 4, VOCABULARY)
            before = logits.clone()
            together = process(logits, whole)
            assert together is not logits and torch.equal(logits, before)
            for row, rows in enumerate(alone):
                assert torch.equal(process(logits[row : row + 1], rows)[0], together[row]), (seed, new, row)


def test_a_row_that_has_ended_has_no_new_tokens() -> None:
    real = torch.tensor([[True, True, True], [True, False, False]])
    rows = Context(torch.tensor([[5, 1, 2], [5, 1, 1]]), 1, real)
    logits = torch.ones(2, 6)
    assert FrequencyPenalty(1.0)(logits, rows).tolist() == [[1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    assert RepetitionPenalty(2.0)(logits, rows)[1].tolist() == [1, 1, 1, 1, 1, 0.5]


@pytest.mark.parametrize("surprise_of", ["model", "kept"])
def test_mirostat_alone_and_in_a_batch_that_is_reordered(surprise_of: str) -> None:
    def logits_of(row: list[int]) -> Tensor:
        return random_logits(sum(t * 7**i for i, t in enumerate(row)) % 100003, 1, VOCABULARY)

    def run(row: list[int], count: int) -> list[Tensor]:
        process, prompt, outputs = Mirostat(2.0, 0.8, surprise_of), len(row), []  # type: ignore[arg-type]
        for _ in range(count):
            outputs.append(process(logits_of(row), Context(torch.tensor([row]), prompt)))
            row = [*row, int(outputs[-1].argmax())]
        return outputs

    prompts = [[1], [2, 3, 4], [5, 6], [9, 9]]
    expected = {tuple(row): run(row, 6) for row in prompts}
    process, order = Mirostat(2.0, 0.8, surprise_of), [0, 1, 2, 3]  # type: ignore[arg-type]
    rows = {i: list(row) for i, row in enumerate(prompts)}
    for step in range(6):
        width = 3 + step
        ids, real = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.bool)
        for place, i in enumerate(order):
            ids[place, width - len(rows[i]) :] = torch.tensor(rows[i])
            real[place, width - len(rows[i]) :] = True
        logits = torch.cat([logits_of(rows[i]) for i in order])
        result = process(logits, Context(ids, 3, real))
        again = process(logits, Context(ids, 3, real))
        assert torch.equal(result, again)
        for place, i in enumerate(order):
            assert torch.equal(result[place], expected[tuple(prompts[i])][step][0])
            rows[i] = [*rows[i], int(result[place].argmax())]
        order = order[1:] + order[:1]
