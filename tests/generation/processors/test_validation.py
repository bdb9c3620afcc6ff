"""What cannot work is refused when it is made, or at the latest when it meets the vocabulary; and the message says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from plainformer.errors import InputError, UsageError
from plainformer.generation.processors.context import Processor
from plainformer.generation.processors.control import (
    AllowedTokens,
    ExponentialDecay,
    Forced,
    ForcedBos,
    ForcedEos,
    MinLength,
    MinNewTokens,
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
from plainformer.generation.processors.watermark import Watermark, WatermarkDetector
from tests.support.rows import steps, uniform

NAN, INF = float("nan"), float("inf")
WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    *((Temperature, dict(temperature=value), "temperature=") for value in (0, -1, 0.0, NAN, INF, "1", None, True)),
    *((TopK, dict(top_k=value), "top_k=") for value in (0, -1, 1.5, "3", True)),
    (TopK, dict(top_k=1, min_tokens_to_keep=0), "min_tokens_to_keep=0"),
    *((TopP, dict(top_p=value), r"top_p=.*\[0, 1\]") for value in (-0.1, 1.1, NAN, "0.5")),
    *((MinP, dict(min_p=value), "min_p=") for value in (-0.1, 1.1)),
    *((Typical, dict(mass=value), r"mass=.*\(0, 1\)") for value in (0, 1)),
    *((Epsilon, dict(epsilon=value), "epsilon=") for value in (0, 1)),
    *((Eta, dict(epsilon=value), "epsilon=") for value in (0, 1)),
    *(
        (made, {**given, "min_tokens_to_keep": 0}, "min_tokens_to_keep")
        for made, given in (
            (TopP, dict(top_p=0.5)),
            (MinP, dict(min_p=0.5)),
            (Typical, dict()),
            (Epsilon, dict(epsilon=0.1)),
            (Eta, dict(epsilon=0.1)),
        )
    ),
    (TopH, dict(top_h=0), "top_h=0"),
    (TopNSigma, dict(n=0), "n=0"),
    (Xtc, dict(threshold=2), "threshold=2"),
    (Xtc, dict(probability=-1), "probability=-1"),
    (Xtc, dict(seed=1.5), "seed=1.5"),
    (Xtc, dict(protected_ids=3), "protected_ids=3 is not a list"),
    (Mirostat, dict(tau=0), "tau=0"),
    (Mirostat, dict(eta=-1), "eta=-1"),
    (Mirostat, dict(surprise_of="all"), "surprise_of='all' is unknown"),
    *((RepetitionPenalty, dict(penalty=value), "penalty=") for value in (0, -2.0, "a")),
    (RepetitionPenalty, dict(penalty=2, scope="old"), "scope='old' is unknown"),
    (EncoderRepetitionPenalty, dict(penalty=0), "penalty=0"),
    (PresencePenalty, dict(penalty=INF), "penalty=inf"),
    (FrequencyPenalty, dict(penalty=None), "penalty=None"),
    (NoRepeatNgram, dict(size=0), "size=0"),
    (EncoderNoRepeatNgram, dict(size=1.0), "size=1.0"),
    (Dry, dict(multiplier=0), "multiplier=0"),
    (Dry, dict(base=0.9), "base=0.9"),
    (Dry, dict(allowed_length=0), "allowed_length=0"),
    (Dry, dict(penalty_range=0), "penalty_range=0"),
    (Dry, dict(sequence_breakers=["\n"]), "sequence_breakers="),
    (SequenceBias, dict(biases={}), "biases={} holds no pair"),
    (SequenceBias, dict(biases=5), "biases=5 holds no pair"),
    (SequenceBias, dict(biases=[[1, 2, 3]]), "holds no pair"),
    (SequenceBias, dict(biases={(): 1.0}), "biases is empty"),
    (SequenceBias, dict(biases={(-1,): 1.0}), r"biases=\(-1,\)"),
    (SequenceBias, dict(biases={(1,): "a"}), "bias='a'"),
    (SequenceBias, dict(biases={(1,): -INF}), "use BadWords"),
    (SequenceBias, dict(biases=[([1], 1.0), ([1], 2.0)]), "twice"),
    (BadWords, dict(words=[]), "words="),
    (BadWords, dict(words=5), "words=5"),
    (BadWords, dict(words=[5]), "words=5 is not a list"),
    (BadWords, dict(words=[[]]), "words is empty"),
    (BadWords, dict(words="ab"), "words='a'"),
    (AllowedTokens, dict(allowed=[1]), "is not callable"),
    (AllowedTokens, dict(allowed=list, rows_per_prompt=0), "rows_per_prompt=0"),
    (MinLength, dict(min_length=-1, eos_ids=[1]), "min_length=-1"),
    (MinLength, dict(min_length=1, eos_ids=1), r"eos_ids=1 is not a list of token ids\n.*eos_ids=\[...\]"),
    (MinLength, dict(min_length=1, eos_ids=[]), "eos_ids is empty"),
    (MinNewTokens, dict(min_new_tokens="3", eos_ids=[1]), "min_new_tokens='3'"),
    (MinNewTokens, dict(min_new_tokens=3, eos_ids=[1.5]), "eos_ids="),
    (ForcedBos, dict(bos_id=-1), "bos_id=-1"),
    (ForcedEos, dict(eos_ids=[1]), "0 limits"),
    (ForcedEos, dict(eos_ids=[1], max_length=3, max_new_tokens=3), "2 limits"),
    (ForcedEos, dict(eos_ids=[1], max_length=0), "max_length=0"),
    (ForcedEos, dict(eos_ids=[-100], max_length=1), r"eos_ids=\[-100\]"),
    (Forced, dict(tokens=5), "tokens=5"),
    (Forced, dict(tokens=[5]), r"tokens=\[5\]"),
    (Forced, dict(tokens={-1: 5}), "position=-1"),
    (Forced, dict(tokens={1: -5}), "token=-5"),
    (Forced, dict(tokens=[(1, 2), (1, 3)]), "twice"),
    (Suppress, dict(ids=[]), "ids is empty"),
    (Suppress, dict(ids=[True]), "ids="),
    (SuppressFirst, dict(ids=[1], step=-1), "step=-1"),
    (ExponentialDecay, dict(start=-1, factor=1.1, eos_ids=[1]), "start=-1"),
    (ExponentialDecay, dict(start=1, factor=0, eos_ids=[1]), "factor=0"),
    (ExponentialDecay, dict(start=1, factor=1.1, eos_ids=[]), "eos_ids is empty"),
    (WhisperTimestamps, dict(no_timestamps_id=-1, eos_id=1), "no_timestamps_id=-1"),
    (WhisperTimestamps, dict(no_timestamps_id=1, eos_id=None), "eos_id=None"),
    (WhisperTimestamps, dict(no_timestamps_id=1, eos_id=1, skip=-1), "skip=-1"),
    (WhisperTimestamps, dict(no_timestamps_id=1, eos_id=1, max_initial_timestamp_index=-1), "max_initial"),
    (Watermark, dict(vocabulary=0), "vocabulary=0"),
    (Watermark, dict(vocabulary=5, greenlist_ratio=1.0), "greenlist_ratio=1.0"),
    (Watermark, dict(vocabulary=5, bias=NAN), "bias=nan"),
    (Watermark, dict(vocabulary=5, hashing_key=-3), "hashing_key=-3"),
    (Watermark, dict(vocabulary=5, seeding_scheme="hash"), "seeding_scheme='hash' is unknown"),
    (Watermark, dict(vocabulary=5, context_width=0), "context_width=0"),
]


@pytest.mark.parametrize(("made", "options", "message"), WRONG)
def test_refused_when_made(made: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        made(**options)
    assert caught.value.fix


OUTSIDE: list[Processor] = [
    Suppress([3, 9]),
    SuppressFirst([9]),
    SequenceBias({(9,): 1.0}),
    SequenceBias({(9, 1): 1.0}),
    BadWords([[9]]),
    ForcedBos(9),
    ForcedEos([9], max_length=2),
    Forced({1: 9}),
    AllowedTokens(lambda row: [9]),
    WhisperTimestamps(9, 5),
    Xtc(0.1, 1.0, protected_ids=[9]),
]


@pytest.mark.parametrize("process", OUTSIDE, ids=lambda process: process.name)
def test_ids_outside_the_vocabulary(process: Processor) -> None:
    with pytest.raises(UsageError, match=r"ids \[9\] are outside the vocabulary, 0 to 4"):
        process(uniform(2, 5), steps(0))


def test_a_function_that_allows_no_ids() -> None:
    for answer in ([], None, "ab", [-1], 3):
        with pytest.raises(UsageError, match=r"allowed\(row\)"):
            AllowedTokens(lambda row, answer=answer: answer)(uniform(2, 5), steps(0))  # type: ignore[misc]
    with pytest.raises(UsageError, match="rows_per_prompt=3 does not divide 2 rows"):
        AllowedTokens(lambda row: [1], rows_per_prompt=3)(uniform(2, 5), steps(0))


def test_watermark_of_another_vocabulary() -> None:
    with pytest.raises(UsageError, match="vocabulary=8 is more than the 5 logits"):
        Watermark(8)(uniform(2, 5), steps(0))


def test_a_text_too_short_to_detect_anything() -> None:
    detector = WatermarkDetector(Watermark(8, context_width=2), bos_id=1)
    for text in ([3], [3, 4], [1, 3, 4]):
        with pytest.raises(InputError, match="none to score"):
            detector.detect(text)
    with pytest.raises(UsageError, match="ids is empty"):
        detector.detect([])
    with pytest.raises(UsageError, match="ids="):
        detector.detect(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(UsageError, match="z_threshold"):
        detector.detect([1, 2, 3, 4], z_threshold=NAN)


def test_long_values_are_shortened_in_messages() -> None:
    with pytest.raises(UsageError, match=r"^ids=") as caught:
        Suppress([*range(100_000), -1])
    assert len(str(caught.value)) < 300
