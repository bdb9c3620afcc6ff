"""Options of the tasks that read recordings."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from plainformer.config.options import NotTyped, flag, number, opt, option, whole
from plainformer.config.values import check_number, no_effect, read_text
from plainformer.errors import UsageError, a_type
from plainformer.generation.options import SAMPLERS, SAMPLING, SHAPING
from plainformer.tasks.options import BATCH_SIZE, TextOptions
from plainformer.tasks.writing.options import WritingOptions

if TYPE_CHECKING:
    from plainformer.tasks.speech.ngram import NgramModel

Words = Sequence[str] | str | os.PathLike[str]
Ngrams: TypeAlias = "str | os.PathLike[str] | NgramModel"
BEAM_WIDTH = 50  # where words or n-grams are given


def _real(name: str, value: Any) -> None:
    """A number; infinity, too."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise UsageError(f"{opt(name, value)} is not a number", "give a number")


def _ngram(name: str, value: Any) -> None:
    if not isinstance(value, str | os.PathLike) and not hasattr(value, "score"):
        raise UsageError(f"{opt(name)} is {a_type(value)}", "give the path of an .arpa file")


def _words_of(path: str) -> str:
    """The word list's path, where it can be read; what its words are spelt with, the model says."""
    read_text(path, "the word list")
    return path


def _ngram_of(path: str) -> NgramModel:
    from plainformer.tasks.speech.ngram import NgramModel

    return NgramModel.read(path)


@dataclass(frozen=True, kw_only=True)
class AudioOptions(TextOptions):
    """Options of all tasks that read recordings. `truncate` keeps what a model of limited hearing can take."""

    batch_size: int = option(
        BATCH_SIZE, help="Recordings that run at once; 1 answers each as it is read.", check=whole(1)
    )
    sampling_rate: int | None = option(None, help="Of plain arrays, in hertz.", check=whole(1), typed=NotTyped)


@dataclass(frozen=True, kw_only=True)
class AudioFeatureExtractionOptions(AudioOptions):
    """Options of audio feature extraction."""

    normalize: bool = option(False, help="Vectors of length 1.", check=flag())


@dataclass(frozen=True, kw_only=True)
class CtcOptions(AudioOptions):
    """Options of speech recognition by CTC.

    beam_width: 1 takes the best alignment; more searches for the best text (`ctc_decoding`). Default: 1, or 50 where `words`
        or `ngram` are given.
    words: all words that may be written, a list or a text file with one per line.
    ngram: an .arpa (or .arpa.gz) file, or an `NgramModel`.
    word_bonus: default: 1.5, or 0 without n-grams.
    num_return_sequences: all but the best text are its `alternatives`.
    min_token_logprob, max_beam_gap: see `prefix_beam_search`.
    timestamps: True also says when each word was said (`segments`), by the likeliest alignment of the text.
    word_timestamps: the same, as `words`.
    """

    beam_width: int | None = option(None, help="Prefix beam search (CTC).", check=whole(1))
    words: Words | None = option(None, help="File of all words that may be written (CTC).", typed=str, read=_words_of)
    ngram: Ngrams | None = option(
        None, help="N-gram model of words, an .arpa file (CTC).", check=_ngram, typed=str, read=_ngram_of
    )
    ngram_weight: float | None = option(None, help="Factor of its logarithms; 0.5.", check=number())
    word_bonus: float | None = option(None, help="What each word adds to a text's score (CTC).", check=number())
    num_return_sequences: int = option(1, help="CTC: texts to return.", check=whole(1))
    min_token_logprob: float | None = option(None, help="Least log-probability of a token (CTC).", check=_real)
    max_beam_gap: float | None = option(None, help="Drop beams that score less than the best by more.", check=_real)
    timestamps: bool = option(False, help="Say when each part was said.", check=flag())
    word_timestamps: bool = option(False, help="Say when each word was said.", check=flag())

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("words", "ngram", "min_token_logprob", "max_beam_gap"):
            idle = self.width == 1 and getattr(self, name) is not None
            no_effect(idle, name, "on the best alignment", f"for example {opt('beam_width', BEAM_WIDTH)}")
        if self.num_return_sequences > self.width:
            what = f"{opt('num_return_sequences', self.num_return_sequences)} of {self.width} beams"
            raise UsageError(what, f"give a {opt('beam_width')} as large")
        no_effect(self.ngram is None and self.ngram_weight is not None, "ngram_weight", f"without {opt('ngram')}")
        free = self.words is None and self.ngram is None
        no_effect(free and self.word_bonus is not None, "word_bonus", f"without {opt('words')} or {opt('ngram')}")

    @property
    def width(self) -> int:
        """Beams of the search; 1 for the best alignment."""
        if self.beam_width is not None:
            return self.beam_width
        return 1 if self.words is None and self.ngram is None else BEAM_WIDTH


