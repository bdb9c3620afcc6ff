"""What the reference library has not: each against a small formula of its own; and what happens at the edges."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch

from plainformer.errors import UsageError
from plainformer.generation.processors.context import Context
from plainformer.generation.processors.control import (
    AllowedTokens,
    ExponentialDecay,
    Forced,
    MinNewTokens,
    Suppress,
    SuppressFirst,
)
from plainformer.generation.processors.penalties import (
    BadWords,
    Dry,
    FrequencyPenalty,
    NoRepeatNgram,
    PresencePenalty,
    RepetitionPenalty,
)
from plainformer.generation.processors.sampling import MinP, Mirostat, TopK, TopNSigma, TopP, Typical, Xtc
from plainformer.generation.processors.watermark import Watermark, WatermarkDetector
from tests.support.rows import INF, banned, context, kept, random_ids, random_logits, steps, uniform

SEEDS = range(20)


def longest_repetitions(row: list[int], breakers: set[int]) -> dict[int, int]:
    """Token → the most tokens at the row's end that stand before it elsewhere in the row."""
    found: dict[int, int] = {}
    for length in range(1, len(row)):
        end = row[-length:]
        if breakers & set(end):
            break
        for start in range(len(row) - length):
            token = row[start + length]
            if row[start : start + length] == end and token not in breakers:
                found[token] = length
    return found


@pytest.mark.parametrize("breakers", [set(), {1}, {0, 4}])
@pytest.mark.parametrize("penalty_range", [None, 1, 2, 9])
@pytest.mark.parametrize("allowed_length", [1, 2, 4])
def test_dry(breakers: set[int], penalty_range: int | None, allowed_length: int) -> None:
    process = Dry(0.9, 1.6, allowed_length, breakers, penalty_range)
    for seed in SEEDS:
        ids, logits = random_ids(seed, vocabulary=2 + seed % 5), random_logits(seed)
        expected = logits.clone()
        for row, tokens in zip(expected, ids.tolist(), strict=True):
            for token, length in longest_repetitions(tokens[-(penalty_range or 99) :], breakers).items():
                if length >= allowed_length:
                    row[token] -= 0.9 * 1.6 ** (length - allowed_length)
        torch.testing.assert_close(process(logits, context(ids)), expected)


def test_dry_of_one_token_repeated() -> None:
    ids = torch.full((1, 5000), 3)
    assert Dry().match_lengths(ids[0, :9].tolist()) == {3: 8}
    result = Dry(base=2.0)(torch.zeros(1, 5), context(ids))
    assert result.isfinite().all() and result[0, 3] < -1e37 and result[0, :3].tolist() == [0, 0, 0]
    assert Dry(multiplier=2.0, base=1.0)(torch.zeros(1, 5), context(ids))[0, 3] == -2
    assert Dry()(torch.zeros(1, 5, dtype=torch.float16), context(ids)).isfinite().all()


def test_presence_and_frequency() -> None:
    rows = context([[7, 7, 1, 2, 1], [7, 5, 3, 3, 3]], prompt=2)
    logits = torch.zeros(2, 6)
    assert PresencePenalty(0.5)(logits, rows).tolist() == [[0, -0.5, -0.5, 0, 0, 0], [0, 0, 0, -0.5, 0, 0]]
    assert FrequencyPenalty(0.5)(logits, rows).tolist() == [[0, -1, -0.5, 0, 0, 0], [0, 0, 0, -1.5, 0, 0]]
    assert FrequencyPenalty(-2)(logits, rows)[0].tolist() == [0, 4, 2, 0, 0, 0]
    assert torch.equal(PresencePenalty(1)(logits, steps(0)), logits)


@pytest.mark.parametrize("n", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("part", [0.0, 0.5])
def test_top_n_sigma(n: float, part: float) -> None:
    for seed in SEEDS:
        logits = random_logits(seed, banned=part)
        expected = []
        for row in logits.tolist():
            allowed = [x for x in row if x > -INF]
            bound = max(allowed) - n * (statistics.stdev(allowed) if len(allowed) > 1 else 0)
            expected.append([token for token, x in enumerate(row) if x >= bound])
        assert kept(TopNSigma(n)(logits, steps(0, 4))) == expected
        assert kept(TopNSigma(n)(logits / 3, steps(0, 4))) == expected  # a temperature changes nothing


def test_top_n_sigma_of_one_token_left() -> None:
    assert kept(TopNSigma()(torch.tensor([[-INF, 2.0, -INF]]), steps(0, 1))) == [[1]]


def without_top_choices(p: list[float], threshold: float) -> list[int]:
    above = sorted((token for token, x in enumerate(p) if x >= threshold), key=lambda token: (p[token], -token))
    return [token for token in range(len(p)) if token not in above[1:]]


@pytest.mark.parametrize("threshold", [0.0, 0.03, 0.1, 0.3, 0.6])
def test_xtc(threshold: float) -> None:
    process = Xtc(threshold, probability=1.0)
    for seed in SEEDS:
        logits = random_logits(seed)
        expected = [without_top_choices(p, threshold) for p in logits.softmax(-1).tolist()]
        assert kept(process(logits, steps(0, 4))) == expected


def test_xtc_of_equal_tokens() -> None:
    logits = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.4, 0.2, 0.2, 0.2], [0.9, 0.05, 0.05, 0.0]]).log()
    assert kept(Xtc(0.1, 1.0)(logits, steps(0, 3))) == [[3], [3], [0, 1, 2]]


