"""Options of the tasks that read recordings."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plainformer.config.options import NotTyped, flag, number, opt, option, whole
from plainformer.errors import UsageError
from plainformer.tasks.options import TextOptions

if TYPE_CHECKING:
    from plainformer.tasks.speech.ngram import NgramModel

Words = Sequence[str] | str | os.PathLike[str]
BEAM_WIDTH = 50  # where words or n-grams are given


def _real(name: str, value: Any) -> None:
    """A number; infinity, too."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise UsageError(f"{opt(name, value)} is not a number", f"give {opt(name, -5.0)}, say")


def _ngram(name: str, value: Any) -> None:
    if not isinstance(value, str | os.PathLike) and not hasattr(value, "score"):
        raise UsageError(f"{opt(name)} is a {type(value).__name__}", "give the path of an .arpa file")


@dataclass(frozen=True, kw_only=True)
class AudioOptions(TextOptions):
    """Options of all tasks that read recordings. `truncate` keeps what a model of limited hearing can take."""

    sampling_rate: int | None = option(None, help="Of plain arrays, in hertz.", check=whole(1), typed=NotTyped)


@dataclass(frozen=True, kw_only=True)
class AudioClassificationOptions(AudioOptions):
    """Options of audio classification."""


@dataclass(frozen=True, kw_only=True)
class AudioFeatureExtractionOptions(AudioOptions):
    """Options of audio feature extraction."""

    normalize: bool = option(False, help="Vectors of length 1.", check=flag())


@dataclass(frozen=True, kw_only=True)
class CtcOptions(AudioOptions):
    """Options of speech recognition by CTC.

    beam_width: 1 takes the best alignment; more searches for the best text (`ctc_decoding`). Default: 1, or 50 where `words`
        or `ngram` are given.
    words: all words that may be written, a list or a text file with one a line.
    ngram: an .arpa (or .arpa.gz) file, or an `NgramModel`.
    word_bonus: default: 1.5, or 0 without n-grams.
    num_return_sequences: all but the best text are its `alternatives`.
    min_token_logprob, max_beam_gap: see `prefix_beam_search`.
    timestamps: True also says when each word was said (`segments`), by the likeliest alignment of the text.
    """

    beam_width: int | None = option(None, help="Prefix beam search (CTC).", check=whole(1))
    words: Words | None = option(None, help="File of all words that may be written (CTC).", typed=str)
    ngram: str | os.PathLike[str] | NgramModel | None = option(
        None, help="N-gram model of words, an .arpa file (CTC).", check=_ngram, typed=str
    )
    ngram_weight: float | None = option(None, help="Factor of its logarithms; 0.5.", check=number())
    word_bonus: float | None = option(None, help="What each word adds to a text's score (CTC).", check=number())
    num_return_sequences: int = option(1, help="Texts to return.", check=whole(1))
    min_token_logprob: float | None = option(None, help="Least log-probability of a token (CTC).", check=_real)
    max_beam_gap: float | None = option(
        None, help="Beams that score less than the best by more are dropped (CTC).", check=_real
    )
    timestamps: bool = option(False, help="When each part was said.", check=flag())

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("words", "ngram", "min_token_logprob", "max_beam_gap"):
            if self.width == 1 and getattr(self, name) is not None:
                fix = f"give {opt('beam_width', BEAM_WIDTH)}, say"
                raise UsageError(f"{opt(name)} has no effect on the best alignment", fix)
        if self.num_return_sequences > self.width:
            what = f"{opt('num_return_sequences', self.num_return_sequences)} of {self.width} beams"
            raise UsageError(what, f"give a {opt('beam_width')} as large")
        if self.ngram is None and self.ngram_weight is not None:
            raise UsageError(f"{opt('ngram_weight')} has no effect without {opt('ngram')}", "leave it out")
        if self.words is None and self.ngram is None and self.word_bonus is not None:
            what = f"{opt('word_bonus')} has no effect without {opt('words')} or {opt('ngram')}"
            raise UsageError(what, "leave it out")

    @property
    def width(self) -> int:
        """Beams of the search; 1 for the best alignment."""
        if self.beam_width is not None:
            return self.beam_width
        return 1 if self.words is None and self.ngram is None else BEAM_WIDTH