_OF_BEAMS = ("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "patience")


def _check_temperature(name: str, value: Any) -> None:
    """Refuse a list that is not one of temperatures; a single number is checked as generation checks it."""
    usual = f"usual: {opt(name, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))}"
    if isinstance(value, list | tuple):
        if not value:
            raise UsageError(f"{opt(name, value)} is an empty list", usual)
        for one in value:
            check_number(name, one, "[0, inf)", fix=usual)


def _no_effect(name: str, value: Any) -> None:
    no_effect(True, name, "in automatic-speech-recognition")


@dataclass(frozen=True, kw_only=True)
class SpeechOptions(AudioOptions, WritingOptions):
    """Options of speech recognition by an encoder-decoder.

    language: "en" or "english"; if not given, a multilingual model detects it in the first window.
    timestamps: True also says when each part was said (`segments`, without those of no words).
    word_timestamps: True also says when each word was said (`words`), by the heads of the model that follow the sound.
    condition_on_previous_text: True writes each window after the text before it; default: the checkpoint's
        `condition_on_prev_tokens`, else False.
    temperature: a list is of those to try, the next where a text is bad: 0.0 takes the likeliest tokens, more samples.
    compression_ratio_threshold, logprob_threshold, no_speech_threshold: when a text is bad, or nobody speaks
        (`fallback.Thresholds`); default: the checkpoint's, else never. Usual: 1.35, -1.0, 0.6.
    max_new_tokens: of a window; default: as many as the decoder has positions for.
    """

    language: str | None = option(
        None, help="Language spoken, such as en or english; detected if not given.", typed=str
    )
    task: str | None = option(None, help="transcribe, or translate into English.", flag="speech_task", typed=str)
    timestamps: bool = option(False, help="Say when each part was said.", check=flag())
    word_timestamps: bool = option(False, help="Say when each word was said.", check=flag())
    condition_on_previous_text: bool | None = option(None, help="Write a window after the text before.", check=flag())
    temperature: float | Sequence[float] | None = option(
        None, help="Sampling: below 1 sharpens the distribution, above 1 flattens it; a list is tried in turn.",
        check=_check_temperature, group=SHAPING, typed=float, modes=SAMPLING,
    )  # fmt: skip
    compression_ratio_threshold: float | None = option(None, help="Write again what repeats itself.", check=number())
    logprob_threshold: float | None = option(None, help="Write again what is less likely.", check=number())
    no_speech_threshold: float | None = option(None, help="Leave out unlikely texts of silence.", check=number())
    cache: None = option(None, help="Not taken.", check=_no_effect, typed=NotTyped)
    negative_ids: None = option(None, help="Not taken.", check=_no_effect, typed=NotTyped)

    @property
    def temperatures(self) -> list[float] | None:
        """The temperatures to try one after the other, None where `temperature` is not a list."""
        found = self.temperature
        return [float(one) for one in found] if isinstance(found, list | tuple) else None

    def validate(self) -> None:
        if self.temperatures is None:
            super().validate()
            return
        no_effect(self.do_sample, "do_sample", "on a list of temperatures", "above 0 they sample: leave it out")
        for temperature in self.temperatures:
            self.at(temperature)

    def at(self, temperature: float) -> SpeechOptions:
        """Return the options for one temperature of the list: those that it takes, without beams where it samples."""
        dropped = {"temperature", *(_OF_BEAMS if temperature > 0 else (*SAMPLERS, "do_sample", "seed"))}
        kept = {name: getattr(self, name) for name in self.explicit - dropped}
        # Both are said even where they are plain, since a checkpoint's own defaults would step in.
        own = {"num_beams": 1, "temperature": temperature} if temperature > 0 else {}
        return SpeechOptions(**{**kept, "do_sample": temperature > 0, **own})