def test_xtc_leaves_a_row_whose_protected_token_would_go() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.2, 0.5]]).log()
    assert kept(Xtc(0.1, 1.0, [0])(logits, steps(0, 3))) == [[0, 1, 2], [0], [0, 1, 2]]


def test_xtc_draws() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(3, 1)
    process = Xtc(0.1, 0.3, seed=5)
    acted = [kept(process(logits, steps(step, 3))) == [[2]] * 3 for step in range(2000)]
    assert acted == [process.draw(step) < 0.3 for step in range(2000)]
    assert abs(statistics.mean(acted) - 0.3) < 0.04
    assert acted == [kept(Xtc(0.1, 0.3, seed=5)(logits[:1], steps(step, 1))) == [[2]] for step in range(2000)]
    others = [Xtc(0.1, 0.3, seed=6).draw(step) < 0.3 for step in range(2000)]
    assert abs(statistics.mean(a == b for a, b in zip(acted, others, strict=True)) - 0.58) < 0.05
    assert kept(Xtc(0.1, 0.0)(logits, steps(1, 3))) == [[0, 1, 2]] * 3


@pytest.mark.parametrize("surprise_of", ["model", "kept"])
def test_mirostat(surprise_of: str) -> None:
    tau, eta = 2.5, 0.6
    process = Mirostat(tau, eta, surprise_of)  # type: ignore[arg-type]
    draws, row, mu = random.Random(3), [4, 4], 2 * tau
    for step in range(25):
        logits = random_logits(step, 1)
        result = process(logits, context([row], prompt=2))
        p = logits[0].double().softmax(-1).tolist()
        expected = [token for token, x in enumerate(p) if -math.log2(x) <= mu] or [p.index(max(p))]
        assert kept(result) == [expected], step
        picked = draws.choice(expected)
        total = sum(p) if surprise_of == "model" else sum(p[token] for token in expected)
        mu -= eta * (-math.log2(p[picked] / total) - tau)
        row = [*row, picked]


def test_mirostat_keeps_the_likeliest_and_starts_anew() -> None:
    process = Mirostat(0.01)
    assert kept(process(uniform(1, 5) + torch.tensor([0, 0, 0.1, 0, 0]), context([[1]]))) == [[2]]
    process = Mirostat(1.0, 1.0)
    logits = torch.tensor([[0.6, 0.2, 0.15, 0.05]]).log()
    first = process(logits, context([[1]]))
    process(logits, context([[1, 0]], prompt=1))
    assert kept(process(logits, context([[1, 0]], prompt=2))) == kept(first)  # a prompt that a row had come to
    assert kept(process(logits, context([[8, 8, 8]], prompt=1))) == kept(first)  # a row whose step before is not known


def test_mirostat_learns_nothing_from_a_banned_token() -> None:
    process = Mirostat(1.0, 1.0)
    logits = torch.tensor([[0.5, 0.5, 0.0]]).log()
    process(logits, context([[1]]))
    assert kept(process(logits, context([[1, 2]], prompt=1))) == [[0, 1]]


def test_mirostat_reaches_its_aim() -> None:
    process, generator = Mirostat(3.0, 0.1), torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 1000, generator=generator)
    row, surprises = [0], []
    for _ in range(400):
        p = process(logits, context([row], prompt=1)).softmax(-1)
        row = [*row, int(p[0].multinomial(1, generator=generator))]
        surprises.append(-float(logits.log_softmax(-1)[0, row[-1]]) / math.log(2))
    assert abs(statistics.mean(surprises[100:]) - 3.0) < 0.2


def test_of_equally_likely_tokens_lower_ids_stay() -> None:
    equal = uniform(1, 8)
    assert kept(TopP(0.5)(equal, steps(0, 1))) == [[0, 1, 2, 3]]
    assert kept(TopP(0.0)(equal, steps(0, 1))) == [[int(equal.argmax())]]
    assert kept(TopK(3)(equal, steps(0, 1))) == kept(MinP(1.0)(equal, steps(0, 1))) == [list(range(8))]
    assert kept(Typical(0.5)(equal, steps(0, 1))) == [list(range(8))]


