"""The cases of the reference library's own tests (tests/generation/test_logits_process.py), with the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plainformer.errors import UsageError
from plainformer.generation.processors.context import Context
from plainformer.generation.processors.control import (
    AllowedTokens,
    ExponentialDecay,
    ForcedBos,
    ForcedEos,
    MinLength,
    MinNewTokens,
    RemoveInvalid,
    Renormalize,
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
from plainformer.generation.processors.watermark import Watermark
from tests.support.rows import INF, banned, context, kept, ramps, random_ids, steps, uniform

NOTHING = steps(0)


def test_min_length() -> None:
    process = MinLength(10, [0])
    assert banned(process(uniform(4, 20), context(random_ids(0, 4, 5)))) == [[0]] * 4
    assert banned(process(uniform(4, 20), context(random_ids(0, 4, 15)))) == [[]] * 4


@pytest.mark.parametrize("ends", [[0], [0, 18]])
def test_min_new_tokens(ends: list[int]) -> None:
    process = MinNewTokens(3, ends)
    for count in (0, 1, 2):
        assert banned(process(uniform(4, 20), steps(count, 4, prompt=5))) == [ends] * 4
    for count in (3, 10):
        assert banned(process(uniform(4, 20), steps(count, 4, prompt=5))) == [[]] * 4


def test_temperature() -> None:
    logits = uniform(2, 20)
    logits[1, 5], logits[1, 10] = 1 / 20 + 0.1, 1 / 20 - 0.4
    before = logits.softmax(-1)
    sharp = Temperature(0.5)(logits, NOTHING).softmax(-1)
    smooth = Temperature(1.3)(logits, NOTHING).softmax(-1)
    torch.testing.assert_close(sharp[0], before[0])
    torch.testing.assert_close(smooth[0], before[0])
    assert sharp[1].max() > before[1].max() > smooth[1].max()
    assert sharp[1].min() < before[1].min() < smooth[1].min()


def penalised() -> Tensor:
    logits = uniform(2, 10)
    logits[0, 0], logits[1, 5] = -1 / 10, 4 / 10
    return logits


def check_four(result: Tensor, first: float, others: float) -> None:
    """Tokens 0, 1 of the first row and 5, 0 of the second changed; nothing else did."""
    expected = penalised()
    expected[0, 0] *= first
    for row, token in ((0, 1), (1, 0), (1, 5)):
        expected[row, token] *= others
    torch.testing.assert_close(result, expected)


def test_repetition_penalty() -> None:
    check_four(RepetitionPenalty(2.0)(penalised(), context([[0, 1], [5, 0]])), 2, 1 / 2)


def test_repetition_penalty_of_new_tokens() -> None:
    process = RepetitionPenalty(2.0, scope="new")
    assert torch.equal(process(penalised(), context([[0, 1], [5, 0]])), penalised())
    check_four(process(penalised(), context([[0, 1, 0, 1], [5, 0, 5, 0]], prompt=2)), 2, 1 / 2)


def test_encoder_repetition_penalty() -> None:
    rows = context([[3], [3]], encoder=[[0, 1], [5, 0]])
    check_four(EncoderRepetitionPenalty(2.0)(penalised(), rows), 1 / 2, 2)
    check_four(EncoderRepetitionPenalty(2.0)(penalised(), context([[0, 1, 7], [5, 0, 7]], prompt=2)), 1 / 2, 2)


def test_top_k() -> None:
    ramp = torch.arange(10.0).repeat(2, 1)
    ramp[1, :5] += 10
    assert kept(TopK(3)(ramp, NOTHING)) == [[7, 8, 9], [2, 3, 4]]
    raised = TopK(1, min_tokens_to_keep=3)
    assert kept(raised(uniform(2, 5), NOTHING)) == [[0, 1, 2, 3, 4]] * 2  # all are as likely as the third
    assert kept(raised(torch.arange(5.0).repeat(2, 1), NOTHING)) == [[2, 3, 4]] * 2


def test_top_p() -> None:
    logits = torch.tensor([[0.3, 0.1, 0.1, 0.5], [0.15, 0.3, 0.3, 0.25]]).log()
    assert kept(TopP(0.8)(logits, NOTHING)) == [[0, 3], [1, 2, 3]]
    assert [len(row) for row in kept(TopP(0.9, 2)(ramps(), NOTHING))] == [3, 2]


@pytest.mark.parametrize(
    ("share", "p", "expected"),
    [
        (0.3, [0.97, 0.01, 0.01, 0.01], [0]),
        (0.7, [0.4, 0.3, 0.2, 0.1], [0, 1]),
        (1.0, [0.25, 0.25, 0.25, 0.25], [0, 1, 2, 3]),
        (0.4, [0.75, 0.25, 0.0, 0.0], [0]),
    ],
)
def test_top_h(share: float, p: list[float], expected: list[int]) -> None:
    assert kept(TopH(share)(torch.tensor([p]).log(), NOTHING)) == [expected]


def test_min_p() -> None:
    logits = torch.tensor([[0.9, 0.0274, 0.047, 0.0274], [0.15, 0.3, 0.3, 0.25], [0.97, 0.01, 0.01, 0.01]]).log()
    assert kept(MinP(0.05)(logits, NOTHING)) == [[0, 2], [0, 1, 2, 3], [0]]
    assert [len(row) for row in kept(MinP(0.9, 2)(ramps(), NOTHING))] == [2, 2]


def test_typical() -> None:
    logits = torch.tensor([[0.97, 0.01, 0.01, 0.01], [0.4, 0.2, 0.2, 0.2]]).log()
    assert kept(Typical(0.5)(logits, NOTHING)) == [[0], [1, 2, 3]]
    assert kept(Typical(0.5, 3)(uniform(2, 5), NOTHING)) == [[0, 1, 2, 3, 4]] * 2
    assert [len(row) for row in kept(Typical(0.7, 2)(ramps(), NOTHING))] == [2, 2]


def test_epsilon() -> None:
    logits = torch.tensor([[0.87, 0.099, 0.001, 0.03], [0.4, 0.299, 0.101, 0.2]]).log()
    assert kept(Epsilon(0.1)(logits, NOTHING)) == [[0], [0, 1, 2, 3]]
    assert [len(row) for row in kept(Epsilon(5e-2, 2)(ramps(), NOTHING))] == [3, 2]


def test_eta() -> None:
    logits = torch.tensor([[0.0, 0.1, 0.8, 0.1], [0.01, 0.04, 0.9, 0.05]]).log()
    assert kept(Eta(0.0625)(logits, NOTHING)) == [[1, 2, 3], [2]]
    assert [len(row) for row in kept(Eta(0.1, 2)(ramps(), NOTHING))] == [2, 2]


def test_no_repeat_ngram() -> None:
    rows = context([[1, 1, 2, 1], [0, 1, 0, 1]])
    assert banned(NoRepeatNgram(2)(uniform(2, 3), rows)) == [[1, 2], [0]]
    assert banned(NoRepeatNgram(3)(uniform(2, 3), rows)) == [[], [0]]


def test_no_repeat_ngram_where_a_banned_token_comes_again() -> None:
    rows = context([[1, 2, 5, 7, 8, 5, 1, 2]])  # (1, 2, 5) bans 5, and the later (7, 8, 5) does not take that back
    assert banned(NoRepeatNgram(3)(uniform(1, 10), rows)) == [[5]]


def test_no_repeat_ngram_longer_than_the_row() -> None:
    assert banned(NoRepeatNgram(3)(uniform(2, 3), context([[1, 2], [0, 1]]))) == [[], []]


def test_encoder_no_repeat_ngram() -> None:
    rows = context([[1, 2, 1], [8, 0, 2]], encoder=[[1, 2, 1, 1]] * 2)
    assert banned(EncoderNoRepeatNgram(2)(uniform(2, 3), rows)) == [[1, 2], [1]]
    assert banned(EncoderNoRepeatNgram(3)(uniform(2, 3), rows)) == [[1], []]
    encoder = [[1, 2, 1, 1]] * 2 + [[0, 0, 2, 1]] * 2
    rows = context([[1, 2, 1], [1, 0, 2], [0, 0, 0], [0, 2, 2]], encoder=encoder)
    assert banned(EncoderNoRepeatNgram(2)(uniform(4, 3), rows)) == [[1, 2], [1], [0, 2], [1]]
    assert banned(EncoderNoRepeatNgram(3)(uniform(4, 3), rows)) == [[1], [], [2], []]


def test_bad_words() -> None:
    rows = context([[0, 1, 3, 1], [0, 1, 0, 1]])
    words = [[1], [4], [1, 0], [0, 1, 2], [1, 3, 1, 3]]
    assert banned(BadWords(words, [4])(uniform(2, 5), rows)) == [[0, 1, 3], [0, 1, 2]]
    assert torch.equal(BadWords([[4]], [4])(uniform(2, 5), rows), uniform(2, 5))


def test_sequence_bias() -> None:
    rows = context([[0, 1, 3, 1], [0, 1, 0, 1]])
    biases = {(1,): 100.0, (4,): 100.0, (1, 0): -100.0, (0, 1, 2): -100.0}
    biases |= {(1, 3, 1, 3): -100.0, (1, 3, 1, 3, 1, 3): -100.0}
    result = SequenceBias(biases)(torch.zeros(2, 5), rows)
    assert result.tolist() == [[-100, 100, 0, -100, 100], [-100, 100, -100, 0, 100]]


def test_a_list_of_processors() -> None:
    rows = context(random_ids(3, 4, 10, 15))
    logits = uniform(4, 15)
    processors = [
        MinLength(10, [0]),
        Temperature(0.5),
        RepetitionPenalty(2.0),
        TopK(3),
        TopP(0.8),
        NoRepeatNgram(2),
        BadWords([[1]], [0]),
    ]
    for process in processors:
        logits = process(logits, rows)
    assert logits.shape == (4, 15) and torch.equal(rows.ids, random_ids(3, 4, 10, 15))


def test_allowed_tokens() -> None:
    rows = context([[0, 1, 3, 1], [0, 1, 0, 1]])
    process = AllowedTokens(lambda row: [0, 1] if row[2] == 3 else [2, 3])
    assert kept(process(uniform(2, 5), rows)) == [[0, 1], [2, 3]]
    with pytest.raises(UsageError, match="allowed"):
        AllowedTokens(lambda row: [])(uniform(2, 5), rows)


def test_forced_bos() -> None:
    result = ForcedBos(0)(uniform(4, 20), steps(0, 4, prompt=1))
    assert kept(result) == [[0]] * 4 and result[:, 0].tolist() == [0] * 4
    assert torch.equal(ForcedBos(0)(uniform(4, 20), steps(3, 4, prompt=1)), uniform(4, 20))


def test_forced_eos() -> None:
    for process in (ForcedEos([0], max_length=5), ForcedEos([0], max_new_tokens=4)):
        result = process(uniform(4, 20), steps(3, 4, prompt=1))
        assert kept(result) == [[0]] * 4 and result[:, 0].tolist() == [0] * 4
        assert torch.equal(process(uniform(4, 20), steps(2, 4, prompt=1)), uniform(4, 20))


def test_remove_invalid() -> None:
    logits = torch.tensor([[0.0, 0.7, 0.8, float("nan")], [0.1, INF, 0.3, -INF]])
    top = torch.finfo(torch.float).max
    expected = torch.tensor([[0.0, 0.7, 0.8, 0.0], [0.1, top, 0.3, -top]])
    assert torch.equal(RemoveInvalid()(logits, NOTHING), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_exponential_decay(sign: int) -> None:
    logits, process = sign * uniform(4, 20), ExponentialDecay(5, 1.1, [0])
    assert torch.equal(process(logits, steps(0, 4, prompt=2)), logits)
    after = process(logits, steps(18, 4, prompt=2))
    assert (after[:, 0] > logits[:, 0]).all() and torch.equal(after[:, 1:], logits[:, 1:])


def test_renormalize() -> None:
    logits = torch.tensor([[-23.18, -29.96, -43.54, 47.77], [-33.58, -26.87, -32.96, 22.51]])
    torch.testing.assert_close(Renormalize()(logits, NOTHING).exp(), logits.softmax(-1))


def test_watermark() -> None:
    with pytest.raises(UsageError, match="seeding_scheme='hash' is unknown"):
        Watermark(20, seeding_scheme="hash")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"greenlist_ratio=1\.2 is not a number in"):
        Watermark(20, greenlist_ratio=1.2)
    ids = random_ids(0, 3, 5, 20)
    ids[:, -1] = 10
    result = Watermark(20)(uniform(3, 20), context(ids))
    assert result[:, 1].tolist() == pytest.approx([1 / 20 + 2.0] * 3)


ROWS = Context(random_ids(1, 3, 9), 4)
EVERY = [
    AllowedTokens(lambda row: [1, 2]),
    MinLength(20, [0]),
    MinLength(2, [0]),
    MinNewTokens(9, [0]),
    MinNewTokens(1, [0]),
    ForcedBos(3),
    ForcedEos([3], max_length=10),
    ForcedEos([3], max_new_tokens=6),
    ForcedEos([3], max_new_tokens=9),
    ExponentialDecay(2, 1.5, [3]),
    ExponentialDecay(20, 1.5, [3]),
    RemoveInvalid(),
    Renormalize(),
    Temperature(2.0),
    TopK(3),
    NoRepeatNgram(2),
    BadWords([[1]]),
]


@pytest.mark.parametrize("process", EVERY, ids=lambda process: process.name)
def test_the_argument_is_never_written_to_nor_returned(process: TopK) -> None:
    logits = torch.randn(3, 12)
    before, ids = logits.clone(), ROWS.ids.clone()
    result = process(logits, ROWS)
    result += 1
    assert torch.equal(logits, before) and torch.equal(ROWS.ids, ids)
