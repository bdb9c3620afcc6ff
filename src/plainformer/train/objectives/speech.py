"""Speech to text by an encoder-decoder (Radford et al. 2022, Whisper): a clip is heard, its text is written.

Shapes: B batch, T positions of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from plainformer.errors import InputError, UsageError, opt
from plainformer.train.objectives.base import Arrays, Batch, Column, Dropped, Encoded, SpeechInputs
from plainformer.train.objectives.causal import end_of_text
from plainformer.train.objectives.collate import as_ids
from plainformer.train.objectives.ctc import TRANSCRIPT
from plainformer.train.objectives.hearing import AUDIO, Clips, Hearing, hidden
from plainformer.train.objectives.pairs import PairObjective
from plainformer.train.objectives.reading import single
from plainformer.train.objectives.words import longest, text_of

if TYPE_CHECKING:
    from plainformer.config import ModelConfig
    from plainformer.config.training import TrainConfig

_MULTILINGUAL = 51865  # tokens: the vocabulary of English-only models is smaller


class SpeechToText(PairObjective):
    """Write what is said in a clip of at most the length that the model hears at a time (30 s).

    A text begins with the tokens that the model writes first: of multilingual models its language
    (`data.target_language`) and "transcribe", and that there are no timestamps. All of them are labels.
    """

    name = "speech-to-text"
    head = "seq2seq_lm"
    reads = "speech"
    columns: ClassVar[tuple[Column, ...]] = (AUDIO, TRANSCRIPT)

    def __init__(self, config: TrainConfig, model: ModelConfig, processor: SpeechInputs) -> None:
        super().__init__(config, model, processor.tokenizer)
        self.hearing = Hearing(processor.audio)
        self.end_id = end_of_text(self.processor, model)
        self.target_limit = longest(
            config.data.max_target_length, model, self.processor, of_target=True, option="data.max_target_length"
        )
        self.first = self._first()

    def _first(self) -> list[int]:
        """Return the tokens before a text, without the start token."""
        language, known = self.config.data.target_language, self.processor.token_to_id
        found = [known("<|notimestamps|>")]
        if language is not None:
            code = known(f"<|{language}|>")
            if code is None:
                what = f"{opt('data.target_language', language)} is unknown to this model"
                raise UsageError(what, "give a code such as 'en'; leave it out for an English-only model")
            found = [code, known("<|transcribe|>"), *found]
        elif self.model_config.head.out_size >= _MULTILINGUAL:
            what = "this model writes many languages, and nothing names the one of the texts"
            raise UsageError(what, f"give {opt('data.target_language', ...)}")
        return [number for number in found if number is not None]

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Return a clip, and its text in tokens."""
        text = text_of(row)
        written = self.processor.encode(text, add_special_tokens=False, max_length=None).input_ids
        ids = [*self.first, *written, self.end_id]
        if self.target_limit is not None and len(ids) > self.target_limit:
            raise Dropped("text longer than the decoder writes")
        try:
            heard = self.hearing.arrays(row.get("audio"))
        except InputError as error:
            if "too long" in str(error):
                raise Dropped("clip longer than the model hears at a time") from None
            raise
        return Encoded([{**heard, "target_ids": as_ids(ids)}])

    def length(self, example: Arrays) -> int:
        """Return how many positions a text takes in the decoder; the encoder's are the same for all."""
        return len(example["target_ids"])

    def collate(self, rows: Sequence[Sequence[Arrays]], draws: Sequence[np.random.Generator]) -> Clips:
        """Return the spectrograms of clips, and their texts padded on the right."""
        examples = single(rows)
        targets = [as_ids(example["target_ids"]) for example in examples]
        texts = self.pair_batch(targets, targets, list(map(len, targets)))
        heard = self.hearing.batch(examples, texts.targets, texts.count, sum(map(len, targets)))
        return replace(heard, inputs={**heard.inputs, "decoder_input_ids": texts.inputs["decoder_input_ids"]})

    def hidden(self, batch: Batch, draws: Sequence[np.random.Generator]) -> Batch:
        """Hide spans of time and bands of features (SpecAugment)."""
        return hidden(batch, draws, self.config.augment, self.model_config)

    def shown(self, example: Arrays) -> list[tuple[str, str]]:
        """Return the clip's length, then what the decoder reads with what it is to write."""
        target = as_ids(example["target_ids"])
        written = self.shown_pair(as_ids([]), target, len(target))
        return [(f"clip of {self.hearing.size(example):,} frames", ""), *written]
