"""Text to text: an encoder-decoder turns a text into another one: a summary, a translation, an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from plainformer.errors import UsageError
from plainformer.tasks.base import called_with
from plainformer.tasks.writing.answers import Answer
from plainformer.tasks.writing.base import prepares_with
from plainformer.tasks.writing.detokenize import continuation
from plainformer.tasks.writing.options import Text2TextOptions
from plainformer.tasks.writing.prepared import Beginning, Prepared
from plainformer.tasks.writing.writer import WritingTask, streams_with

if TYPE_CHECKING:
    from plainformer.inputs.text.encoding import Encoding, TextBatch


@dataclass(frozen=True)
class TransformedText(Answer):
    """An `Answer`: the whole output, `decoder_prefix` included; `alternatives` as in `GeneratedText`."""

    input_tokens: int = 0
    alternatives: tuple[Answer, ...] = ()


class Text2TextGeneration(WritingTask[TransformedText]):
    """A text → another text.

    An output begins with the model's start token, then the token that the checkpoint forces (`forced_bos_token_id`: a
    target language, or BART's <s>), then `decoder_prefix`; these do not count as new tokens. Constraints hold for what
    follows them. `forced_eos_token_id`, which would put an end token in place of the last word of a text that is too long,
    is applied with `defaults="checkpoint"` alone.
    """

    __call__ = called_with(Text2TextOptions, TransformedText)
    stream = streams_with(Text2TextOptions, TransformedText)
    prepare = prepares_with(Text2TextOptions)

    def encode(self, inputs: Sequence[str], options: Text2TextOptions) -> TextBatch:
        return self.encode_texts(inputs, truncate=options.truncate)

    def prepared(self, encoded: TextBatch, options: Text2TextOptions) -> Prepared:
        start, prefix = self.start_of(options.decoder_prefix)
        beginning = self._beginning(options)
        changes: dict[str, Any] = {}
        first, uncounted = [*beginning.before, *beginning.begun], 0
        if options.num_beams > 1 and len(start) > 1 and not prefix and options.forced_bos_id is None:
            # transformers counts the forced token where it divides a beam's score by its length.
            first, uncounted, changes["forced_bos_id"] = first[:1], 1, start[1]
            if options.new_token_limit is not None:
                changes["max_new_tokens"] = options.new_token_limit + 1
            if options.min_new_tokens:
                changes["min_new_tokens"] = options.min_new_tokens + 1
        engine = self.engine_options_after([beginning], options, bare=self.is_bare([beginning.begun]), **changes)
        ids = torch.tensor([first] * len(encoded.encodings), device=self.model.device)
        inputs = {**self.model_inputs(encoded), "decoder_input_ids": ids}
        return Prepared(**vars(beginning), inputs=inputs, options=engine, uncounted=uncounted)

    def beginning(self, row: Encoding, options: Text2TextOptions) -> Beginning:
        return self._beginning(options)

    def _beginning(self, options: Text2TextOptions) -> Beginning:
        start, prefix = self.start_of(options.decoder_prefix)
        lead = continuation(self.tokenizer, start, prefix)
        kept, taken = self.healed([*start, *prefix]) if options.heal else ((*start, *prefix), b"")
        return Beginning(tuple(start), kept[len(start) :], lead, len(lead), taken)

    def result(self, row: Encoding, answers: Sequence[Answer], options: Text2TextOptions) -> TransformedText:
        more = {"input_tokens": len(row.input_ids), "alternatives": tuple(answers[1:])}
        return TransformedText(**{**vars(answers[0]), **more})

    def start_ids(self) -> list[int]:
        return self.start_of()[0]

    def start_of(self, decoder_prefix: str = "") -> tuple[list[int], list[int]]:
        """Return the ids that an output begins with: those that the model demands, and those of the prefix."""
        if self.settings.decoder_start_id is None:
            raise UsageError("the checkpoint names no decoder_start_token_id", "add it to its config.json")
        start = [self.settings.decoder_start_id]
        prefix = (
            self.tokenizer.output.encode(decoder_prefix, add_special_tokens=False).input_ids if decoder_prefix else []
        )
        forced = self.settings.forced_bos_id
        # A prefix that names a language itself ("fr_XX", "__fr__") takes the place of the one that is forced.
        if forced is not None and not (prefix and prefix[0] in self.tokenizer.output.special_ids):
            start.append(forced)
        return start, prefix
