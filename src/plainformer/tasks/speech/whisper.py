"""Speech recognition by an encoder-decoder (Whisper); models with a CTC head are in `ctc.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plainformer.config.values import no_effect
from plainformer.errors import InputError, UsageError, opt
from plainformer.generation.constraints.stop_strings import first_stop
from plainformer.generation.options import GenerationOptions
from plainformer.generation.processors.timestamps import WhisperTimestamps
from plainformer.generation.search import generate
from plainformer.inputs.audio.processors import AudioBatch, MelProcessor
from plainformer.model.stack import StackOutput
from plainformer.tasks.calls import media_called_with
from plainformer.tasks.html import continued, table
from plainformer.tasks.media import PREPROCESSOR_FILES, AudioTask
from plainformer.tasks.results import Result
from plainformer.tasks.speech.alignment import Aligner
from plainformer.tasks.speech.fallback import THRESHOLDS, Attempt, Thresholds
from plainformer.tasks.speech.long import LongClip, LongSpeech, TokenSegment
from plainformer.tasks.speech.options import SpeechOptions
from plainformer.tasks.speech.prompt import SpeechPrompt
from plainformer.tasks.speech.words import split_words
from plainformer.tasks.writing.answers import answer_lines, without_missing
from plainformer.tasks.writing.base import GeneratingTask, W, prepares_with
from plainformer.tasks.writing.checkpoint_settings import FILE, read_generation_settings
from plainformer.tasks.writing.options import CONSTRAINTS
from plainformer.tasks.writing.prepared import Prepared


@dataclass(frozen=True)
class Segment:
    """What was said between two times, in seconds from the clip's beginning."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcription(Result):
    """What was said.

    Attributes:
        segments: with `timestamps=True`. words: with `word_timestamps=True`.
        alternatives: further transcriptions, with `num_return_sequences` or `num_alternatives`.
        token_ids: of the text; of Whisper with its end token and timestamps.
        language: by its code: detected, or named by the call or the checkpoint (Whisper).
        stop_reason, stop_string, log_probability, log_probabilities: as in `answers.Answer` (Whisper).
        score: what alternatives are ranked by. Of Whisper's beams as in `answers.Answer`; of CTC the log-probability of the best
            alignment, or with `beam_width` above 1 of the text, plus what words and n-grams add.
    """

    text: str
    language: str | None = None
    stop_reason: str | None = None
    stop_string: str | None = None
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    log_probability: float | None = None
    log_probabilities: tuple[float, ...] | None = field(default=None, repr=False)
    score: float | None = None
    segments: tuple[Segment, ...] | None = None
    alternatives: tuple[Transcription, ...] = ()
    words: tuple[Segment, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without what was not asked for or does not apply."""
        return without_missing(super().to_dict())

    def lines(self) -> list[str]:
        """Return the text, or its words or parts with their times; of several answers each, with its number and score."""
        if self.timed is None:
            return answer_lines(self)
        return [f"[{part.start:.2f} - {part.end:.2f}] {part.text}" for part in self.timed]

    @property
    def timed(self) -> tuple[Segment, ...] | None:
        """The words with their times, else the parts; None where no times were asked for."""
        return self.segments if self.words is None else self.words

    def _repr_html_(self) -> str:
        return continued("", self.text) if self.timed is None else table([vars(part) for part in self.timed])


@dataclass(frozen=True)
class Transcript:
    """The token ids of what was said in one clip; `segments` where it was read by windows."""

    ids: tuple[int, ...]
    language: str | None = None
    stop_reason: str | None = None
    log_probabilities: tuple[float, ...] | None = None
    score: float | None = None
    segments: tuple[TokenSegment, ...] = ()
    alternatives: tuple[Transcript, ...] = ()


# The encoder's output of clips → the decoder prompt of each.
Begin = Callable[[StackOutput], list[list[int]]]


class SpeechRecognition(AudioTask, GeneratingTask):
    """A clip (path, bytes, array with its rate) → its text.

    Clips are of any length. Whisper reads what is longer than its window of 30 s, and whatever is asked for with
    `timestamps`, window after window (`long.py`). A clip that is read by windows has one answer, free of constraints and
    stop strings.
    """

    __call__ = media_called_with(SpeechOptions, Transcription)
    prepare = prepares_with(SpeechOptions)
    needs_tokenizer = True
    reads_long = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.companions = (*PREPROCESSOR_FILES, FILE)
        self.settings = read_generation_settings(self.checkpoint, self.config)
        self.prompt = SpeechPrompt.read(self.settings, self.tokenizer, self.config.head.out_size)

    def completed(self, options: W) -> W:
        """Of a list of temperatures, each one's options are completed by themselves."""
        return options if isinstance(options.temperature, list | tuple) else super().completed(options)

    def start_ids(self) -> list[int]:
        return self.prompt.ids(None, None, None)

    def checked(self, inputs: Any, options: Any) -> Any:
        self.prompt.ids(options.language, options.task, None)  # raises what is wrong with them before anything is read
        return super().checked(inputs, options)

    def predict(self, encoded: AudioBatch, options: SpeechOptions) -> list[Transcript]:
        """Decode short clips at once; longer ones, or with timestamps or retries, window by window."""
        assert isinstance(self.processor, MelProcessor) and encoded.input_features is not None
        clips = encoded.whole or tuple(encoded.input_features)
        sounds: list[int] = encoded.attention_mask.sum(-1).tolist()
        is_long = [clip.size(1) > self.processor.window_frames for clip in clips]
        thresholds = self._thresholds(options)
        again = thresholds.any() or options.temperatures is not None
        wanted = options.timestamps or options.word_timestamps
        aligner = (
            Aligner.read(self.model, self.settings.values, self.config.source) if options.word_timestamps else None
        )
        found: dict[int, Transcript] = {}
        for timed in (True, False):
            places = [place for place, long in enumerate(is_long) if (long or wanted) is timed]
            if not places:
                continue
            own = options.of_rows(places)
            begin = partial(self._begin, own, timed)
            if timed or again:
                attempts = self._attempts(own, timed, any(is_long), thresholds)
                speech = self._long_speech(attempts, thresholds, own.condition_on_previous_text, aligner)
                heard = [clips[place].size(1) if is_long[place] else sounds[place] for place in places]
                written = self._by_windows(speech, [clips[place] for place in places], heard, begin, own.seed)
            else:
                written = self._at_once(encoded.input_features[places], begin, own)
            found.update(zip(places, written, strict=True))
        return [found[place] for place in range(len(clips))]

    def prepared(self, encoded: AudioBatch, options: SpeechOptions) -> Prepared:
        """Prepare clips of one window, written at once.

        Raises:
            InputError: a clip is longer. UsageError: timestamps, thresholds and lists of temperatures go by windows.
        """
        if encoded.whole is not None:
            what = "the recording is longer than one window of the model"
            raise InputError(what, f"cut it, or give {opt('truncate', True)}")
        windowed = next((n for n in ("timestamps", "word_timestamps", *THRESHOLDS) if n in options.given), None)
        if windowed is not None or options.temperatures is not None:
            raise UsageError(f"{opt(windowed or 'temperature')} is for reading window by window", "leave it out")
        engine = self._engine(options)
        assert encoded.input_features is not None
        features_BMT = encoded.input_features.to(self.model.device)
        detects = self.prompt.needs_language_detection(options.language)
        prompts = self._begin(options, False, self.model.encode(input_features=features_BMT) if detects else None)
        start = torch.tensor(prompts, device=self.model.device).expand(len(features_BMT), -1)
        inputs = {"input_features": features_BMT, "decoder_input_ids": start}
        return Prepared(tuple(prompts[0]), inputs=inputs, options=engine)

    def detect_language(self, encoder_output: StackOutput) -> list[int]:
        """Return the id of the language in each clip: the likeliest one after the start token."""
        batch, device = len(encoder_output.last_hidden_state), self.model.device
        start_B1 = torch.full((batch, 1), self.prompt.start_id, device=device)
        logits: Tensor = self.model(decoder_input_ids=start_B1, encoder_output=encoder_output).logits[:, -1]
        ids = torch.tensor(list(self.prompt.languages.values()), device=device)
        found: list[int] = ids[logits[:, ids].argmax(-1)].tolist()
        return found

    def _begin(self, options: SpeechOptions, timed: bool, encoder_output: StackOutput | None) -> list[list[int]]:
        """Return the decoder prompt of each clip from the encoder's output for first windows; without it, one for all."""
        detected: Sequence[int | None] = [None] * (
            1 if encoder_output is None else len(encoder_output.last_hidden_state)
        )
        if encoder_output is not None and self.prompt.needs_language_detection(options.language):
            detected = self.detect_language(encoder_output)
        return [self.prompt.ids(options.language, options.task, one, timestamps=timed) for one in detected]

    def _engine(self, options: SpeechOptions) -> GenerationOptions:
        """Return the options of `generate` for clips that are written at once."""
        if options.max_new_tokens is not None or options.max_length is not None:
            return self.engine_options(options, bare=True)
        # The whole table of positions, unless the caller wants less: a cut transcription would look complete.
        return self.engine_options(options, bare=True, max_new_tokens=self.config.main_stack.max_positions or 448)

    def _at_once(self, features_BMT: Tensor, begin: Begin, options: SpeechOptions) -> list[Transcript]:
        """Write clips of one window each, in any mode of generation."""
        engine = self._engine(options)
        encoder_output = self.model.encode(input_features=features_BMT.to(self.model.device))
        prompts = begin(encoder_output)
        start = torch.tensor(prompts, device=self.model.device)
        found = generate(self.model, encoder_output=encoder_output, decoder_input_ids=start, options=engine)
        count = len(found.token_ids) // len(prompts)
        languages = [self.prompt.language_of(prompt) for prompt in prompts for _ in range(count)]
        none = (None,) * len(languages)
        columns = (
            found.token_ids,
            languages,
            found.stop_reasons,
            found.log_probabilities or none,
            found.scores or none,
        )
        rows = [Transcript(*row) for row in zip(*columns, strict=True)]
        return [replace(rows[i], alternatives=tuple(rows[i + 1 : i + count])) for i in range(0, len(rows), count)]

    # ---- by windows -----------------------------------------------------------------------------------------------

    def _by_windows(
        self,
        speech: LongSpeech,
        spectrograms: Sequence[Tensor],
        heard: Sequence[int],
        begin: Begin,
        seed: int | Sequence[int] | None,
    ) -> list[Transcript]:
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(spectrograms)
        clips = [LongClip(*each) for each in zip(spectrograms, heard, seeds, strict=True)]
        speech.read(clips, begin)
        rows = []
        for clip in clips:
            found = Transcript(
                clip.ids, self.prompt.language_of(clip.start), clip.reason, segments=tuple(clip.segments)
            )
            if speech.attempts[0].options.output_scores:
                found = replace(found, log_probabilities=tuple(clip.log_probabilities))
            rows.append(found)
        return rows

    def _long_speech(
        self,
        attempts: Sequence[Attempt],
        thresholds: Thresholds,
        conditioned: bool | None,
        aligner: Aligner | None,
    ) -> LongSpeech:
        assert isinstance(self.processor, MelProcessor)
        last = self.prompt.no_timestamps_id
        if last is None and thresholds.no_speech is not None:
            raise UsageError("this model's vocabulary has no <|nospeech|>", f"leave {opt('no_speech_threshold')} out")
        return LongSpeech(
            self.model,
            self.processor.window_frames,
            self.config.head.out_size if last is None else last + 1,
            attempts,
            thresholds,
            tuple(attempts[0].options.eos_ids or ()),
            bool(self.settings.values.get("condition_on_prev_tokens")) if conditioned is None else conditioned,
            self.prompt.previous_id,
            aligner,
        )

    def _attempts(self, options: SpeechOptions, timed: bool, is_long: bool, thresholds: Thresholds) -> list[Attempt]:
        """Return the attempts at a window, in the order in which they are made."""
        for name in (*CONSTRAINTS, "stop"):
            if getattr(options, name) is not None:
                why = ", which a clip of more than one window needs," if is_long else ""
                times = "word_timestamps" if options.word_timestamps else "timestamps"
                what = f"{opt(name)} and {opt(times)}{why} exclude each other"
                raise UsageError(what, "leave one of them out")
        for name in ("num_return_sequences", "num_alternatives"):
            if getattr(options, name) != 1:
                raise UsageError(f"{opt(name)} is for clips that are read at once, not by windows", "leave it out")
        each = [options]
        if options.temperatures is not None:
            each = [self.completed(options.at(temperature)) for temperature in options.temperatures]
        attempts = []
        for own in each:
            changes = {"processors": [*own.processors, self._timestamp_rules(own)]} if timed else {}
            drawn = (1.0 if own.temperature is None else own.temperature) if own.do_sample else 0.0
            attempts.append(Attempt(float(drawn), self.engine_options(own, bare=True, **changes)))  # type: ignore[arg-type]
        modes = {attempt.options.mode for attempt in attempts}
        if thresholds.logprob is not None and modes - {"greedy", "sample"}:
            what = f"{opt('logprob_threshold')} is for greedy decoding and sampling"
            raise UsageError(what, "leave beams and drafts out")
        return attempts

    def _thresholds(self, options: SpeechOptions) -> Thresholds:
        """Return those of the call, else of the checkpoint."""
        idle = options.compression_ratio_threshold is not None and len(options.temperatures or ()) < 2
        fix = f"give {opt('temperature', (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))}"
        no_effect(idle, "compression_ratio_threshold", "without temperatures to go on with", fix)
        own = {name: getattr(options, name) for name in THRESHOLDS}
        return Thresholds(*(v if v is not None else self.settings.values.get(name) for name, v in own.items()))

    def _timestamp_rules(self, options: SpeechOptions) -> WhisperTimestamps:
        """Return the processor of a transcript with timestamps."""
        if self.prompt.no_timestamps_id is None:
            what = "this model's vocabulary has no timestamps, which a clip of more than one window needs"
            raise UsageError(what, f"leave {opt('timestamps')} out, and split the clip or give {opt('truncate', True)}")
        ends = options.eos_ids or self.settings.eos_ids
        most = self.settings.values.get("max_initial_timestamp_index")
        return WhisperTimestamps(self.prompt.no_timestamps_id, ends[0], most)

    # ---- text -----------------------------------------------------------------------------------------------------

    def decode(self, encoded: AudioBatch, predicted: list[Transcript], options: SpeechOptions) -> list[Transcription]:
        return [self._transcription(one, options) for one in predicted]

    def _transcription(self, one: Transcript, options: SpeechOptions) -> Transcription:
        text = self.text_of(one.ids)
        match = first_stop(text, options.stop_strings)
        chances = one.log_probabilities
        return Transcription(
            (text if match is None else text[: match.start]).strip(),
            one.language,
            one.stop_reason if match is None else "stop_string",
            None if match is None else match.string,
            one.ids,
            None if chances is None else sum(chances),
            chances,
            one.score,
            self._segments(one.segments) if options.timestamps else None,
            tuple(self._transcription(other, options) for other in one.alternatives),
            self._words(one) if options.word_timestamps else None,
        )

    def text_of(self, ids: Sequence[int]) -> str:
        last = self.prompt.no_timestamps_id
        words = self.tokenizer.known(i for i in ids if last is None or i <= last)  # timestamps come after it
        return self.tokenizer.decode(words, skip_special_tokens=True)

    def _segments(self, found: Sequence[TokenSegment]) -> tuple[Segment, ...]:
        """Return the segments that have words, in seconds, to a hundredth."""
        assert isinstance(self.processor, MelProcessor)
        hop, rate = self.processor.hop_length, self.processor.sampling_rate
        texts = ((one, self.text_of(one.ids).strip()) for one in found)
        return tuple(
            Segment(round(one.start * hop / rate, 2), round(one.end * hop / rate, 2), text)
            for one, text in texts
            if text
        )

    def _words(self, one: Transcript) -> tuple[Segment, ...]:
        """Return the words, each from the time of the token before it to that of its last: a token's time is its end."""
        assert isinstance(self.processor, MelProcessor)
        seconds, before, found = self.processor.hop_length / self.processor.sampling_rate, 0, []
        for segment in one.segments:
            starts = (before, *segment.times[:-1])
            before = segment.times[-1] if segment.times else before
            places = [place for place, i in enumerate(segment.ids) if self._is_text(i)]
            for word in split_words([segment.ids[place] for place in places], self.tokenizer.decode, one.language):
                own = [places[place] for place in word.places]
                start, end = round(starts[own[0]] * seconds, 2), round(segment.times[own[-1]] * seconds, 2)
                if word.text.strip():
                    found.append(Segment(start, end, word.text.strip()))
        return tuple(found)

    def _is_text(self, i: int) -> bool:
        last = self.prompt.no_timestamps_id
        known = self.tokenizer.id_to_token(i) is not None and i not in self.tokenizer.special_ids
        return known and (last is None or i <= last)
