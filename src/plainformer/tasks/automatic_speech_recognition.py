"""Speech recognition: a recording as text, by CTC (wav2vec 2.0, HuBERT) or by an encoder-decoder (Whisper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from plainformer.errors import UsageError
from plainformer.generate.processors.timestamps import WhisperTimestamps
from plainformer.generate.search import generate
from plainformer.inputs.audio import AudioBatch
from plainformer.inputs.ctc_vocabulary import CtcVocabulary
from plainformer.model.stack import StackOutput
from plainformer.tasks.answers import cut, without_missing
from plainformer.tasks.base import Result
from plainformer.tasks.generation import CONSTRAINTS, GeneratingTask
from plainformer.tasks.generation_settings import FILE, read_generation_settings
from plainformer.tasks.media import PREPROCESSOR_FILES, AudioTask
from plainformer.tasks.speech_prompt import SpeechPrompt

SECONDS_A_TIMESTAMP = 0.02  # Radford et al. 2022, section 2.3


@dataclass(frozen=True)
class Segment:
    """What was said between two times, in seconds from the clip's beginning; `end` is None where the text was cut off."""

    start: float
    end: float | None
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
    """What a model heard in one clip: ids of all frames (CTC) or of words."""

    ids: tuple[int, ...]
    language: str | None = None
    stop_reason: str | None = None
    score: float | None = None
    log_probabilities: tuple[float, ...] | None = None
    alternatives: tuple[Spoken, ...] = ()


class SpeechRecognition(AudioTask, GeneratingTask):
    """A clip (path, bytes, array with its rate) → its text.

    CTC models take clips of any length and no options; Whisper takes 30 s. Options of Whisper models:
        language: "en"; without it, a multilingual model finds it out.
        task: "transcribe", or "translate" into English, of multilingual models.
        timestamps: True also says when each part was said (`segments`).
        max_new_tokens: if not given, as many as the decoder has positions for.

    The others are those of `GeneratingTask`, without healing: there is no prompt in words.
    """

    needs_tokenizer = True
    vocabulary: CtcVocabulary | None = None
    more_options = GeneratingTask.more_options - {"heal", "cache", "negative_ids"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.config.head.kind == "ctc":
            self.vocabulary = CtcVocabulary.from_folder(self.folder, self.tokenizer)
            self.companions = (*PREPROCESSOR_FILES, "vocab.json", "tokenizer_config.json", "special_tokens_map.json")
            return
        self.companions = (*PREPROCESSOR_FILES, FILE)
        self.settings = read_generation_settings(self.folder, self.config)
        self.prompt = SpeechPrompt.read(self.settings, self.tokenizer, self.config.head.out_size)

    def predict(
        self,
        encoded: AudioBatch,
        *,
        language: str | None = None,
        task: str | None = None,
        timestamps: bool = False,
        **options: Any,
    ) -> list[Spoken]:
        if self.vocabulary is None:
            return self._write(encoded, language, task, timestamps, options)
        for name, value in {"language": language, "task": task, "timestamps": timestamps or None, **options}.items():
            if value is not None:
                raise UsageError(
                    f"{name} has no effect on a CTC model, which writes a character a frame", "leave it out"
                )
        best = [self.model(**inputs).logits.argmax(-1) for inputs in self.runs(encoded)]
        rows = (row.tolist() for ids_BT in best for row in ids_BT)
        return [Spoken(tuple(row[:length])) for row, length in zip(rows, self.frames(encoded), strict=True)]

    def _write(
        self,
        encoded: AudioBatch,
        language: str | None,
        task: str | None,
        timestamps: bool,
        options: Mapping[str, Any],
    ) -> list[Spoken]:
        (inputs,) = self.runs(encoded)
        given = self.engine_options(self._timed(options) if timestamps else options, bare=True)
        memory = self.model.encode(**inputs)
        batch = len(memory.last_hidden_state)
        heard = self._hear(memory) if self.prompt.must_listen(language) else [None] * batch
        prompts = [self.prompt.ids(language, task, one, timestamps=timestamps) for one in heard]
        if given.get("max_new_tokens") is None and given.get("max_length") is None:
            # The whole table of positions, unless the caller wants less: a cut transcription would look complete.
            given["max_new_tokens"] = self.config.main_stack.max_positions or 448
        start = torch.tensor(prompts, device=self.model.device)
        found = generate(self.model, encoder_output=memory, decoder_input_ids=start, **given)
        count = len(found.token_ids) // batch
        rows = []
        for row, ids in enumerate(found.token_ids):
            language = self.prompt.language_of(prompts[row // count])
            score = found.scores[row] if found.scores is not None else None
            each = found.log_probabilities[row] if found.log_probabilities is not None else None
            rows.append(Spoken(ids, language, found.stop_reasons[row], score, each))
        return [replace(rows[i], alternatives=tuple(rows[i + 1 : i + count])) for i in range(0, len(rows), count)]

    def _timed(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a transcript with timestamps."""
        if self.prompt.no_timestamps_id is None:
            raise UsageError("this model's vocabulary has no timestamps", "leave timestamps out")
        for name in (*CONSTRAINTS, "stop"):
            if options.get(name) is not None:
                raise UsageError(f"{name} and timestamps exclude each other", "leave one of them out")
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
        strings = self.stop_strings(options) if self.vocabulary is None else ()
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
            self._segments(one.ids) if timestamps else None,
            tuple(self._transcription(other, timestamps, strings) for other in one.alternatives),
        )

    def text_of(self, ids: Sequence[int]) -> str:
        if self.vocabulary is not None:
            return self.vocabulary.text(ids)
        last = self.prompt.no_timestamps_id
        words = self.tokenizer.known(i for i in ids if last is None or i <= last)  # timestamps stand behind it
        return self.tokenizer.decode(words, skip_special_tokens=True)

    def _segments(self, ids: tuple[int, ...]) -> tuple[Segment, ...]:
        """The parts of a transcript: a timestamp, text, a timestamp, each."""
        last = self.prompt.no_timestamps_id
        assert last is not None
        segments: list[Segment] = []
        start = 0.0
        words: list[int] = []
        for i in ids:
            if i <= last:
                words.append(i)
                continue
            time = round((i - last - 1) * SECONDS_A_TIMESTAMP, 2)
            if words:
                segments.append(Segment(start, time, self.text_of(words).strip()))
            start, words = time, []
        if text := self.text_of(words).strip():
            segments.append(Segment(start, None, text))
        return tuple(segments)
