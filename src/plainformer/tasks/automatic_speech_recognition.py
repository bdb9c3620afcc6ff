"""Speech recognition: a recording as text, by CTC (wav2vec 2.0, HuBERT) or by an encoder-decoder (Whisper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plainformer.errors import UsageError
from plainformer.generate.search import generate
from plainformer.inputs.audio import AudioBatch
from plainformer.inputs.ctc_vocabulary import CtcVocabulary
from plainformer.model.stack import StackOutput
from plainformer.tasks.base import Result
from plainformer.tasks.generation_settings import FILE, read_generation_settings
from plainformer.tasks.media import PREPROCESSOR_FILES, AudioTask
from plainformer.tasks.speech_prompt import SpeechPrompt


@dataclass(frozen=True)
class Transcription(Result):
    """What was said. Of Whisper alone: `language`, and `stop_reason`, "eos" or "length" for a text that was cut off."""

    text: str
    language: str | None = None
    stop_reason: str | None = None


@dataclass(frozen=True)
class Spoken:
    """What a model heard in one clip: ids of all frames (CTC) or of words."""

    ids: tuple[int, ...]
    language: str | None = None
    stop_reason: str | None = None


class SpeechRecognition(AudioTask):
    """A clip (path, bytes, array with its rate) → its text.

    CTC models take clips of any length; Whisper takes 30 s. `language` ("en") and `task` ("transcribe", or "translate"
    into English) are options of multilingual Whisper models; without a language, the model finds it out.
    """

    needs_tokenizer = True
    vocabulary: CtcVocabulary | None = None

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
        max_new_tokens: int | None = None,
    ) -> list[Spoken]:
        """`max_new_tokens` None: as many as the decoder has positions for."""
        if self.vocabulary is None:
            return self._write(encoded, language, task, max_new_tokens)
        for name, value in (("language", language), ("task", task), ("max_new_tokens", max_new_tokens)):
            if value is not None:
                raise UsageError(
                    f"{name} has no effect on a CTC model, which writes a character a frame", "leave it out"
                )
        best = [self.model(**inputs).logits.argmax(-1) for inputs in self.runs(encoded)]
        rows = (row.tolist() for ids_BT in best for row in ids_BT)
        return [Spoken(tuple(row[:length])) for row, length in zip(rows, self.frames(encoded), strict=True)]

    def _write(
        self, encoded: AudioBatch, language: str | None, task: str | None, max_new_tokens: int | None
    ) -> list[Spoken]:
        (inputs,) = self.runs(encoded)
        memory = self.model.encode(**inputs)
        batch = len(memory.last_hidden_state)
        heard = self._hear(memory) if self.prompt.must_listen(language) else [None] * batch
        prompts = [self.prompt.ids(language, task, one) for one in heard]
        # The whole table of positions, unless the caller wants less: a cut transcription would look complete.
        most = self.config.main_stack.max_positions or 448
        found = generate(
            self.model,
            encoder_output=memory,
            decoder_input_ids=torch.tensor(prompts, device=self.model.device),
            max_new_tokens=most if max_new_tokens is None else max_new_tokens,
            eos_ids=self.settings.eos_ids,
            suppress=self.settings.suppress,
            suppress_first=self.settings.suppress_first,
        )
        rows = zip(prompts, found.token_ids, found.stop_reasons, strict=True)
        return [Spoken(ids, self.prompt.language_of(prompt), reason) for prompt, ids, reason in rows]

    def _hear(self, memory: StackOutput) -> list[int]:
        """The id of the language in each clip: the likeliest one behind the start token."""
        batch, device = len(memory.last_hidden_state), self.model.device
        start_B1 = torch.full((batch, 1), self.prompt.start_id, device=device)
        logits: Tensor = self.model(decoder_input_ids=start_B1, encoder_output=memory).logits[:, -1]
        ids = torch.tensor(list(self.prompt.languages.values()), device=device)
        found: list[int] = ids[logits[:, ids].argmax(-1)].tolist()
        return found

    def decode(self, encoded: AudioBatch, predicted: list[Spoken]) -> list[Transcription]:
        return [Transcription(self._text(one.ids), one.language, one.stop_reason) for one in predicted]

    def _text(self, ids: tuple[int, ...]) -> str:
        if self.vocabulary is not None:
            return self.vocabulary.text(ids)
        last = self.prompt.no_timestamps_id
        words = self.tokenizer.known(i for i in ids if last is None or i <= last)  # timestamps stand behind it
        return self.tokenizer.decode(words, skip_special_tokens=True).strip()
