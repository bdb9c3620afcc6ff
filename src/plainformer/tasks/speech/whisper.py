"""Speech recognition by an encoder-decoder (Whisper); models with a CTC head are in `ctc_speech.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plainformer.errors import UsageError
from plainformer.generation.options import make_options
from plainformer.generation.processors.timestamps import WhisperTimestamps
from plainformer.generation.search import generate
from plainformer.inputs.audio.processors import AudioBatch, MelProcessor
from plainformer.model.stack import StackOutput
from plainformer.tasks.base import Result
from plainformer.tasks.media import PREPROCESSOR_FILES, AudioTask
from plainformer.tasks.speech.fallback import THRESHOLDS, Attempt, Thresholds, options_at, temperatures_of
from plainformer.tasks.speech.long import LongClip, LongSpeech, TokenSegment, frame_seconds
from plainformer.tasks.speech.prompt import SpeechPrompt
from plainformer.tasks.writing.answers import cut, without_missing
from plainformer.tasks.writing.base import CONSTRAINTS, GeneratingTask
from plainformer.tasks.writing.checkpoint_settings import FILE, read_generation_settings


@dataclass(frozen=True)
class Segment:
    """What was said between two times, in seconds from the clip's beginning."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcription(Result):
    """What was said. Of Whisper alone, all but `text`:

    Attributes:
        language: that was heard, or that the call or the checkpoint names. segments: with `timestamps=True`.
        stop_reason, stop_string, score, log_probabilities: as in `answers.Answer`.
        alternatives: further transcriptions, with `num_return_sequences` or `num_alternatives`.
    """

    text: str
    language: str | None = None
    stop_reason: str | None = None
    stop_string: str | None = None
    score: float | None = None
    log_probabilities: tuple[float, ...] | None = None
    segments: tuple[Segment, ...] | None = None
    alternatives: tuple[Transcription, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without what was not asked for or does not apply."""
        return without_missing(super().to_dict())


@dataclass(frozen=True)
class Spoken:
    """What a model heard in one clip; `segments` where it was read by windows."""

    ids: tuple[int, ...]
    language: str | None = None
    stop_reason: str | None = None
    score: float | None = None
    log_probabilities: tuple[float, ...] | None = None
    segments: tuple[TokenSegment, ...] = ()
    alternatives: tuple[Spoken, ...] = ()


# The encoder's output of clips → what the output of each begins with.
Begin = Callable[[StackOutput], list[list[int]]]


class SpeechRecognition(AudioTask, GeneratingTask):
    """A clip (path, bytes, array with its rate) → its text.

    Clips are of any length. Whisper reads what is longer than its window of 30 s, and whatever
    is asked for with `timestamps`, window after window (`long_speech`). Its options:
        language: "en"; without it, a multilingual model finds it out, from the first window.
        task: "transcribe", or "translate" into English, of multilingual models.
        timestamps: True also says when each part was said (`segments`, without those of no words).
        condition_on_previous_text: True writes each window behind the text before it; if not given, the checkpoint's
            `condition_on_prev_tokens`, else False.
        temperature: a list is of those to try, the next where a text is bad: 0.0 takes the likeliest tokens, more samples.
        compression_ratio_threshold, logprob_threshold, no_speech_threshold: when it is bad, or nobody speaks
            (`speech_fallback.Thresholds`); if not given, the checkpoint's, else never. Usual: 1.35, -1.0, 0.6.
        max_new_tokens: of a window; if not given, as many as the decoder has positions for.

    The others are those of `GeneratingTask`, without healing: there is no prompt in words. A clip that is read by windows
    has one answer, free of constraints and stop strings.
    """

    needs_tokenizer = True
    reads_long = True
    more_options = GeneratingTask.more_options - {"heal", "cache", "negative_ids"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.companions = (*PREPROCESSOR_FILES, FILE)
        self.settings = read_generation_settings(self.checkpoint, self.config)
        self.prompt = SpeechPrompt.read(self.settings, self.tokenizer, self.config.head.out_size)

    def predict(
        self,
        encoded: AudioBatch,
        *,
        language: str | None = None,
        task: str | None = None,
        timestamps: bool = False,
        condition_on_previous_text: bool | None = None,
        compression_ratio_threshold: float | None = None,
        logprob_threshold: float | None = None,
        no_speech_threshold: float | None = None,
        **options: Any,
    ) -> list[Spoken]:
        own = {
            "condition_on_previous_text": condition_on_previous_text,
            "compression_ratio_threshold": compression_ratio_threshold,
            "logprob_threshold": logprob_threshold,
            "no_speech_threshold": no_speech_threshold,
        }
        return self._write(encoded, language, task, timestamps, own, options)

    def _write(
        self,
        encoded: AudioBatch,
        language: str | None,
        task: str | None,
        timestamps: bool,
        own: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> list[Spoken]:
        """Short clips at once; by windows what is longer, what has timestamps, and what may be written again."""
        assert isinstance(self.processor, MelProcessor) and encoded.input_features is not None
        clips = encoded.whole or tuple(encoded.input_features)
        is_long = [clip.size(1) > self.processor.window_frames for clip in clips]
        thresholds, conditioned = self._thresholds(own, options), self._conditioned(own)
        again = thresholds.any() or temperatures_of(options) is not None
        found: dict[int, Spoken] = {}
        for timed in (True, False):
            places = [place for place, long in enumerate(is_long) if (long or timestamps) is timed]
            if not places:
                continue
            given = self.options_of(places, dict(options))
            begin = partial(self._begin, language, task, timed)
            if timed or again:
                attempts = self._attempts(given, timed, any(is_long), thresholds)
                speech = self._long_speech(attempts, thresholds, conditioned)
                spoken = self._by_windows(speech, [clips[place] for place in places], begin, given.get("seed"))
            else:
                spoken = self._at_once(encoded.input_features[places], begin, given)
            found.update(zip(places, spoken, strict=True))
        return [found[place] for place in range(len(clips))]

    def _begin(self, language: str | None, task: str | None, timed: bool, memory: StackOutput) -> list[list[int]]:
        """What the output of each clip begins with; `memory` is of their first windows."""
        heard = self._hear(memory) if self.prompt.must_listen(language) else [None] * len(memory.last_hidden_state)
        return [self.prompt.ids(language, task, one, timestamps=timed) for one in heard]

    def _at_once(self, features_BMF: Tensor, begin: Begin, options: Mapping[str, Any]) -> list[Spoken]:
        """Clips of one window each, in any mode of generation."""
        given = self.engine_options(options, bare=True)
        memory = self.model.encode(input_features=features_BMF.to(self.model.device))
        prompts = begin(memory)
        if given.get("max_new_tokens") is None and given.get("max_length") is None:
            # The whole table of positions, unless the caller wants less: a cut transcription would look complete.
            given["max_new_tokens"] = self.config.main_stack.max_positions or 448
        start = torch.tensor(prompts, device=self.model.device)
        found = generate(self.model, encoder_output=memory, decoder_input_ids=start, **given)
        count = len(found.token_ids) // len(prompts)
        rows = []
        for row, ids in enumerate(found.token_ids):
            language = self.prompt.language_of(prompts[row // count])
            score = found.scores[row] if found.scores is not None else None
            each = found.log_probabilities[row] if found.log_probabilities is not None else None
            rows.append(Spoken(ids, language, found.stop_reasons[row], score, each))
        return [replace(rows[i], alternatives=tuple(rows[i + 1 : i + count])) for i in range(0, len(rows), count)]

    # ---- by windows -----------------------------------------------------------------------------------------------

    def _by_windows(
        self, speech: LongSpeech, spectrograms: Sequence[Tensor], begin: Begin, seed: int | Sequence[int] | None
    ) -> list[Spoken]:
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(spectrograms)
        clips = [LongClip(whole, own) for whole, own in zip(spectrograms, seeds, strict=True)]
        speech.read(clips, begin)
        scored = bool(speech.attempts[0].options.get("output_scores"))
        rows = []
        for clip in clips:
            each = tuple(clip.log_probabilities) if scored else None
            score = sum(clip.log_probabilities) if scored else None
            language = self.prompt.language_of(clip.start)
            rows.append(Spoken(clip.ids, language, clip.reason, score, each, tuple(clip.segments)))
        return rows

    def _long_speech(self, attempts: Sequence[Attempt], thresholds: Thresholds, conditioned: bool) -> LongSpeech:
        assert isinstance(self.processor, MelProcessor)
        last = self.prompt.no_timestamps_id
        if last is None and thresholds.no_speech is not None:
            raise UsageError("this model's vocabulary has no <|nospeech|>", "leave no_speech_threshold out")
        return LongSpeech(
            self.model,
            self.processor.window_frames,
            self.config.head.out_size if last is None else last + 1,
            attempts,
            thresholds,
            tuple(attempts[0].options["eos_ids"]),
            conditioned,
            self.prompt.previous_id,
        )

    def _attempts(
        self, options: Mapping[str, Any], timed: bool, is_long: bool, thresholds: Thresholds
    ) -> list[Attempt]:
        """The ways to write a window, in the order they are tried."""
        for name in (*CONSTRAINTS, "stop"):
            if options.get(name) is not None:
                why = "timestamps, which a clip of more than one window needs," if is_long else "timestamps"
                raise UsageError(f"{name} and {why} exclude each other", "leave one of them out")
        for name in ("num_return_sequences", "num_alternatives"):
            if options.get(name) not in (None, 1):
                raise UsageError(f"{name} is of clips that are read at once, not by windows", "leave it out")
        temperatures = temperatures_of(options)
        given = self._timed(options) if timed else dict(options)
        if temperatures is None:
            engine = self.engine_options(given, bare=True)
            drawn = engine.get("temperature", 1.0) if engine.get("do_sample") else 0.0
            attempts = [Attempt(float(drawn), engine)]
        else:
            attempts = [Attempt(t, self.engine_options(options_at(given, t), bare=True)) for t in temperatures]
        modes = {make_options(attempt.options).mode for attempt in attempts}
        if thresholds.logprob is not None and modes - {"greedy", "sample"}:
            raise UsageError("logprob_threshold is of greedy decoding and sampling", "leave beams and drafts out")
        return attempts

    def _thresholds(self, own: Mapping[str, Any], options: Mapping[str, Any]) -> Thresholds:
        """Those of the call, else of the checkpoint."""
        if own["compression_ratio_threshold"] is not None and len(temperatures_of(options) or ()) < 2:
            raise UsageError(
                "compression_ratio_threshold has no effect without temperatures to go on with",
                "give temperature=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0)",
            )
        return Thresholds(*(own[n] if own[n] is not None else self.settings.values.get(n) for n in THRESHOLDS))

    def _conditioned(self, own: Mapping[str, Any]) -> bool:
        wanted = own["condition_on_previous_text"]
        if wanted is None:
            return bool(self.settings.values.get("condition_on_prev_tokens"))
        if not isinstance(wanted, bool):
            raise UsageError(f"condition_on_previous_text={wanted!r} is neither True nor False", "give True")
        return wanted

    def _timed(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a transcript with timestamps."""
        if self.prompt.no_timestamps_id is None:
            raise UsageError(
                "this model's vocabulary has no timestamps, which a clip of more than one window needs",
                "leave timestamps out, and split the clip or give truncate=True",
            )
        ends = options.get("eos_ids") or self.settings.eos_ids
        most = self.settings.values.get("max_initial_timestamp_index")
        rules = WhisperTimestamps(self.prompt.no_timestamps_id, ends[0], most)
        return {**options, "processors": [*options.get("processors", ()), rules]}

    def _hear(self, memory: StackOutput) -> list[int]:
        """The id of the language in each clip: the likeliest one behind the start token."""
        batch, device = len(memory.last_hidden_state), self.model.device
        start_B1 = torch.full((batch, 1), self.prompt.start_id, device=device)
        logits: Tensor = self.model(decoder_input_ids=start_B1, encoder_output=memory).logits[:, -1]
        ids = torch.tensor(list(self.prompt.languages.values()), device=device)
        found: list[int] = ids[logits[:, ids].argmax(-1)].tolist()
        return found

    def decode(
        self, encoded: AudioBatch, predicted: list[Spoken], *, timestamps: bool = False, **options: Any
    ) -> list[Transcription]:
        strings = self.stop_strings(options)
        return [self._transcription(one, timestamps, strings) for one in predicted]

    def _transcription(self, one: Spoken, timestamps: bool, strings: tuple[str, ...]) -> Transcription:
        text, string = cut(self.text_of(one.ids), strings)
        return Transcription(
            text.strip(),
            one.language,
            "stop_string" if string is not None else one.stop_reason,
            string,
            one.score,
            one.log_probabilities,
            self._segments(one.segments) if timestamps else None,
            tuple(self._transcription(other, timestamps, strings) for other in one.alternatives),
        )

    def text_of(self, ids: Sequence[int]) -> str:
        last = self.prompt.no_timestamps_id
        words = self.tokenizer.known(i for i in ids if last is None or i <= last)  # timestamps stand behind it
        return self.tokenizer.decode(words, skip_special_tokens=True)

    def _segments(self, found: Sequence[TokenSegment]) -> tuple[Segment, ...]:
        """The parts of a transcript in which there are words."""
        assert isinstance(self.processor, MelProcessor)
        hop, rate = self.processor.hop_length, self.processor.sampling_rate
        texts = [(one, self.text_of(one.ids).strip()) for one in found]
        return tuple(
            Segment(frame_seconds(one.start, hop, rate), frame_seconds(one.end, hop, rate), text)
            for one, text in texts
            if text
        )
