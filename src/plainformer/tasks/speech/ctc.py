"""Speech recognition by CTC (wav2vec 2.0, HuBERT): one character per frame; the best alignment, or a prefix beam search."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch

from plainformer.config import WaveFrontend
from plainformer.config.values import no_effect, read_text
from plainformer.errors import UsageError, opt
from plainformer.inputs.audio.processors import AudioBatch
from plainformer.inputs.text.ctc_vocabulary import CtcVocabulary
from plainformer.tasks.calls import media_called_with
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
from plainformer.tasks.speech.options import CtcOptions, Words
from plainformer.tasks.speech.whisper import Segment, SpeechRecognition, Transcription

T = TypeVar("T")


@dataclass(frozen=True)
class Heard:
    """The log-probabilities of a clip's frames, and what they spell, best first."""

    frames_TV: Frames
    hypotheses: tuple[Hypothesis, ...]


class CtcSpeechRecognition(AudioTask):
    """A clip of any length (path, bytes, array with its rate) → its text; see `CtcOptions`."""

    __call__ = media_called_with(CtcOptions, Transcription)
    needs_tokenizer = True
    companions = (*PREPROCESSOR_FILES, "vocab.json", "tokenizer_config.json", "special_tokens_map.json")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.vocabulary = CtcVocabulary.of(self.tokenizer, self.checkpoint.json("tokenizer_config.json") or {})
        self._kept: dict[tuple[str, str], Any] = {}

    def make_options(self, given: Mapping[str, Any]) -> Any:
        for name in given:
            other = name not in self.options() and name in SpeechRecognition.options()
            no_effect(other, name, "on a CTC model, which writes one character per frame")
        return super().make_options(given)

    def predict(self, encoded: AudioBatch, options: CtcOptions) -> list[Heard]:
        language = self._language(options)
        search = {name: getattr(options, name) for name in ("min_token_logprob", "max_beam_gap")}
        search = {name: float(value) for name, value in search.items() if value is not None}
        blank, heard = self.vocabulary.blank_id, []
        for frames_TV in self._frames(encoded):
            if options.width == 1:
                found = [best_alignment(frames_TV, blank)]
            else:
                found = prefix_beam_search(frames_TV, blank, beam_width=options.width, language=language, **search)
            heard.append(Heard(frames_TV, tuple(found[: options.num_return_sequences])))
        return heard

    def _frames(self, encoded: AudioBatch) -> list[Frames]:
        """Return the log-probabilities of each clip's own frames, (T, V)."""
        rows = [row.cpu() for inputs in self.runs(encoded) for row in self.model(**inputs).logits.float()]
        pairs = zip(rows, self.frames(encoded), strict=True)
        return [torch.log_softmax(row[:length].double(), -1).numpy() for row, length in pairs]

    def decode(self, encoded: AudioBatch, predicted: list[Heard], options: CtcOptions) -> list[Transcription]:
        results = []
        for one in predicted:
            best, *others = [self._transcription(one.frames_TV, each, options) for each in one.hypotheses]
            results.append(Transcription(**{**vars(best), "alternatives": tuple(others)}))
        return results

    def _transcription(self, frames_TV: Frames, one: Hypothesis, options: CtcOptions) -> Transcription:
        timed = options.timestamps or options.word_timestamps
        found = self._segments(frames_TV, one.ids) if timed else None
        return Transcription(
            self.vocabulary.written(one.ids),
            token_ids=tuple(one.ids),
            score=one.score,
            segments=found if options.timestamps else None,
            words=found if options.word_timestamps else None,
        )

    def _segments(self, frames_TV: Frames, ids: Sequence[int]) -> tuple[Segment, ...]:
        """Return the words, from the beginning of each one's first frame to the end of its last."""
        seconds, vocabulary = self._seconds_a_frame(), self.vocabulary
        spans = align(frames_TV, ids, vocabulary.blank_id)
        found = []
        for is_word, group in groupby(
            range(len(ids)), lambda place: vocabulary.tokens[ids[place]] != vocabulary.delimiter
        ):
            own = list(group)
            if is_word and (text := vocabulary.written([ids[place] for place in own])):
                found.append(Segment(spans[own[0]][0] * seconds, spans[own[-1]][1] * seconds, text))
        return tuple(found)

    def _seconds_a_frame(self) -> float:
        frontend = self.config.input_frontend
        assert isinstance(frontend, WaveFrontend)
        return float(np.prod(frontend.strides)) / self.processor.sampling_rate

    # ---- words ----------------------------------------------------------------------------------------------------

    def _language(self, options: CtcOptions) -> Language | None:
        words, ngram, weight, bonus = options.words, options.ngram, options.ngram_weight, options.word_bonus
        if words is None and ngram is None:
            return None
        delimiter = self.vocabulary.delimiter
        if delimiter not in self.vocabulary.tokens:
            fix = f"leave {opt('words')} and {opt('ngram')} out"
            raise UsageError("this model's vocabulary has no token between words", fix)
        ngrams = (
            ngram if ngram is None or isinstance(ngram, NgramModel) else self._once("ngram", ngram, NgramModel.read)
        )
        return Language(
            self.vocabulary.tokens.index(delimiter),
            self.vocabulary.tokens,
            self._lexicon(words) if words is not None else None,
            ngrams,
            0.5 if weight is None else float(weight),
            float(bonus) if bonus is not None else 1.5 if ngrams is not None else 0.0,
        )

    def _lexicon(self, words: Words) -> dict[int, object]:
        if not isinstance(words, str | os.PathLike):
            return self._tree(words, opt("words"))
        return self._once("words", words, self._read_words)

    def _once(self, kind: str, path: str | os.PathLike[str], read: Callable[[str], T]) -> T:
        """Read a file at its first use, and keep its contents."""
        key = (kind, os.fspath(path))
        if key not in self._kept:
            self._kept[key] = read(key[1])
        found: T = self._kept[key]
        return found

    def _read_words(self, path: str) -> dict[int, object]:
        lines = read_text(path, "the word list").split("\n")
        return self._tree([line.strip() for line in lines if line.strip()], path)

    def _tree(self, words: Sequence[str], name: str) -> dict[int, object]:
        """Return the words as a tree of ids; a word with a letter that the model lacks is an error."""
        letters = {token: i for i, token in enumerate(self.vocabulary.tokens) if i != self.vocabulary.blank_id}
        spelt = []
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise UsageError(f"{name} holds {word!r}, which is not a word", "give texts with letters")
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
