"""Whisper's temperature fallback: decode a window again where the text is bad (Radford et al. 2022, section 4.5).

A text that repeats itself, or that the model finds unlikely, is dropped and sampled at the next temperature of a list;
a window that the model takes for silence has no text. Thresholds and formulas as in transformers 5.23
(`generation_whisper.py`), whose compression ratio is of token ids, not of characters as in OpenAI's own code.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plainformer.config.values import check_number, is_whole, no_effect
from plainformer.errors import UsageError, opt
from plainformer.generation.options import GenerationOptions
from plainformer.generation.sessions.session import Session

THRESHOLDS = ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold")
LOW_TEMPERATURE = 0.5  # text sampled at more is not a prompt for the next window: openai/whisper, transcribe.py


@dataclass(frozen=True)
class Attempt:
    """Options of `generate` for one attempt, and their temperature; 0 without sampling."""

    temperature: float
    options: GenerationOptions


@dataclass(frozen=True)
class Attempted:
    """The result of an attempt.

    Attributes:
        ids: new tokens, the end token included. reason: why it ended. temperature: of the attempt.
        log_probabilities: of each token, if asked for. mean: their mean at temperature 1; 0 without thresholds.
    """

    ids: tuple[int, ...]
    reason: str
    temperature: float
    log_probabilities: tuple[float, ...] | None = None
    mean: float = 0.0


@dataclass(frozen=True)
class Thresholds:
    """When a text is bad; None is never.

    Attributes:
        compression_ratio: bytes of the ids over those bytes zipped; above it, the text repeats itself.
        logprob: mean log-probability of a token; below it, the text is unlikely.
        no_speech: probability of <|nospeech|>; above it an unlikely text is silence, and left out.
    """

    compression_ratio: float | None = None
    logprob: float | None = None
    no_speech: float | None = None

    def __post_init__(self) -> None:
        for name, value in zip(THRESHOLDS, (self.compression_ratio, self.logprob, self.no_speech), strict=True):
            if value is not None:  # a checkpoint's may be anything
                check_number(name, value, fix="usual ones: 1.35, -1.0, 0.6")
        idle, fix = self.no_speech is not None and self.logprob is None, f"give {opt('logprob_threshold', -1.0)}"
        no_effect(idle, "no_speech_threshold", f"without {opt('logprob_threshold')}", fix)

    def any(self) -> bool:
        """Whether there is one."""
        return any(value is not None for value in (self.compression_ratio, self.logprob, self.no_speech))

    def is_silence(self, written: Attempted, no_speech: float) -> bool:
        """Whether an unlikely text comes from a silent window."""
        return self.no_speech is not None and self._is_unlikely(written) and no_speech > self.no_speech

    def is_bad(self, written: Attempted, no_speech: float, vocab_size: int) -> bool:
        """Whether to decode the window again."""
        most = self.compression_ratio
        repeats = most is not None and compression_ratio(written.ids, vocab_size) > most
        return (repeats or self._is_unlikely(written)) and not self.is_silence(written, no_speech)

    def _is_unlikely(self, written: Attempted) -> bool:
        return self.logprob is not None and written.mean < self.logprob


def compression_ratio(ids: Sequence[int], vocab_size: int) -> float:
    """Return bytes of the ids over those bytes compressed by zlib; an id has as many as the vocabulary needs."""
    width = int(math.log2(vocab_size) / 8) + 1
    content = b"".join(i.to_bytes(width, "little") for i in ids)
    return len(content) / len(zlib.compress(content))


def seed_of(seed: int, window: int, attempt: int) -> int:
    """Return an independent seed for each window and attempt."""
    if not is_whole(seed):
        raise UsageError(f"{opt('seed', seed)} is not an int", "give one int, or a list of one for each clip")
    return random.Random(f"{seed}/{window}/{attempt}").getrandbits(63)


class LogProbabilities:
    """Record the log-probabilities of picked tokens at temperature 1."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.steps: list[Tensor] = []

    def processed(self, name: str, before_RV: Tensor, after_RV: Tensor) -> None:
        """Ignore processors."""

    def picked(self, logits_RV: Tensor, picked_R: Tensor, draws_R: Tensor | None, session: Session) -> None:
        """Record a step."""
        log_p_RV = (logits_RV.float() * self.temperature).log_softmax(-1)
        self.steps.append(log_p_RV.gather(-1, picked_R[:, None])[:, 0])

    def of_row(self, row: int, count: int) -> list[float]:
        """Return those of a row's first `count` tokens."""
        values: list[float] = torch.stack(self.steps[:count])[:, row].tolist()
        return values
