"""Speech recognition by CTC (wav2vec 2.0, HuBERT): a character a frame; the best alignment, or a prefix beam search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plainformer.config import WaveFrontend
from plainformer.errors import InputError, UsageError
from plainformer.inputs.audio.processors import AudioBatch
from plainformer.inputs.text.ctc_vocabulary import CtcVocabulary
from plainformer.tasks.media import PREPROCESSOR_FILES, AudioTask
from plainformer.tasks.speech.ctc_decoding import (
    Frames,
    Hypothesis,
    Language,
    align,
    best_alignment,
    make_lexicon,
    prefix_beam_search,
)
from plainformer.tasks.speech.ngram import NgramModel
from plainformer.tasks.speech.whisper import Segment, SpeechRecognition, Transcription

BEAM_WIDTH = 50  # where words or n-grams are given
Words = Sequence[str] | str | os.PathLike[str]


@dataclass(frozen=True)
class Heard:
    """The log-probabilities of a clip's frames, and what they spell, best first."""

    frames_TV: Frames
    hypotheses: tuple[Hypothesis, ...]


class CtcSpeechRecognition(AudioTask):
    """A clip of any length (path, bytes, array with its rate) → its text.

    Options:
        beam_width: 1 takes the best alignment; more searches for the best text (`ctc_decoding`). Default: 1, or 50 where
            `words` or `ngram` are given.
        words: the words that there are, a list or a text file with one a line; nothing else is written.
        ngram: an n-gram model of words, an .arpa (or .arpa.gz) file or an `NgramModel`; its logarithms count
            `ngram_weight` times (0.5), and each word adds `word_bonus` (1.5, or 0 without n-grams) to a text's score.
        num_return_sequences: how many texts; all but the best are its `alternatives`.
        min_token_logprob, max_beam_gap: what the search leaves out, see `prefix_beam_search`.
        timestamps: True also says when each word was said (`segments`), by the likeliest alignment of the text.
    """

    needs_tokenizer = True
    companions = (*PREPROCESSOR_FILES, "vocab.json", "tokenizer_config.json", "special_tokens_map.json")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.vocabulary = CtcVocabulary.of(self.tokenizer, self.checkpoint.json("tokenizer_config.json") or {})
        self._kept: dict[tuple[str, str], Any] = {}

    def _check(self, options: dict[str, Any]) -> None:
        for name in options:
            if name not in self.options() and (name in SpeechRecognition.more_options or name in _WHISPER):
                raise UsageError(
                    f"{name} has no effect on a CTC model, which writes a character a frame", "leave it out"
                )
        super()._check(options)

    def predict(
        self,
        encoded: AudioBatch,
        *,
        beam_width: int | None = None,
        words: Words | None = None,
        ngram: str | os.PathLike[str] | NgramModel | None = None,
        ngram_weight: float | None = None,
        word_bonus: float | None = None,
        num_return_sequences: int = 1,
        min_token_logprob: float | None = None,
        max_beam_gap: float | None = None,
    ) -> list[Heard]:
        width = beam_width
        if width is None:
            width = 1 if words is None and ngram is None else BEAM_WIDTH
        for name, value in (("beam_width", width), ("num_return_sequences", num_return_sequences)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name}={value!r} is not a count of at least 1", f"give {name}=10, say")
        search = {"min_token_logprob": min_token_logprob, "max_beam_gap": max_beam_gap}
        given = {"words": words, "ngram": ngram, **search}
        if width == 1 and any(value is not None for value in given.values()):
            name = next(name for name, value in given.items() if value is not None)
            raise UsageError(f"{name} has no effect on the best alignment", "give beam_width=50, say")
        if num_return_sequences > width:
            raise UsageError(
                f"num_return_sequences={num_return_sequences} of {width} beams", "give a beam_width as large"
            )
        language = self._language(words, ngram, ngram_weight, word_bonus)
        options = {name: float(value) for name, value in search.items() if value is not None}
        heard = []
        for frames_TV in self._frames(encoded):
            if width == 1:
                found = [best_alignment(frames_TV, self.vocabulary.blank_id)]
            else:
                blank = self.vocabulary.blank_id
                found = prefix_beam_search(frames_TV, blank, beam_width=width, language=language, **options)
            heard.append(Heard(frames_TV, tuple(found[:num_return_sequences])))
        return heard

    def _frames(self, encoded: AudioBatch) -> list[Frames]:
        """The log-probabilities of each clip's own frames, (T, V)."""
        rows = [row.cpu() for inputs in self.runs(encoded) for row in self.model(**inputs).logits.float()]
        pairs = zip(rows, self.frames(encoded), strict=True)
        return [torch.log_softmax(row[:length].double(), -1).numpy() for row, length in pairs]

    def decode(self, encoded: AudioBatch, predicted: list[Heard], *, timestamps: bool = False) -> list[Transcription]:
        if not isinstance(timestamps, bool):
            raise UsageError(f"timestamps={timestamps!r} is neither True nor False", "give timestamps=True")
        results = []
        for one in predicted:
            best, *others = [self._transcription(one.frames_TV, each, timestamps) for each in one.hypotheses]
            results.append(Transcription(**{**vars(best), "alternatives": tuple(others)}))
        return results

    def _transcription(self, frames_TV: Frames, one: Hypothesis, timestamps: bool) -> Transcription:
        segments = self._segments(frames_TV, one.ids) if timestamps else None
        return Transcription(self.vocabulary.written(one.ids), score=one.score, segments=segments)

    def _segments(self, frames_TV: Frames, ids: Sequence[int]) -> tuple[Segment, ...]:
        """The words, from the beginning of each one's first frame to the end of its last."""
        seconds = self._seconds_a_frame()
        spans = align(frames_TV, ids, self.vocabulary.blank_id)
        found = []
        for own in self._words_of(ids):
            text = self.vocabulary.written([ids[place] for place in own])
            if text:
                found.append(Segment(spans[own[0]][0] * seconds, spans[own[-1]][1] * seconds, text))
        return tuple(found)

    def _words_of(self, ids: Sequence[int]) -> list[list[int]]:
        """The places of each word's tokens."""
        found: list[list[int]] = [[]]
        for place, i in enumerate(ids):
            if self.vocabulary.tokens[i] == self.vocabulary.delimiter:
                found.append([])
            else:
                found[-1].append(place)
        return [own for own in found if own]

    def _seconds_a_frame(self) -> float:
        frontend = (self.config.encoder or self.config.main_stack).frontend
        assert isinstance(frontend, WaveFrontend)
        return float(np.prod(frontend.strides)) / self.processor.sampling_rate

    # ---- words ----------------------------------------------------------------------------------------------------

    def _language(
        self,
        words: Words | None,
        ngram: str | os.PathLike[str] | NgramModel | None,
        weight: float | None,
        bonus: float | None,
    ) -> Language | None:
        for name, value in (("ngram_weight", weight), ("word_bonus", bonus)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UsageError(f"{name}={value!r} is not a number", f"give {name}=0.5, say")
        if ngram is None and weight is not None:
            raise UsageError("ngram_weight has no effect without ngram", "leave it out")
        if words is None and ngram is None:
            if bonus is not None:
                raise UsageError("word_bonus has no effect without words or ngram", "leave it out")
            return None
        delimiter = self.vocabulary.delimiter
        if delimiter not in self.vocabulary.tokens:
            raise UsageError("this model's vocabulary has no token between words", "leave words and ngram out")
        ngrams = self._ngrams(ngram) if ngram is not None else None
        return Language(
            self.vocabulary.tokens.index(delimiter),
            self.vocabulary.tokens,
            self._lexicon(words) if words is not None else None,
            ngrams,
            0.5 if weight is None else float(weight),
            float(bonus) if bonus is not None else 1.5 if ngrams is not None else 0.0,
        )

    def _ngrams(self, ngram: str | os.PathLike[str] | NgramModel) -> NgramModel:
        if isinstance(ngram, NgramModel):
            return ngram
        if not isinstance(ngram, str | os.PathLike):
            raise UsageError(f"ngram is a {type(ngram).__name__}", "give the path of an .arpa file")
        key = ("ngram", os.fspath(ngram))
        if key not in self._kept:
            self._kept[key] = NgramModel.read(ngram)
        model: NgramModel = self._kept[key]
        return model

    def _lexicon(self, words: Words) -> dict[int, object]:
        if not isinstance(words, str | os.PathLike):
            return self._tree(words, "words")
        key = ("words", os.fspath(words))
        if key not in self._kept:
            try:
                listed = Path(words).read_text(encoding="utf-8-sig").split("\n")
            except (OSError, ValueError) as error:
                raise InputError(f"the word list {os.fspath(words)!r} cannot be read: {error}", "check it") from error
            self._kept[key] = self._tree([line.strip() for line in listed if line.strip()], os.fspath(words))
        tree: dict[int, object] = self._kept[key]
        return tree

    def _tree(self, words: Sequence[str], name: str) -> dict[int, object]:
        """The words as ids, in the model's own letters; one that has none of its letters is an error."""
        letters = {token: i for i, token in enumerate(self.vocabulary.tokens) if i != self.vocabulary.blank_id}
        spelt = []
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise UsageError(f"{name} holds {word!r}, which is no word", "give texts with letters")
            forms = ([letters.get(letter) for letter in form] for form in (word, word.upper(), word.lower()))
            ids = next((form for form in forms if None not in form), None)
            if ids is None:
                missing = next(c for c in word if c not in letters and c.upper() not in letters)
                raise UsageError(
                    f"{name} holds {word!r}, and the model has no {missing!r}", "leave out what it cannot write"
                )
            spelt.append([i for i in ids if i is not None])
        if not spelt:
            raise UsageError(f"{name} is empty: nothing could be written", "give at least one word")
        return make_lexicon(spelt)


_WHISPER = {
    "language",
    "task",
    "truncate",
    "condition_on_previous_text",
    "compression_ratio_threshold",
    "logprob_threshold",
    "no_speech_threshold",
}