def test_forced() -> None:
    process = Forced([(1, 5), (2, None), (3, 0)])
    expected = {1: [[5]] * 2, 2: [list(range(6))] * 2, 3: [[0]] * 2, 4: [list(range(6))] * 2, 9: [list(range(6))] * 2}
    for length, tokens in expected.items():
        result = process(uniform(2, 6), context(torch.zeros(2, length, dtype=torch.long)))
        assert kept(result) == tokens
    assert process(uniform(2, 6), context([[1], [1]]))[:, 5].tolist() == [0, 0]
    assert process == Forced({3: 0, 1: 5})
    assert torch.equal(Forced({})(uniform(2, 6), steps(0)), uniform(2, 6))


def test_suppress() -> None:
    assert banned(Suppress([3, 1])(uniform(2, 5), steps(4))) == [[1, 3]] * 2
    assert [banned(SuppressFirst([2], 1)(uniform(1, 4), steps(step, 1))) for step in range(3)] == [[[]], [[2]], [[]]]
    with pytest.raises(UsageError, match="every token"):
        Suppress(range(4))(uniform(1, 4), steps(0, 1))


def test_an_end_that_the_head_cannot_pick_is_no_error() -> None:
    assert banned(MinNewTokens(1, [2, 99])(uniform(1, 4), steps(0, 1))) == [[2]]
    assert torch.equal(MinNewTokens(1, [99])(uniform(1, 4), steps(0, 1)), uniform(1, 4))


def test_tokens_of_a_row_that_the_head_cannot_pick() -> None:
    rows = context([[7, 2, 8, 7]], prompt=1)
    assert RepetitionPenalty(2.0)(torch.ones(1, 4), rows).tolist() == [[1, 1, 0.5, 1]]
    assert banned(NoRepeatNgram(1)(torch.ones(1, 4), rows)) == [[2]]
    assert FrequencyPenalty(1)(torch.ones(1, 4), rows).tolist() == [[1, 1, 0, 1]]
    assert torch.equal(Dry(allowed_length=1)(torch.ones(1, 4), context([[7, 8, 7]])), torch.ones(1, 4))


def test_allowed_tokens_of_beams() -> None:
    logits = torch.tensor([[-INF, 1.0], [2.0, 1.0], [-INF, 1.0], [-INF, 1.0]])
    rows = context([[0]] * 4)
    both = AllowedTokens(lambda row: [0], rows_per_prompt=2)(logits, rows)
    assert both.tolist() == [[-INF, -INF], [2.0, -INF], [0.0, -INF], [0.0, -INF]]
    assert AllowedTokens(lambda row: [0])(logits, rows)[0].tolist() == [0.0, -INF]
    assert AllowedTokens(lambda row: torch.tensor([1]))(logits, rows)[0].tolist() == [-INF, 1.0]


def test_decay_that_grows_beyond_all_numbers() -> None:
    result = ExponentialDecay(0, 10.0, [1, 2])(torch.tensor([[1.0, -3.0, 0.0]]), steps(500, 1))
    assert result.isfinite().all() and result[0, 1] > 1e37 and result[0, 2] == 0


def test_bad_words_that_ban_all() -> None:
    assert banned(BadWords([[0], [1]])(uniform(1, 2), steps(0, 1))) == [[0, 1]]


def test_watermarked_text_is_detected_and_other_text_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 64, generator=generator)
    for watermark in (Watermark(64, bias=4.0), Watermark(64, bias=4.0, seeding_scheme="selfhash", context_width=2)):
        row = [1, 2]
        for _ in range(60):
            marked = watermark(logits, context([row]))
            row = [*row, int(marked.softmax(-1)[0].multinomial(1, generator=generator))]
        other = torch.randint(0, 64, (60,), generator=generator)
        result = WatermarkDetector(watermark).detect(row[2:])
        assert result.watermarked and result.p_value < 1e-3 and result.confidence > 0.999
        assert not WatermarkDetector(watermark).detect(other).watermarked
        assert set(result.to_dict()) >= {"tokens_scored", "z_score", "confidence", "watermarked"}


def test_watermark_of_short_rows_and_of_a_padded_head() -> None:
    assert torch.equal(Watermark(8, context_width=3)(uniform(1, 8), context([[1, 2]])), uniform(1, 8))
    assert torch.equal(Watermark(8)(uniform(1, 12), context([[1, 2]]))[:, 8:], uniform(1, 12)[:, 8:])


def test_half_precision_stays_so() -> None:
    ids = random_ids(0)
    for process in (TopP(0.8), TopNSigma(), Mirostat(), FrequencyPenalty(1.0), Dry(), Xtc(0.1, 1.0)):
        result = process(random_logits(0).bfloat16(), Context(ids, 5))
        assert result.dtype == torch.bfloat16 and (result > -INF).any(-1).all()
